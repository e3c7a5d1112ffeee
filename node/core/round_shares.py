"""How a round is cut among its members, who may take part in it, and what of it everybody has to hold."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from node.core.round_messages import Answer, Results, Share, Span
from node.core.types import PeerId, Shard

Key = tuple[int, PeerId]
"""A span by its stage and owner."""


def cut(num_values: int, speeds: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Cut `[0, num_values)` into one span a member, as long as its speed; spans may be empty.

    Args:
        num_values: Length of the flat vector.
        speeds: One positive number a member, such as its uplink; all equal for equal spans.
    """
    assert speeds, "a stage has at least one holder"
    assert all(speed > 0 for speed in speeds), f"speeds must be positive: {speeds}"
    total, done, edges = sum(speeds), 0.0, [0]
    for speed in speeds[:-1]:
        done += speed
        edges.append(min(num_values, round(num_values * done / total)))
    edges.append(num_values)
    return tuple((start, max(start, stop)) for start, stop in itertools.pairwise(edges))


def shares_of(answers: Mapping[PeerId, Answer]) -> tuple[Share, ...]:
    """Return the round's shares, in the order of ids: each stage's vector is cut equally among its holders."""
    ids = sorted(answers)
    spans: dict[PeerId, list[Span]] = {id: [] for id in ids}
    for stage in sorted({stage for answer in answers.values() for stage in answer.shard.stages}):
        holders = [id for id in ids if answers[id].shard.holds(stage)]
        num_values = dict(answers[holders[0]].sizes)[stage]
        for id, (start, stop) in zip(holders, cut(num_values, [1.0] * len(holders)), strict=True):
            spans[id].append(Span(stage, start, stop))
    return tuple(
        Share(id, answers[id].weight, answers[id].tokens, answers[id].shard, answers[id].session, tuple(spans[id]))
        for id in ids
    )


def what_is_wrong(shares: Sequence[Share], *, me: PeerId, mine: Answer, leader: PeerId, num_stages: int) -> str:
    """Say why an opened round is not one that this member can take part in; empty if it can."""
    found = [share for share in shares if share.peer_id == me]
    told = (mine.weight, mine.tokens, mine.shard, mine.session)
    if len(found) != 1 or (found[0].weight, found[0].tokens, found[0].shard, found[0].session) != told:
        return "the round was opened with something else than this node answered"
    ids = [share.peer_id for share in shares]
    if ids != sorted(set(ids)) or leader not in ids:
        return "the round's members are not in order"
    if any([span.stage for span in share.spans] != list(share.shard.stages) for share in shares):
        return "the round's spans are not those of its members' stages"
    if {stage for share in shares for stage in share.shard.stages} != set(range(num_stages)):
        return "the round's members do not hold just the stages of the run"
    sizes = dict(mine.sizes)
    for stage in range(num_stages):
        cuts = [(span.start, span.stop) for share in shares for span in share.spans if span.stage == stage]
        edges = [0, *(stop for _, stop in cuts)]
        if [start for start, _ in cuts] != edges[:-1] or edges != sorted(edges):
            return f"the round's spans do not cover the vector of stage {stage}"
        if sizes.get(stage, edges[-1]) != edges[-1]:
            return f"the round's spans do not cover the vector of stage {stage}"
    return ""


def spans_for(share: Share, other: Shard) -> tuple[Span, ...]:
    """Return the spans of `share` in the stages that the holder of `other` has too."""
    return tuple(span for span in share.spans if other.holds(span.stage))


def keys_for(shares: Iterable[Share], shard: Shard | None = None) -> frozenset[Key]:
    """Return the keys of all spans, or of those in the stages of `shard`."""
    return frozenset(
        (span.stage, share.peer_id)
        for share in shares
        for span in share.spans
        if shard is None or shard.holds(span.stage)
    )


def are_whole(results: Results, shares: Iterable[Share], shard: Shard | None = None) -> bool:
    """Whether the results name each span of `shard`'s stages (None: of all stages) once, and no other."""
    keys = [(result.stage, result.owner) for result in results]
    return len(set(keys)) == len(keys) and keys_for(shares, shard) == set(keys)


def as_digests(results: Results) -> dict[Key, str]:
    """Return the digests by stage and owner."""
    return {(result.stage, result.owner): result.digest for result in results}


def round_digest(round: str, shares: Sequence[Share], results: Results) -> str:
    """Return the hash over everything that the members must agree on: the shares and every span's digest."""
    sha = hashlib.sha256(round.encode())
    for share in shares:
        shard = f"{share.shard.first_stage}-{share.shard.stop_stage}"
        sha.update(f"|{share.peer_id}:{share.weight}:{share.tokens}:{shard}:{share.session}".encode())
        for span in share.spans:
            sha.update(f"/{span.stage}:{span.start}:{span.stop}".encode())
    for result in sorted(results):
        sha.update(f"|{result.stage}:{result.owner}:{result.digest}".encode())
    return sha.hexdigest()


def next_base_hash(base_hash: str, digest: str) -> str:
    """Return the lineage's hash after a round with that digest."""
    return hashlib.sha256(f"{base_hash}|{digest}".encode()).hexdigest()


def has_quorum(members: frozenset[PeerId], alive: Sequence[frozenset[PeerId]], dead: frozenset[PeerId]) -> bool:
    """Whether `members` are more than half of what each of them holds for alive.

    Args:
        members: Who takes part, the leader included.
        alive: For each member, the peers that it holds for alive.
        dead: Peers that refused the leader's connection, or that said that they will not step without syncing.
    """
    return all(2 * len(members) > len((seen | members) - dead) for seen in alive)


def why_not(
    answers: Mapping[PeerId, Answer], alive: Sequence[Mapping[PeerId, Shard]], dead: Collection[PeerId], num_stages: int
) -> str:
    """Say which stage keeps a round from being opened; empty if every one has more than half of its living holders.

    Args:
        answers: Of the members.
        alive: For each member, whom it holds for alive, with the stages that each of them holds.
        dead: As for `has_quorum`.
        num_stages: Of the run.
    """
    for stage in range(num_stages):
        holders = frozenset(id for id, answer in answers.items() if answer.shard.holds(stage))
        if not holders:
            return f"nobody holds stage {stage}"
        seen = [frozenset(id for id, shard in view.items() if shard.holds(stage)) for view in alive]
        if not has_quorum(holders, seen, frozenset(dead)):
            which = "the replicas" if num_stages == 1 else f"the holders of stage {stage}"
            return f"only {len(holders)} of {which} answered, not more than half"
    return ""


def odd_ones_out(answers: Mapping[PeerId, Answer]) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
    """Return who does not fit to the others: whose vector has another length, and whose bits are others.

    The length that most holders of a stage have counts. Of unequal bits the lowest hash counts, as in
    `Standing.is_heavier_than`: the others have to follow it.
    """
    sizes: dict[int, list[tuple[PeerId, int]]] = {}
    hashes: dict[int, list[tuple[PeerId, str]]] = {}
    for id in sorted(answers):
        for stage, size in answers[id].sizes:
            sizes.setdefault(stage, []).append((id, size))
        for stage, bits in answers[id].hashes:
            hashes.setdefault(stage, []).append((id, bits))
    misfits: set[PeerId] = set()
    others: set[PeerId] = set()
    for found in sizes.values():
        right = Counter(size for _, size in found).most_common(1)[0][0]
        misfits.update(id for id, size in found if size != right)
    for claims in hashes.values():
        least = min(bits for _, bits in claims)
        others.update(id for id, bits in claims if bits != least)
    return frozenset(misfits), frozenset(others)


def doubted(answers: Mapping[PeerId, Answer]) -> frozenset[PeerId]:
    """Return the members whose sums some member has in doubt, in the very session that they answered with."""
    doubts = frozenset().union(*(answer.doubts for answer in answers.values()))
    return frozenset(id for id, answer in answers.items() if (id, answer.session) in doubts)
