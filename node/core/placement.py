"""Which stages a node should hold: when it joins, and when the swarm has become lopsided.

Pure functions of who holds what. All nodes work out the same move from the same view, so that one node moves at a time
and the others see it before they think again. Whether a node can come by the weights and the adapter of the stages
that are named here is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from node.core.types import NO_SHARD, PeerId, Shard

STAGE_BYTES = 1 << 30
"""Frozen weights of a stage at most (unless one layer is larger), so that the smallest cards can hold one."""

LEAST_STAGES = 16
"""Of a model that is cut at all: unequal cards can then share it within a sixteenth. Stages in a row are one hop."""

UNHELD_PATIENCE_S = 120.0
"""How long a stage is without a holder before somebody moves: a restarted node is back sooner, with its adapter."""

LOPSIDED_PATIENCE_S = 300.0
"""How long the slowest stage could be faster before somebody moves."""

COOL_DOWN_S = 1800.0
"""How long a node stays where it is: a move costs it a download and its sums."""

MIN_GAIN = 1.25
"""How much faster the slowest stage has to become; measured speeds of one machine vary by less."""

_MAX_PLANNED = 4
"""Moves that may be needed together before the slowest stage is faster."""
_MAX_TURNS = 8
"""Nodes that get the turn one after the other if those before do not move."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that holds stages, or might."""

    peer_id: PeerId
    shard: Shard
    stage_tokens_per_s: float
    """Tokens a second through one stage if it does nothing else; divided among the stages that it holds."""
    capacity_stages: int
    """Stages that it has memory for; where nobody knows, as many as it holds."""


def auto_num_stages(num_layers: int, layer_bytes: int) -> int:
    """Return into how many stages a founder cuts a model: 1 if it is smaller than `STAGE_BYTES`, else many.

    Args:
        num_layers: Decoder layers of the model.
        layer_bytes: Frozen weights of one layer as a node holds them.
    """
    if num_layers * layer_bytes <= STAGE_BYTES:
        return 1
    layers_of_a_stage = max(1, min(STAGE_BYTES // layer_bytes, num_layers // LEAST_STAGES))
    return math.ceil(num_layers / layers_of_a_stage)


def throughputs(num_stages: int, holders: Iterable[Candidate]) -> list[float]:
    """Return the tokens a second of each stage if every holder divides its time evenly among its stages.

    Routing can do better where shards overlap, never worse.
    """
    total = [0.0] * num_stages
    for holder in sorted(holders, key=lambda h: h.peer_id):  # the same sum, to the bit, on all nodes
        share = holder.stage_tokens_per_s / max(1, len(holder.shard))
        for stage in _within(holder.shard, num_stages):
            total[stage] += share
    return total


def choose(
    num_stages: int,
    holders: Sequence[Candidate],
    capacity_stages: int,
    *,
    stage_tokens_per_s: float = math.inf,
) -> Shard:
    """Return the stages that a joining node takes.

    All if they fit: a model is split only where it has to be. Else as many as fit, in a row: first what nobody holds,
    then where the swarm is slowest (as Petals does, arXiv 2312.08361, section 3.2). Of equal ones those with which the
    fewest hops cover the model, and whose edges are others' edges.

    Args:
        num_stages: Stages of the run.
        holders: The others.
        capacity_stages: Stages that this node has memory for.
        stage_tokens_per_s: Its speed, as in `Candidate`; if it is not known, its stages count as fast enough.
    """
    if capacity_stages <= 0:
        return NO_SHARD
    if capacity_stages >= num_stages:
        return Shard(0, num_stages)
    me = Candidate(PeerId(""), NO_SHARD, stage_tokens_per_s, capacity_stages)
    best = _best_window(num_stages, holders, me, _windows(me, num_stages))
    assert best is not None, "who can hold a stage has somewhere to go"
    return best[1].shard


def is_lopsided(num_stages: int, holders: Sequence[Candidate]) -> bool:
    """Return whether some node should move: a stage has no holder, or the slowest one could be `MIN_GAIN` faster."""
    return bool(_unheld(num_stages, holders)) or _relief(num_stages, holders, ()) is not None


def should_move(
    num_stages: int,
    holders: Sequence[Candidate],
    me: PeerId,
    *,
    lopsided_s: float,
    settled_s: float,
) -> Shard | None:
    """Return the stages that this node should hold instead of its own, or None if it should stay.

    A move never takes the last holder from a stage. After each patience the turn goes to the next node in a ranking
    that is the same everywhere, since a node's owner may have fixed its stages, which others do not know. In a steady
    swarm the moves end: each makes the sorted throughputs of the stages lexicographically larger, or belongs to a
    row of moves towards a stage that nobody holds.

    Args:
        num_stages: Stages of the run.
        holders: All that hold stages, this node too.
        me: This node.
        lopsided_s: For how long `is_lopsided` has been true, with the same stages unheld.
        settled_s: For how long this node has held what it holds.
    """
    if settled_s < COOL_DOWN_S and not _unheld(num_stages, holders):
        return None
    find = _cover if _unheld(num_stages, holders) else _relief
    patience_s = UNHELD_PATIENCE_S if find is _cover else LOPSIDED_PATIENCE_S
    turn = int(lopsided_s // patience_s) - 1
    if turn < 0:
        return None
    stay: set[PeerId] = set()
    for _ in range(turn % _MAX_TURNS + 1):
        mover = find(num_stages, holders, stay)
        if mover is None:
            return None
        stay.add(mover.peer_id)
    assert mover is not None, "at least one turn"
    return mover.shard if mover.peer_id == me else None


def _relief(num_stages: int, holders: Sequence[Candidate], stay: Collection[PeerId]) -> Candidate | None:
    """Return the first of a few moves that together make the slowest stage `MIN_GAIN` faster, or None."""
    made = throughputs(num_stages, holders)
    slowest = min(made)
    if MIN_GAIN * slowest > sum(made) / num_stages:
        return None  # not even a perfect spread is so much faster
    first: Candidate | None = None
    now, done = list(holders), set(stay)
    for _ in range(_MAX_PLANNED):
        totals = throughputs(num_stages, now)
        mover = _best_move(num_stages, now, done, {totals.index(min(totals))})
        if mover is None:
            return None
        first = first or mover
        now = [*_without(now, mover.peer_id), mover]
        if min(throughputs(num_stages, now)) >= MIN_GAIN * slowest:
            return first
        done.add(mover.peer_id)
    return None


def _cover(num_stages: int, holders: Sequence[Candidate], stay: Collection[PeerId]) -> Candidate | None:
    """Return the next move towards stages that nobody holds: a direct one, else the first of a row of shifts."""
    unheld = _unheld(num_stages, holders)
    direct = _best_move(num_stages, holders, set(stay), unheld)
    if direct is not None:
        return direct
    target = _shifted(num_stages, holders, stay)
    if len(_unheld(num_stages, target)) >= len(unheld):
        return None
    at = {holder.peer_id: holder.shard for holder in holders}
    moves = [there for there in target if there.shard != at[there.peer_id]]
    safe = [there for there in moves if not _abandons(num_stages, holders, there)]
    return min(safe, key=lambda there: there.peer_id, default=None)


def _best_move(
    num_stages: int, holders: Sequence[Candidate], stay: Collection[PeerId], wanted: Collection[int]
) -> Candidate | None:
    """Return the move of one node to some of the `wanted` stages that improves most, or None if none improves."""
    before = sorted(throughputs(num_stages, holders))
    best: tuple[_Merit, Candidate] | None = None
    for holder in sorted(holders, key=lambda h: h.peer_id):
        if holder.peer_id in stay:
            continue
        others = _without(holders, holder.peer_id)
        unheld = _unheld(num_stages, others)
        alone = {stage for stage in _within(holder.shard, num_stages) if stage in unheld}
        shards = [
            shard
            for shard in _windows(holder, num_stages)
            if shard != holder.shard and any(map(shard.holds, wanted)) and all(map(shard.holds, alone))
        ]
        found = _best_window(num_stages, others, holder, shards)
        if found is not None and found[0][0] > before and (best is None or found[0] > best[0]):
            best = found
    return best[1] if best is not None else None


_Merit = tuple[list[float], int, int, int]
"""Sorted throughputs; hops that cover the model, negative; edges that are others' edges; first stage, negative."""


def _best_window(
    num_stages: int, others: Sequence[Candidate], node: Candidate, shards: Iterable[Shard]
) -> tuple[_Merit, Candidate] | None:
    """Return the best of `shards` for a node, and how good the swarm is then; more is better."""
    without = throughputs(num_stages, others)
    edges = {0, num_stages} | {e for o in others for e in (o.shard.first_stage, o.shard.stop_stage) if len(o.shard)}
    best: tuple[_Merit, Candidate] | None = None
    for shard in shards:
        share = node.stage_tokens_per_s / len(shard)
        made = sorted(total + share if shard.holds(stage) else total for stage, total in enumerate(without))
        if best is not None and made < best[0][0]:
            continue
        hops = num_hops(num_stages, [shard, *(other.shard for other in others)])
        abutting = (shard.first_stage in edges) + (shard.stop_stage in edges)
        merit = made, -hops, abutting, -shard.first_stage
        if best is None or merit > best[0]:
            best = merit, replace(node, shard=shard)
    return best


def num_hops(num_stages: int, shards: Sequence[Shard]) -> int:
    """Return the fewest shards that cover all stages that somebody holds (greedily, which is exact for intervals)."""
    hops, stage = 0, 0
    while stage < num_stages:
        reach = max((shard.stop_stage for shard in shards if shard.holds(stage)), default=0)
        hops += reach > stage
        stage = max(reach, stage + 1)
    return hops


def _shifted(num_stages: int, holders: Sequence[Candidate], stay: Collection[PeerId]) -> list[Candidate]:
    """Return the holders, shifted as little as covers all stages without changing their order along the model.

    From the left, whoever leaves a gap before it is drawn to the left; then from the right, whoever leaves a gap
    behind it is pushed to the right, until an overlap takes the shift up. It covers the model if all may move and the
    capacities suffice.
    """
    row = sorted(
        (h for h in holders if len(h.shard)), key=lambda h: (h.shard.first_stage, h.shard.stop_stage, h.peer_id)
    )
    edge = 0
    for index, holder in enumerate(row):
        if holder.shard.first_stage > edge and holder.peer_id not in stay:
            row[index] = holder = replace(holder, shard=_at(edge, holder, num_stages))
        edge = max(edge, holder.shard.stop_stage)
    edge = num_stages
    for index, holder in reversed(list(enumerate(row))):
        if holder.shard.stop_stage < edge and holder.peer_id not in stay:
            row[index] = holder = replace(holder, shard=_at(edge - holder.capacity_stages, holder, num_stages))
        edge = min(edge, holder.shard.first_stage)
    return row


def _at(first_stage: int, holder: Candidate, num_stages: int) -> Shard:
    length = min(max(holder.capacity_stages, len(holder.shard)), num_stages)
    first_stage = max(0, min(first_stage, num_stages - length))
    return Shard(first_stage, first_stage + length)


def _windows(node: Candidate, num_stages: int) -> list[Shard]:
    """Return all shards that fill the node's capacity."""
    length = min(max(node.capacity_stages, len(node.shard)), num_stages)
    return [Shard(first, first + length) for first in range(num_stages - length + 1)] if length else []


def _abandons(num_stages: int, holders: Iterable[Candidate], there: Candidate) -> bool:
    """Return whether a stage would lose its last holder if that node moved there."""
    at = next(h.shard for h in holders if h.peer_id == there.peer_id)
    left = {stage for stage in _within(at, num_stages) if not there.shard.holds(stage)}
    return bool(left & _unheld(num_stages, _without(holders, there.peer_id)))


def _unheld(num_stages: int, holders: Iterable[Candidate]) -> set[int]:
    shards = [holder.shard for holder in holders]
    return {stage for stage in range(num_stages) if not any(shard.holds(stage) for shard in shards)}


def _within(shard: Shard, num_stages: int) -> range:
    return range(shard.first_stage, min(shard.stop_stage, num_stages))


def _without(holders: Iterable[Candidate], peer_id: PeerId) -> list[Candidate]:
    return [holder for holder in holders if holder.peer_id != peer_id]
