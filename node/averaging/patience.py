"""How long each peer is waited for, and who is not called for a while, because rounds failed with it.

A dead peer and a slow one look alike to a deadline. What tells them apart is that a slow one moves: bytes come, or it
answers when it is asked whether it is there. A slow one is given twice the time in the next round, and again; one that
stands still is left out at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from node.averaging.exchange import Exchange
from node.core.deadline import Budget, RoundTimes
from node.core.round_state import Ended
from node.core.types import PeerId, RoundStatus

LEFT_OUT_S = 60.0
"""How long a peer that held up a round is not called again."""
MOVED_WITHIN_S = 3.0
"""A peer of which a chunk came or went so lately is under way: 64 KiB take half a second at 1 Mbit/s."""


class Patience:
    """Remembers how long rounds took, and who held one up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[PeerId, float] = {}
        self._times = RoundTimes()
        self._suspects: frozenset[PeerId] = frozenset()
        self._heard_at: dict[PeerId, float] = {}

    def budget(self, peers: Collection[PeerId], *, ceiling_s: float) -> Budget:
        """Return how long a round with these peers may take, at most `ceiling_s`."""
        return self._times.budget(peers, ceiling_s=ceiling_s)

    def heard(self, peer: PeerId) -> None:
        """Note that a peer answered when it was asked whether it is there."""
        self._heard_at[peer] = self._clock()

    def ended(self, ended: Ended, exchange: Exchange, *, me: PeerId) -> None:
        """Learn from a round's end: how long to wait the next time, and for whom not."""
        now_s = self._clock()
        others = ended.members - {me}
        # where somebody was waited for in vain, the time until the opening says nothing about the others
        if ended.status is RoundStatus.COMMITTED and exchange.committed_at and not ended.stalled:
            answer_s = exchange.opened_at - exchange.started_at
            self._times = self._times.finished(
                others, answer_s=answer_s, exchange_s=exchange.committed_at - exchange.opened_at
            )
        slow = {p for p in ended.stalled if now_s - self._heard_at.get(p, -1e9) < MOVED_WITHIN_S}
        slow |= {p for p in ended.late | ended.unsure if now_s - exchange.moved_at.get(p, -1e9) < MOVED_WITHIN_S}
        slow = {p for p in slow if self._times.may_go_on(p)} - {me}
        self._times = self._times.ran_out(slow)
        # Whose result is missing may wait for a part that is missing there: only twice in a row is at fault.
        unsure = ended.unsure - slow
        certain = ended.culprits | (ended.late | ended.stalled) - slow | unsure & self._suspects
        self._suspects = (self._suspects - others) | unsure
        self._until |= dict.fromkeys(certain - {me}, now_s + LEFT_OUT_S)

    def left_out(self) -> frozenset[PeerId]:
        """Return who is left out now."""
        self._until = {peer: until for peer, until in self._until.items() if until > self._clock()}
        return frozenset(self._until)

    def forgive(self) -> None:
        """Leave nobody out any more."""
        self._until.clear()
