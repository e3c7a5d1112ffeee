"""How fast this node's own training goes, and with what loss: over the latest microbatches."""

from __future__ import annotations

import time
from collections import deque

_RATE_WINDOW_S = 20.0
_LOSS_WINDOW = 20


class Pace:
    """Rate and loss of the latest microbatches."""

    def __init__(self) -> None:
        self._finished: deque[tuple[float, int]] = deque()
        self._losses: deque[tuple[float, int]] = deque(maxlen=_LOSS_WINDOW)
        self.tokens_seen = 0

    def note(self, *, tokens: int, labels: int, loss_sum: float) -> None:
        """Take in a microbatch that is finished now."""
        self._finished.append((time.monotonic(), tokens))
        self._losses.append((loss_sum, labels))
        self.tokens_seen += tokens

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over the last seconds."""
        now = time.monotonic()
        while self._finished and now - self._finished[0][0] > _RATE_WINDOW_S:
            self._finished.popleft()
        if len(self._finished) < 2:
            return 0.0
        span = self._finished[-1][0] - self._finished[0][0]
        return sum(tokens for _, tokens in list(self._finished)[1:]) / span if span > 0 else 0.0

    @property
    def loss(self) -> float | None:
        """Mean loss, in nats per label."""
        labels = sum(count for _, count in self._losses)
        return sum(total for total, _ in self._losses) / labels if labels else None
