"""How long a round may take: from how long the rounds with the same peers took, instead of a constant.

A round has two parts that are slow for different reasons: until all have come to a rest and answered (their
microbatches), and the exchange (their links). Each is measured for itself and for each peer, because a round is as
slow as its slowest member: a slow peer lengthens the deadline of the rounds that it is in, and of no other. The
deadline is the median plus a multiple of the median absolute deviation, which a few odd rounds do not move (Hampel
1974); when time ran out while a peer was still moving it is doubled, as after a lost packet in TCP (RFC 6298).
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from node.core.types import PeerId

NUM_KEPT = 20
"""Rounds that are remembered of each peer."""
NUM_NEEDED = 4
"""With fewer rounds seen with a peer, a round with it may take as long as the recipe says."""
MAD_FACTOR = 8.0
"""Six standard deviations or so, were the times normal, which they are not: their tail is long."""
_LEAST_SPREAD = 1 / 8
"""Of the median: the least deviation that is assumed, so that no deadline is below two medians."""
FLOOR_S = 2.0
"""No part of a round is given less: a lost packet, or a machine that swaps, costs a second and nobody is dead."""
MAX_FACTOR = 4.0
"""A peer with which time ran out that often in a row (each time with twice as much) is not waited for again."""
MAX_PEERS = 1024
"""Peers that are remembered, latest first."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a leader gives a round, in seconds from its call."""

    answer_s: float
    """Who has not answered by then is left out."""
    budget_s: float
    """The end, one way or the other."""


@dataclass(frozen=True, slots=True)
class _History:
    answers_s: tuple[float, ...] = ()
    exchanges_s: tuple[float, ...] = ()
    factor: float = 1.0
    """Doubled whenever time ran out while this peer was moving; 1 again with the next round that it finished."""


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """What a node remembers of the rounds that it finished, as leader or as member."""

    by_peer: Mapping[PeerId, _History] = field(default_factory=dict)

    def finished(self, peers: Collection[PeerId], *, answer_s: float, exchange_s: float) -> RoundTimes:
        """Note a committed round.

        Args:
            peers: Its other members.
            answer_s: From the call until it opened.
            exchange_s: From then until it was committed.
        """
        noted = {}
        for peer in peers:
            old = self._of(peer)
            noted[peer] = _History(
                (*old.answers_s, answer_s)[-NUM_KEPT:],
                (*old.exchanges_s, exchange_s)[-NUM_KEPT:],
            )
        return self._with(noted)

    def ran_out(self, movers: Collection[PeerId]) -> RoundTimes:
        """Note that a round ran out of time while these peers were still moving: they are slow, and not dead."""
        doubled = {peer: min(2 * self._of(peer).factor, MAX_FACTOR) for peer in movers}
        return self._with({peer: replace(self._of(peer), factor=factor) for peer, factor in doubled.items()})

    def budget(self, peers: Collection[PeerId], *, ceiling_s: float) -> Budget:
        """Return how long a round with these peers may take.

        Args:
            peers: Who is called, without this node; alone there is nobody to wait for, and it gets all there is.
            ceiling_s: What the recipe allows: no round is given more, nor is one with a peer that is hardly known
                given less.
        """
        answers = [_limit_s(self._of(peer).answers_s, self._of(peer).factor) for peer in peers]
        exchanges = [_limit_s(self._of(peer).exchanges_s, self._of(peer).factor) for peer in peers]
        answer_s = min(max(answers, default=ceiling_s), ceiling_s / 2)
        return Budget(answer_s, min(answer_s + max(exchanges, default=ceiling_s), ceiling_s))

    def may_go_on(self, peer: PeerId) -> bool:
        """Whether time has not run out so often in a row with this peer that it is too slow for the run."""
        return self._of(peer).factor < MAX_FACTOR

    def _of(self, peer: PeerId) -> _History:
        return self.by_peer.get(peer, _History())

    def _with(self, noted: Mapping[PeerId, _History]) -> RoundTimes:
        others = {peer: old for peer, old in self.by_peer.items() if peer not in noted}
        kept = [*others.items(), *noted.items()][-MAX_PEERS:]
        return RoundTimes(dict(kept))


def _limit_s(seconds: Sequence[float], factor: float) -> float:
    """Return what is allowed after these; infinity if too few are known, for the recipe's value to cap."""
    if len(seconds) < NUM_NEEDED:
        return float("inf")
    median = statistics.median(seconds)
    spread = max(statistics.median(abs(s - median) for s in seconds), _LEAST_SPREAD * median)
    return factor * max(FLOOR_S, median + MAD_FACTOR * spread)
