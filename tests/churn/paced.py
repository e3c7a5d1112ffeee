"""`python -m churn.paced TOKENS_PER_S ARGUMENTS...`: the real `potluck` on a device of a known speed.

A microbatch takes as long as that device would need, by sleeping on the engine's thread after the real computation.
So several nodes share a machine's cores as if each had its own, and what they could compute is known.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from node.cli.main import main
from node.training.loop import TrainingLoop


def pace(tokens_per_s: float) -> None:
    """Let every microbatch of this process take at least its tokens / `tokens_per_s` seconds."""
    original = TrainingLoop._train

    def train(self: TrainingLoop, batch: Any, cursor: Any) -> float:
        until = time.monotonic() + batch.num_tokens / tokens_per_s
        loss_sum = original(self, batch, cursor)
        time.sleep(max(0.0, until - time.monotonic()))
        return loss_sum

    TrainingLoop._train = train  # type: ignore[method-assign]


if __name__ == "__main__":
    pace(float(sys.argv.pop(1)))
    main()
