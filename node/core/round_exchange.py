"""Parts in, results out, votes: the middle of the round's machine (`round_step.py`)."""

from __future__ import annotations

from dataclasses import replace

from node.core.round_ends import Step, commit, current, drop
from node.core.round_messages import Fail, Results, Share, Vote
from node.core.round_shares import Key, are_whole, as_digests, keys_for
from node.core.round_state import (
    Broken,
    PartIn,
    Phase,
    Publish,
    Reduce,
    Reduced,
    Round,
    RoundState,
    Scatter,
    SealDone,
    Send,
    SpanIn,
)
from node.core.types import PeerId


def enter_exchange(state: RoundState, shares: tuple[Share, ...]) -> Step:
    """Begin to exchange parts; from here on an earlier round in doubt can no longer be honoured."""
    round = state.round
    assert round is not None, "an exchange needs a round"
    state = replace(state, phase=Phase.EXCHANGING, doubt=None, round=replace(round, shares=shares))
    return state, (Scatter(round.id, shares),)


def sealed(state: RoundState, event: SealDone) -> Step:
    """This peer's own sums are ready."""
    round = current(state, event.round, Phase.EXCHANGING)
    if round is None:
        return state, ()
    return _go_on(replace(state, round=replace(round, is_sealed=True)))


def part_in(state: RoundState, event: PartIn) -> Step:
    """A member's parts of this peer's spans are here."""
    round = current(state, event.round, Phase.ANSWERED, Phase.CALLING, Phase.EXCHANGING)
    if round is None:
        return state, ()
    return _go_on(replace(state, round=replace(round, parts=round.parts | {event.sender})))


def reduced(state: RoundState, event: Reduced) -> Step:
    """This peer's own spans are reduced."""
    round = current(state, event.round, Phase.EXCHANGING)
    if round is None:
        return state, ()
    state, effects = _go_on(replace(state, round=_with(round, event.results)))
    return state, (Publish(round.id), *effects)


def span_in(state: RoundState, event: SpanIn) -> Step:
    """Another member's spans are here."""
    round = current(state, event.round, Phase.EXCHANGING)
    owner = next((share for share in round.shares if share.peer_id == event.owner), None) if round else None
    if round is None or owner is None or not are_whole(event.results, (owner,), state.shard):
        return state, ()
    if any((result.stage, result.owner) in round.spans for result in event.results):
        return state, ()  # a repetition
    return _go_on(replace(state, round=_with(round, event.results)))


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
    """Leader: one more member holds all spans of its stages."""
    round = current(state, vote.round, Phase.EXCHANGING, Phase.VOTED)
    if round is None or round.leader != state.me or sender not in round.members:
        return state, ()
    return count_votes(replace(state, round=replace(round, votes={**round.votes, sender: vote.results})))


def count_votes(state: RoundState) -> Step:
    """Leader: commit if the holders of every stage hold the same results, drop if two hold different ones."""
    round = state.round
    assert round is not None, "votes belong to a round"
    if state.phase is not Phase.VOTED:
        return state, ()
    union: dict[Key, str] = {}
    for share in round.shares:
        vote = round.votes.get(share.peer_id)
        if vote is None:
            continue
        digests = as_digests(vote)
        if not are_whole(vote, round.shares, share.shard) or any(
            union.get(key, digest) != digest for key, digest in digests.items()
        ):
            return drop(state, "the members hold different results")
        union |= digests
    if not round.members.issubset(round.votes):
        return state, ()
    return commit(replace(state, round=replace(round, spans=union)))


def waits_for(round: Round, state: RoundState) -> frozenset[PeerId]:
    """Return the members that hold a stage which this peer holds too: parts and results go between these."""
    return frozenset(s.peer_id for s in round.shares if s.shard.overlaps(state.shard)) - {state.me}


def _with(round: Round, results: Results) -> Round:
    return replace(round, spans={**round.spans, **as_digests(results)})


def _go_on(state: RoundState) -> Step:
    """Reduce when all parts are there, vote when all results are."""
    round = state.round
    assert round is not None
    if state.phase is not Phase.EXCHANGING or not round.is_sealed:
        return state, ()
    mine = next(share for share in round.shares if share.peer_id == state.me)
    if mine.spans and not round.is_reducing and waits_for(round, state).issubset(round.parts):
        return replace(state, round=replace(round, is_reducing=True)), (Reduce(round.id),)
    if not keys_for(round.shares, state.shard).issubset(round.spans):
        return state, ()
    results = round.results
    round = replace(round, votes={**round.votes, state.me: results})
    state = replace(state, phase=Phase.VOTED, round=round)
    if round.leader == state.me:
        return count_votes(state)
    return state, (Send(round.leader, Vote(round.id, results)),)
