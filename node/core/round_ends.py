"""How a round ends, and what this replica can tell others about it. Part of the round's machine (`round_step.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from node.core.round_messages import Knowledge, Message, Standing, Tell, Verdict
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
from node.core.types import PeerId, RoundStatus

Step = tuple[RoundState, tuple[Effect, ...]]


def to_all(peers: Iterable[PeerId], message: Message) -> tuple[Effect, ...]:
    """Send one message to several peers, in the order of their ids."""
    return tuple(Send(peer, message) for peer in sorted(peers))


def remember(state: RoundState, round: str, knowledge: Knowledge, digest: str = "") -> RoundState:
    """Keep how a round ended; of the latest rounds only."""
    others = tuple(entry for entry in state.ended if entry[0] != round)
    return replace(state, ended=(*others, (round, knowledge, digest))[-REMEMBERED_ROUNDS:])


def known(state: RoundState, round: str) -> tuple[Knowledge, str]:
    """Return what this replica knows of a round that may have ended, and its digest if it was committed."""
    if state.round is not None and state.round.id == round and state.phase is not Phase.APPLYING:
        return Knowledge.PENDING, ""
    for id, knowledge, digest in state.ended:
        if id == round:
            return knowledge, digest
    return Knowledge.UNKNOWN, ""


def drop(
    state: RoundState,
    reason: str,
    *,
    culprits: frozenset[PeerId] = frozenset(),
    knowledge: Knowledge | None = Knowledge.DROPPED,
) -> Step:
    """End the current round without a commit; a leader tells everybody whom it called.

    Args:
        state: In a round that is not committed.
        reason: For the person.
        culprits: Who kept it from committing, as far as can be told.
        knowledge: What to tell those who ask later; None to remember nothing.
    """
    round = state.round
    assert round is not None, "there is no round to drop"
    effects: tuple[Effect, ...] = ()
    if round.leader == state.me:
        effects += to_all(round.called - round.dead, Verdict(round.id, committed=False, digest="", reason=reason))
    if knowledge is not None:
        state = remember(state, round.id, knowledge)
        effects += to_all(round.askers, Tell(round.id, knowledge, ""))
    in_doubt = knowledge is Knowledge.GAVE_UP
    effects += (
        Ended(
            round.id,
            RoundStatus.DROPPED,
            round.members,
            tokens=0,
            reason=reason,
            culprits=culprits | round.stalled,
            dead=round.dead,
            is_in_doubt=in_doubt,
        ),
    )
    doubt = Doubt(round, state.standing) if in_doubt else state.doubt
    return replace(state, phase=Phase.IDLE, round=None, doubt=doubt), effects


def commit(state: RoundState) -> Step:
    """Commit the current round: everybody's digest is this replica's."""
    round = state.round
    assert round is not None, "a commit needs a round"
    assert round.digest, "a commit needs all spans"
    effects: tuple[Effect, ...] = ()
    if round.leader == state.me:
        verdict = Verdict(round.id, committed=True, digest=round.digest, reason="")
        effects += to_all(round.members - {state.me}, verdict)
    state = remember(state, round.id, Knowledge.COMMITTED, round.digest)
    effects += to_all(round.askers, Tell(round.id, Knowledge.COMMITTED, round.digest))
    effects += (Apply(round.id, round.shares),)
    return replace(state, phase=Phase.APPLYING, doubt=None), effects


def commit_late(state: RoundState, round: str, digest: str | None) -> Step | None:
    """Honour a COMMIT of the round that was given up, if no later round was opened since.

    Args:
        state: Any state.
        round: The round that turns out to be committed.
        digest: What it was committed with; None if a base that was built upon it is the proof.

    Returns:
        None if this replica is not in doubt about that round, or cannot honour it any more.
    """
    doubt = state.doubt
    if doubt is None or doubt.round.id != round or doubt.standing != state.standing or state.must_sync:
        return None  # while another state is being loaded, the books will tell that this round is behind it
    if digest is not None and digest != doubt.round.digest:
        return None
    if state.phase not in (Phase.IDLE, Phase.CALLING, Phase.ANSWERED):
        return None
    effects: tuple[Effect, ...] = ()
    if state.phase is not Phase.IDLE:
        state, effects = drop(state, "an earlier round turned out to be committed")
    state, more = commit(replace(state, round=replace(doubt.round, askers=frozenset()), doubt=None))
    return state, effects + more


def applied(state: RoundState, event: Applied) -> Step:
    """Move to the new version."""
    round = state.round
    if state.phase is not Phase.APPLYING or round is None or round.id != event.round:
        return state, ()
    status = RoundStatus.COMMITTED if len(round.shares) > 1 else RoundStatus.ALONE
    ended = Ended(round.id, status, round.members, round.tokens, culprits=round.stalled, dead=round.dead)
    return (
        replace(state, phase=Phase.IDLE, round=None, standing=event.standing, base_round=round.id),
        (ended,),
    )


def apply_failed(state: RoundState, event: ApplyFailed) -> Step:
    """Go on from another member's state: the round is committed, only not here."""
    round = state.round
    if state.phase is not Phase.APPLYING or round is None or round.id != event.round:
        return state, ()
    ended = Ended(round.id, RoundStatus.DROPPED, round.members, tokens=0, reason=event.reason, dead=round.dead)
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
