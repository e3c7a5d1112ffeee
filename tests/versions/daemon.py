"""`python -m versions.daemon PROTOCOL SOFTWARE ARGUMENTS...`: the real `potluck`, of another version."""

import sys

from node.cli.main import main
from node.core import versions

if __name__ == "__main__":
    versions.PROTOCOL = int(sys.argv.pop(1))
    software = sys.argv.pop(1)
    versions.software = lambda: software
    main()
