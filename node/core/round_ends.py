"""How a round ends, and what this peer can tell others about it. Part of the round's machine (`round_step.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from node.core.round_messages import Knowledge, Message, Results, Tell, Verdict
from node.core.round_shares import are_whole, as_digests
from node.core.round_state import (
    REMEMBERED_ROUNDS,
    Applied,
    Apply,
    ApplyFailed,
    Doubt,
    Effect,
    Ended,
    FellBehind,
    Phase,
    Round,
    RoundState,
    Send,
)
from node.core.types import PeerId, RoundStatus, Standing

Step = tuple[RoundState, tuple[Effect, ...]]


def to_all(peers: Iterable[PeerId], message: Message) -> tuple[Effect, ...]:
    """Send one message to several peers, in the order of their ids."""
    return tuple(Send(peer, message) for peer in sorted(peers))


def remember(state: RoundState, round: str, knowledge: Knowledge, results: Results = ()) -> RoundState:
    """Keep how a round ended; of the latest rounds only."""
    others = tuple(entry for entry in state.ended if entry[0] != round)
    return replace(state, ended=(*others, (round, knowledge, results))[-REMEMBERED_ROUNDS:])


def known(state: RoundState, round: str) -> tuple[Knowledge, Results]:
    """Return what this peer knows of a round that may have ended, and its results if it was committed."""
    if state.round is not None and state.round.id == round and state.phase is not Phase.APPLYING:
        return Knowledge.PENDING, ()
    for id, knowledge, results in state.ended:
        if id == round:
            return knowledge, results
    return Knowledge.UNKNOWN, ()


def drop(
    state: RoundState,
    reason: str,
    *,
    culprits: frozenset[PeerId] = frozenset(),
    late: frozenset[PeerId] = frozenset(),
    unsure: frozenset[PeerId] = frozenset(),
    knowledge: Knowledge | None = Knowledge.DROPPED,
) -> Step:
    """End the current round without a commit; a leader tells everybody whom it called.

    Args:
        state: In a round that is not committed.
        reason: For the person.
        culprits: Who kept it from committing, as far as can be told.
        late: Whose parts were missing here when time ran out.
        unsure: Who may be at fault, or somebody else.
        knowledge: What to tell those who ask later; None to remember nothing.
    """
    round = state.round
    assert round is not None, "there is no round to drop"
    effects: tuple[Effect, ...] = ()
    if round.leader == state.me:
        effects += to_all(round.called - round.dead, Verdict(round.id, committed=False, reason=reason))
    if knowledge is not None:
        state = remember(state, round.id, knowledge)
        effects += to_all(round.askers, Tell(round.id, knowledge))
    in_doubt = knowledge is Knowledge.GAVE_UP
    effects += (
        Ended(
            round.id,
            RoundStatus.DROPPED,
            round.members,
            tokens=0,
            reason=reason,
            culprits=culprits,
            stalled=round.stalled,
            late=late,
            unsure=unsure,
            dead=round.dead,
            is_in_doubt=in_doubt,
            shares=round.shares,
        ),
    )
    doubt = Doubt(round, state.standing) if in_doubt else state.doubt
    return replace(state, phase=Phase.IDLE, round=None, doubt=doubt), effects


def commit(state: RoundState) -> Step:
    """Commit the current round, of which the results of all stages are known."""
    round = state.round
    assert round is not None, "a commit needs a round"
    results = round.results
    assert are_whole(results, round.shares), "a commit needs the results of all stages"
    effects: tuple[Effect, ...] = ()
    if round.leader == state.me:
        verdict = Verdict(round.id, committed=True, reason="", results=results)
        effects += to_all(round.members - {state.me}, verdict)
    state = remember(state, round.id, Knowledge.COMMITTED, results)
    effects += to_all(round.askers, Tell(round.id, Knowledge.COMMITTED, results))
    effects += (Apply(round.id, round.shares, results),)
    return replace(state, phase=Phase.APPLYING, doubt=None), effects


def with_results(round: Round, results: Results) -> Round | None:
    """Return a round that was voted on with the results of all stages, or None if they are not those of its vote."""
    digests = as_digests(results)
    if not are_whole(results, round.shares) or any(digests[key] != digest for key, digest in round.spans.items()):
        return None
    return replace(round, spans=digests)


def commit_late(state: RoundState, round: str, results: Results | None) -> Step | None:
    """Honour a COMMIT of the round that was given up, if no later round was opened since.

    Args:
        state: Any state.
        round: The round that turns out to be committed.
        results: What it was committed with; None if a base that was built upon it is the proof.

    Returns:
        None if this peer is not in doubt about that round, or cannot honour it (any more, or without the results).
    """
    doubt = state.doubt
    if doubt is None or doubt.round.id != round or doubt.standing != state.standing or state.must_sync:
        return None  # while another state is being loaded, the books will tell that this round is behind it
    if state.phase not in (Phase.IDLE, Phase.CALLING, Phase.ANSWERED):
        return None
    whole = with_results(doubt.round, doubt.round.results if results is None else results)
    if whole is None:
        return None
    effects: tuple[Effect, ...] = ()
    if state.phase is not Phase.IDLE:
        state, effects = drop(state, "an earlier round turned out to be committed")
    state, more = commit(replace(state, round=replace(whole, askers=frozenset())))
    return state, effects + more


def applied(state: RoundState, event: Applied) -> Step:
    """Move to the new version."""
    round = state.round
    if state.phase is not Phase.APPLYING or round is None or round.id != event.round:
        return state, ()
    status = RoundStatus.COMMITTED if len(round.shares) > 1 else RoundStatus.ALONE
    ended = Ended(
        round.id,
        status,
        round.members,
        round.tokens,
        stalled=round.stalled,
        dead=round.dead,
        shares=round.shares,
    )
    return (
        replace(state, phase=Phase.IDLE, round=None, standing=event.standing, base_round=round.id),
        (ended,),
    )


def apply_failed(state: RoundState, event: ApplyFailed) -> Step:
    """Go on from another member's state: the round is committed, only not here."""
    round = state.round
    if state.phase is not Phase.APPLYING or round is None or round.id != event.round:
        return state, ()
    ended = Ended(
        round.id,
        RoundStatus.DROPPED,
        round.members,
        tokens=0,
        reason=event.reason,
        dead=round.dead,
        shares=round.shares,
    )
    others = round.members - {state.me}
    state = replace(state, phase=Phase.IDLE, round=None)
    if not others:
        return state, (ended,)
    source = round.leader if round.leader in others else min(others)
    ahead = Standing(state.standing.version + 1, "", state.standing.committed_tokens + round.tokens)
    return replace(state, must_sync=True), (ended, FellBehind(source, ahead))


def follow(state: RoundState, peer: PeerId, standing: Standing) -> Step:
    """Stop taking part until a heavier lineage's state is loaded."""
    if state.must_sync:
        return state, ()
    return replace(state, must_sync=True), (FellBehind(peer, standing),)


def current(state: RoundState, round: str, *phases: Phase) -> Round | None:
    """Return the current round if it has that id and is in one of `phases`."""
    if state.round is not None and state.round.id == round and state.phase in phases:
        return state.round
    return None
