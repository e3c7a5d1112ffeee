"""`python -m faults.without_pause ARGUMENTS...`: the real `potluck` that does not pause when it cannot save."""

from __future__ import annotations

from node.cli.main import main
from node.upkeep import Upkeep

if __name__ == "__main__":
    Upkeep.is_blocked = property(lambda _: False)  # type: ignore[assignment, method-assign]
    main()
