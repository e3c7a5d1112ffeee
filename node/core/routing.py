"""Which peers a microbatch goes through, and how many microbatches are under way at a time.

Pure functions of a view and of measured times. A route covers stages `[start, stop)` by *hops*: one peer each, and a
run of stages that it holds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from node.core.types import PeerId, Shard

MAX_IN_FLIGHT = 32
_SMOOTHING = 0.3
"""Weight of a new measurement in the running mean."""
_LEAST_OF = 64
"""Microbatches among which the quickest shows what one takes when it waits for none of this driver's others."""
_RATE_OVER = 32
"""Microbatches over which the rate is measured."""
_GAIN = 2.0
"""Peers and links wait for each other, and an idle one's time is lost for good; BBR takes as much."""
_UNKNOWN_S = 1e-3
"""Seconds a stage of a peer that was never measured: less than any real one, so that everybody is tried once."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One peer's part of a route."""

    peer_id: PeerId
    first_stage: int
    stop_stage: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that serves stages at the version that counts."""

    peer_id: PeerId
    shard: Shard


Cost = Callable[[PeerId, int], float]
"""Seconds until this peer has done that many stages of one more microbatch."""


def route(
    holders: Iterable[Holder], start: int, stop: int, *, cost: Cost, avoid: Collection[PeerId] = ()
) -> tuple[Hop, ...] | None:
    """Return the cheapest hops that cover stages `[start, stop)`, or None if some stage has no holder.

    The shortest path over the edges of the shards (dynamic programming from left to right). Of equally dear routes
    the one with fewer hops wins, then the one with lower peer ids.

    Args:
        holders: Who serves.
        start: First stage.
        stop: Stage after the last; equal to `start` for the empty route.
        cost: As measured; a hop to this node itself costs no transfer.
        avoid: Peers that failed for this microbatch.
    """
    usable = sorted((h for h in holders if h.peer_id not in avoid), key=lambda h: h.peer_id)
    edges = {start, stop}
    for holder in usable:
        edges.update(e for e in (holder.shard.first_stage, holder.shard.stop_stage) if start < e < stop)
    best: dict[int, tuple[float, int, tuple[Hop, ...]]] = {start: (0.0, 0, ())}
    ordered = sorted(edges)
    for index, edge in enumerate(ordered):
        if edge not in best:
            continue
        seconds, num_hops, hops = best[edge]
        for holder in usable:
            if not holder.shard.first_stage <= edge < holder.shard.stop_stage:
                continue
            for end in ordered[index + 1 :]:
                if end > holder.shard.stop_stage:
                    break
                hop = Hop(holder.peer_id, edge, end)
                there = (seconds + cost(holder.peer_id, end - edge), num_hops + 1, (*hops, hop))
                if end not in best or there[:2] < best[end][:2]:
                    best[end] = there
    return best[stop][2] if stop in best else None


def route_again(
    holders: Iterable[Holder],
    start: int,
    stop: int,
    *,
    cost: Cost,
    avoid: Collection[PeerId] = (),
    counted_by: Mapping[int, PeerId],
) -> tuple[Hop, ...] | None:
    """Return hops as `route`, but leave stages that have counted the microbatch to whoever did, if it can be had.

    A repetition adds nothing there; with another replica of the stage both would have counted it.

    Args:
        holders: Who serves.
        start: First stage.
        stop: Stage after the last.
        cost: As measured.
        avoid: Peers that failed for this microbatch.
        counted_by: By stage, who may have counted it.
    """
    holders = tuple(holders)
    shards = {holder.peer_id: holder.shard for holder in holders if holder.peer_id not in avoid}

    def bound_to(stage: int) -> PeerId | None:
        peer = counted_by.get(stage)
        return peer if peer is not None and peer in shards and shards[peer].holds(stage) else None

    hops: tuple[Hop, ...] = ()
    while start < stop:
        peer, end = bound_to(start), start + 1
        while end < stop and bound_to(end) == peer:
            end += 1
        part = route(holders, start, end, cost=cost, avoid=avoid) if peer is None else (Hop(peer, start, end),)
        if part is None:
            return None
        hops, start = hops + part, end
    return hops


def missing_stages(holders: Iterable[Holder], num_stages: int) -> tuple[int, ...]:
    """Return the stages that nobody holds."""
    held = {stage for holder in holders for stage in holder.shard.stages}
    return tuple(stage for stage in range(num_stages) if stage not in held)


@dataclass(slots=True)
class HopTimes:
    """What was measured of one peer: running means over requests of any size, brought to one token and stage."""

    work_s: float = 0.0
    """Seconds of compute a token and stage, forward and backward together."""
    overhead_s: float = 0.0
    """Seconds of a forward and a backward beyond compute and queue: transfer, codec and the way."""
    under_way: int = 0
    """Requests that this node has at the peer now."""
    num_measured: int = 0

    def measured(self, *, work_s: float, overhead_s: float, tokens: int, stages: int) -> None:
        """Take in one microbatch's forward and backward."""
        unit = work_s / max(1, tokens * stages)
        share = 1.0 if self.num_measured == 0 else _SMOOTHING
        self.work_s += share * (unit - self.work_s)
        self.overhead_s += share * (overhead_s - self.overhead_s)
        self.num_measured += 1

    def expected_s(self, tokens: int, stages: int) -> float:
        """Return the seconds that one more microbatch of that size takes here, those before it included."""
        if self.num_measured == 0:
            return _UNKNOWN_S * stages * (1 + self.under_way)
        return self.overhead_s + self.work_s * tokens * stages * (1 + self.under_way)


class Flow:
    """How many of this driver's microbatches have to be under way, from how long the latest ones took.

    Little's law: as many as end in the time that one takes. Both are measured as congestion control does (BBR,
    doi:10.1145/3012426.3022184): the time without what the microbatches wait for each other on the links, which is the
    least that was seen lately, and the rate at which they ended. More under way than that would only lengthen the
    queues of links and peers, which others share; a flush at a round shows the least time again.
    """

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=_LEAST_OF)
        self._ended: deque[float] = deque(maxlen=_RATE_OVER)
        self._is_local: deque[bool] = deque(maxlen=_RATE_OVER)

    def done(self, *, unqueued_s: float, now_s: float, is_local: bool) -> None:
        """Take in one finished microbatch.

        Args:
            unqueued_s: From its begin to its end, without the time that it waited for others' work at the peers.
            now_s: When it ended, on a clock that only goes forward.
            is_local: Nobody but this node worked on it.
        """
        self._is_local.append(is_local)
        self._ended.append(now_s)
        if not is_local:
            self._took.append(unqueued_s)

    def in_flight(self, limit: int) -> int:
        """Return how many microbatches keep the slowest peer or link busy, at least 1 and at most `limit`.

        Args:
            limit: Bound by memory.
        """
        if not self._took or all(self._is_local):
            return 1  # nothing was measured, or nobody but this node works on them: more would only hold memory
        least_s, num_ended = min(self._took), len(self._ended) - 1
        per_s = num_ended / max(self._ended[-1] - self._ended[0], least_s, 1e-6)
        # One more, so that the rate is seen to grow where more can be done.
        wanted = math.ceil(_GAIN * per_s * least_s) + 1
        return max(1, min(limit, MAX_IN_FLIGHT, wanted))


def layers_text(first_layer: int, stop_layer: int) -> str:
    """Return layers `[first, stop)` in words: `layers 20-29`, or `layer 20`."""
    last = stop_layer - 1
    return f"layer {first_layer}" if last == first_layer else f"layers {first_layer}-{last}"
