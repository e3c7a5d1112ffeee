"""What every node can work out by itself from the swarm's view: how far it is, who leads, whom to follow.

Pure functions of an immutable view and a time. Nobody is asked and nobody decides for others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from node.core.types import Peer, PeerId, PeerState, Progress, SwarmView

_TAKES_PART = (PeerState.TRAINING,)
_MAX_EXTRAPOLATION_S = 10.0
"""A record older than this says nothing about the tokens that its peer has done since."""


def peers_of_one_state(view: SwarmView, mine: Progress, *, without: Collection[PeerId] = ()) -> tuple[Peer, ...]:
    """Return the live peers that train from where this node is, holders and drivers alike, me included, by id."""
    standing = mine.standing
    found = (
        peer
        for peer in view.peers
        if peer.peer_id == view.me
        or (
            peer.peer_id not in without
            and peer.state in _TAKES_PART
            and peer.progress is not None
            and peer.progress.standing.shares_bits_with(standing)
        )
    )
    return tuple(sorted(found, key=lambda peer: peer.peer_id))


def leader(view: SwarmView, mine: Progress, *, without: Collection[PeerId] = ()) -> PeerId:
    """Return who calls the next round: the lowest id among the peers at this standing."""
    return min(peer.peer_id for peer in peers_of_one_state(view, mine, without=without))


def tokens_towards_next(view: SwarmView, mine: Progress, *, now_s: float, without: Collection[PeerId] = ()) -> int:
    """Return the tokens that the drivers together have accumulated, others' counted on to `now_s` by their rate.

    Args:
        view: The swarm; its records may be a second or two old.
        mine: This node's own progress, as it is now.
        now_s: Unix time.
        without: Peers that are left out of the next round.
    """
    total = mine.tokens
    for peer in peers_of_one_state(view, mine, without=without):
        theirs = peer.progress
        if peer.peer_id == view.me or theirs is None:
            continue
        age_s = min(max(now_s - theirs.at_s, 0.0), _MAX_EXTRAPOLATION_S)
        total += theirs.tokens + int(theirs.tokens_per_s * age_s)
    return total


def peer_ahead(view: SwarmView, mine: Progress) -> Peer | None:
    """Return the peer whose lineage this node should follow, or None if its own is the one.

    The heaviest lineage wins (`Standing.is_heavier_than`). Every node decides alike, so two halves that meet agree
    without talking.
    """
    standing = best_standing = mine.standing
    best: Peer | None = None
    for peer in view.peers:
        if peer.peer_id == view.me or peer.progress is None or peer.state not in _TAKES_PART:
            continue
        theirs = peer.progress.standing
        if not theirs.shares_bits_with(standing) and theirs.is_heavier_than(best_standing):
            best, best_standing = peer, theirs
    return best


@dataclass(frozen=True, slots=True)
class SwarmTotals:
    """The swarm in one line."""

    num_peers: int
    tokens_per_s: float
    loss: float | None
    version: int


def totals(view: SwarmView) -> SwarmTotals:
    """Add up what the live peers announce; the loss is their mean, weighted by their rates."""
    rates = [(peer, peer.progress) for peer in view.peers if peer.progress is not None]
    training = [(peer, p) for peer, p in rates if peer.state is PeerState.TRAINING]
    weighted = [(peer.loss, max(p.tokens_per_s, 1e-9)) for peer, p in training if peer.loss is not None]
    weight = sum(w for _, w in weighted)
    return SwarmTotals(
        num_peers=len(view.peers),
        tokens_per_s=sum(p.tokens_per_s for _, p in training),
        loss=sum(loss * w for loss, w in weighted) / weight if weighted else None,
        version=max((p.version for _, p in rates), default=0),
    )


def with_partners(view: SwarmView, mine: Progress, partners: Collection[PeerId], *, stepped_at_s: float) -> SwarmView:
    """Return the view with the members of the latest round counted as far as this node.

    Their records say so only a moment later; until then they would look like peers that stayed behind.

    Args:
        view: The swarm; its records may be older than the latest round.
        mine: This node's own progress, after the round.
        partners: The other members of the round that led to `mine`.
        stepped_at_s: Unix time of the step.
    """
    peers = []
    for peer in view.peers:
        theirs = peer.progress
        if peer.peer_id in partners and theirs is not None and theirs.version < mine.version:
            fresh = dataclasses.replace(
                theirs,
                version=mine.version,
                base_hash=mine.base_hash,
                committed_tokens=mine.committed_tokens,
                tokens=0,
                at_s=stepped_at_s,
                hashes=tuple((stage, bits) for stage, bits in mine.hashes if peer.shard.holds(stage)),
            )
            peer = dataclasses.replace(peer, progress=fresh)
        peers.append(peer)
    return SwarmView(view.me, tuple(peers))


def missing_stages(peers: Iterable[Peer], num_stages: int) -> tuple[int, ...]:
    """Return the stages that none of these peers holds."""
    held = {stage for peer in peers for stage in peer.shard.stages}
    return tuple(stage for stage in range(num_stages) if stage not in held)
