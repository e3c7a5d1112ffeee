"""Parts in, results out, votes: the middle of the round's machine (`round_step.py`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from node.core.round_ends import Step, commit, current, drop
from node.core.round_messages import Fail, Share, Vote
from node.core.round_state import Broken, PartIn, Phase, Publish, Reduce, Reduced, RoundState, Scatter, Send, SpanIn
from node.core.types import PeerId


def enter_exchange(state: RoundState, shares: tuple[Share, ...]) -> Step:
    """Begin to exchange parts; from here on an earlier round in doubt can no longer be honoured."""
    round = state.round
    assert round is not None, "an exchange needs a round"
    state = replace(state, phase=Phase.EXCHANGING, doubt=None, round=replace(round, shares=shares))
    state, effects = _reduce_if_complete(state)
    return state, (Scatter(round.id, shares), *effects)


def part_in(state: RoundState, event: PartIn) -> Step:
    """A member's part of this replica's span is here."""
    round = current(state, event.round, Phase.ANSWERED, Phase.CALLING, Phase.EXCHANGING)
    if round is None:
        return state, ()
    state = replace(state, round=replace(round, parts=round.parts | {event.sender}))
    return _reduce_if_complete(state)


def reduced(state: RoundState, event: Reduced) -> Step:
    """This replica's own span is reduced."""
    round = current(state, event.round, Phase.EXCHANGING)
    if round is None:
        return state, ()
    state = replace(state, round=replace(round, spans={**round.spans, state.me: event.digest}))
    state, effects = _vote_if_complete(state)
    return state, (Publish(round.id), *effects)


def span_in(state: RoundState, event: SpanIn) -> Step:
    """Another member's span is here."""
    round = current(state, event.round, Phase.EXCHANGING)
    if round is None or event.owner in round.spans or event.owner not in round.members:
        return state, ()
    return _vote_if_complete(replace(state, round=replace(round, spans={**round.spans, event.owner: event.digest})))


def broken(state: RoundState, event: Broken) -> Step:
    """A part or a result will not come, or is unusable."""
    round = current(state, event.round, Phase.EXCHANGING)
    if round is None:
        return state, ()
    suspects = frozenset() if event.suspect is None else frozenset({event.suspect})
    if round.leader == state.me:
        return drop(state, event.reason, culprits=suspects & round.members)
    fail = Send(round.leader, Fail(round.id, event.suspect, event.reason))
    state, effects = drop(state, event.reason, culprits=suspects & round.members)
    return state, (fail, *effects)


def receive_vote(state: RoundState, sender: PeerId, vote: Vote) -> Step:
    """Leader: one more member holds all spans."""
    round = current(state, vote.round, Phase.EXCHANGING, Phase.VOTED)
    if round is None or round.leader != state.me or sender not in round.members:
        return state, ()
    return count_votes(replace(state, round=replace(round, votes={**round.votes, sender: vote.digest})))


def count_votes(state: RoundState) -> Step:
    """Leader: commit if all votes are there and equal, drop if two differ."""
    round = state.round
    assert round is not None, "votes belong to a round"
    if not round.digest:
        return state, ()
    if any(digest != round.digest for digest in round.votes.values()):
        return drop(state, "the members hold different results")
    if round.members.issubset(round.votes):
        return commit(state)
    return state, ()


def round_digest(round: str, shares: tuple[Share, ...], spans: Mapping[PeerId, str]) -> str:
    """Return the hash over everything that the members must agree on: the shares and every span's digest."""
    sha = hashlib.sha256(round.encode())
    for share in shares:
        sha.update(
            f"|{share.peer_id}:{share.weight}:{share.tokens}:{share.start}:{share.stop}:{spans[share.peer_id]}".encode()
        )
    return sha.hexdigest()


def _reduce_if_complete(state: RoundState) -> Step:
    round = state.round
    assert round is not None
    if not round.shares or round.is_reducing or not (round.members - {state.me}).issubset(round.parts):
        return state, ()
    return replace(state, round=replace(round, is_reducing=True)), (Reduce(round.id),)


def _vote_if_complete(state: RoundState) -> Step:
    round = state.round
    assert round is not None
    if not round.members.issubset(round.spans):
        return state, ()
    digest = round_digest(round.id, round.shares, round.spans)
    round = replace(round, digest=digest, votes={**round.votes, state.me: digest})
    state = replace(state, phase=Phase.VOTED, round=round)
    if round.leader == state.me:
        return count_votes(state)
    return state, (Send(round.leader, Vote(round.id, digest)),)
