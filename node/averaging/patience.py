"""Who is not called for a while, because rounds failed with it."""

from __future__ import annotations

from collections.abc import Iterable

from node.core.types import PeerId

LEFT_OUT_S = 60.0
"""How long a peer that held up a round is not called again."""


class Patience:
    """Remembers who held up a round, and forgets it after a while."""

    def __init__(self) -> None:
        self._until: dict[PeerId, float] = {}

    def lost_with(self, peers: Iterable[PeerId], now_s: float) -> None:
        """Leave these peers out from now on, for `LEFT_OUT_S`."""
        self._until |= dict.fromkeys(peers, now_s + LEFT_OUT_S)

    def left_out(self, now_s: float) -> frozenset[PeerId]:
        """Return who is left out now."""
        self._until = {peer: until for peer, until in self._until.items() if until > now_s}
        return frozenset(self._until)
