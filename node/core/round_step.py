"""The averaging round's machine: `step(state, event, now_s) -> (state, effects)`, pure.

Two-phase commit with one twist: a member that voted and hears nothing asks the others and, if nobody knows, goes on
without the round. That may leave a leader that committed alone in a lineage of its own; lineages are told apart by
their hash, and the lighter one syncs to the heavier. So a round is never half of anything: for each peer it is
committed with the same bytes as everywhere, in all stages at once, or its sealed sums are still its own.

Anything late, repeated or out of order is ignored unless it tells how a round ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from node.core.round_calls import (
    lead,
    prepared,
    receive_answer,
    receive_call,
    receive_open,
    receive_refusal,
    try_open,
    without,
)
from node.core.round_ends import (
    Step,
    applied,
    apply_failed,
    commit,
    commit_late,
    current,
    drop,
    known,
    to_all,
    with_results,
)
from node.core.round_exchange import broken, part_in, receive_vote, reduced, sealed, span_in, waits_for
from node.core.round_messages import (
    Answer,
    Ask,
    Call,
    Fail,
    Knowledge,
    Message,
    Open,
    Refusal,
    Results,
    Tell,
    Verdict,
    Vote,
)
from node.core.round_state import (
    DOUBT_S,
    SETTLE_S,
    Applied,
    ApplyFailed,
    Broken,
    Discard,
    Effect,
    Event,
    Lead,
    Lost,
    PartIn,
    Phase,
    PrepareDone,
    Received,
    Reduced,
    RoundState,
    Saw,
    SealDone,
    Send,
    SpanIn,
    Synced,
    SyncFailed,
    SyncStarted,
    Tick,
)
from node.core.types import PeerId


def step(state: RoundState, event: Event, now_s: float) -> Step:
    """Let one thing happen.

    Args:
        state: As the last step returned it.
        event: What happened.
        now_s: Seconds of a clock that never goes back.

    Returns:
        The new state and what it wants done, in this order. Feed a `Tick` at `wake_at_s(state)` at the latest.
    """
    state, effects = _handle(state, event, now_s)
    held = state.held
    if state.phase is not Phase.IDLE or held is None:
        return state, effects
    if held.until_s <= now_s:
        return replace(state, held=None), effects
    if state.doubt is not None and state.doubt.round.id == held.call.base_round:
        return state, effects  # the caller was asked for the results of that round
    call = replace(held.call, budget_s=held.until_s - now_s)
    state, more = receive_call(replace(state, held=None), held.caller, call, now_s)
    return state, effects + more


def wake_at_s(state: RoundState) -> float | None:
    """Return when a `Tick` is due, or None if only something else can move this state."""
    round = state.round
    if round is None or state.phase in (Phase.IDLE, Phase.APPLYING):
        return None
    is_waiting_for_answers = state.phase is Phase.CALLING and state.me in round.answers
    return min(round.answer_by_s, round.deadline_s) if is_waiting_for_answers else round.deadline_s


def _handle(state: RoundState, event: Event, now_s: float) -> Step:
    match event:
        case Received(sender, message):
            return _receive(state, sender, message, now_s)
        case Lead():
            return lead(state, event, now_s)
        case PrepareDone():
            return prepared(state, event, now_s)
        case SealDone():
            return sealed(state, event)
        case PartIn():
            return part_in(state, event)
        case Reduced():
            return reduced(state, event)
        case SpanIn():
            return span_in(state, event)
        case Broken():
            return broken(state, event)
        case Applied():
            return applied(state, event)
        case ApplyFailed():
            return apply_failed(state, event)
        case Lost(peer, refused):
            return _lost(state, peer, now_s, refused=refused)
        case Tick():
            return _tick(state, now_s)
        case Saw(alive):
            return replace(state, alive={**alive, state.me: state.shard}), ()
        case SyncStarted():
            return replace(state, must_sync=True), ()
        case SyncFailed():
            return replace(state, must_sync=False), ()
        case Synced(standing, base_round):
            assert state.phase is Phase.IDLE, "a state may only be loaded between rounds"
            synced = replace(state, standing=standing, base_round=base_round, must_sync=False, doubt=None, held=None)
            return synced, ()


def _receive(state: RoundState, sender: PeerId, message: Message, now_s: float) -> Step:
    if sender == state.me:
        return state, ()
    match message:
        case Call():
            return receive_call(state, sender, message, now_s)
        case Answer():
            return receive_answer(state, sender, message, now_s)
        case Refusal():
            return receive_refusal(state, sender, message, now_s)
        case Open():
            return receive_open(state, sender, message)
        case Fail():
            return _receive_fail(state, sender, message, now_s)
        case Vote():
            return receive_vote(state, sender, message)
        case Verdict():
            return _receive_verdict(state, sender, message)
        case Ask():
            return _receive_ask(state, sender, message)
        case Tell():
            return _receive_tell(state, sender, message, now_s)


def _receive_fail(state: RoundState, sender: PeerId, fail: Fail, now_s: float) -> Step:
    round = current(state, fail.round, Phase.CALLING, Phase.EXCHANGING, Phase.VOTED)
    if round is None or round.leader != state.me:
        return state, ()
    if state.phase is Phase.CALLING:
        return without(state, sender, now_s, refused=False) if sender in round.answers else (state, ())
    if sender not in round.members:
        return state, ()
    suspects = frozenset() if fail.suspect is None else frozenset({fail.suspect})
    # one's word against another's: the fault may as well be in the memory of the one who complains
    return drop(state, fail.reason, unsure=(suspects & round.members) - {state.me})


def _receive_verdict(state: RoundState, sender: PeerId, verdict: Verdict) -> Step:
    if verdict.committed:
        return _learn_commit(state, sender, verdict.round, verdict.results)
    round = current(state, verdict.round, Phase.ANSWERED, Phase.EXCHANGING, Phase.VOTED, Phase.DOUBTING)
    if round is None or sender != round.leader:
        return state, ()
    # Before the round opened for this replica, the leader may only have gone on without it: that proves nothing.
    knowledge = Knowledge.DROPPED if round.shares else None
    state, effects = drop(state, verdict.reason, knowledge=knowledge)
    return state, (*effects, Discard()) if verdict.must_discard else effects


def _receive_ask(state: RoundState, sender: PeerId, ask: Ask) -> Step:
    knowledge, results = known(state, ask.round)
    if knowledge is Knowledge.PENDING and state.round is not None:
        state = replace(state, round=replace(state.round, askers=state.round.askers | {sender}))
    return state, (Send(sender, Tell(ask.round, knowledge, results)),)


def _receive_tell(state: RoundState, sender: PeerId, tell: Tell, now_s: float) -> Step:
    if tell.knowledge is Knowledge.COMMITTED:
        return _learn_commit(state, sender, tell.round, tell.results)
    round = current(state, tell.round, Phase.DOUBTING)
    if round is None or sender not in round.members:
        return state, ()
    if tell.knowledge is Knowledge.DROPPED:
        return drop(state, "the leader was lost, and the round was dropped")
    return _heard(state, sender, now_s)


def _learn_commit(state: RoundState, sender: PeerId, round: str, results: Results) -> Step:
    """A member says that a round was committed, and with what."""
    voted = current(state, round, Phase.VOTED, Phase.DOUBTING)
    if voted is not None:
        whole = with_results(voted, results) if sender in voted.members else None
        is_mine_to_say = voted.leader == state.me  # a leader's own round ends by its own count alone
        return (state, ()) if is_mine_to_say or whole is None else commit(replace(state, round=whole))
    if state.doubt is None or sender not in state.doubt.round.members:
        return state, ()
    late = commit_late(state, round, results)
    return (state, ()) if late is None else late


def _doubt(state: RoundState, now_s: float, *, lost: Iterable[PeerId] = ()) -> Step:
    """Ask everybody else how the round ended."""
    round = state.round
    assert round is not None
    others = round.members - {state.me}
    round = replace(round, deadline_s=now_s + DOUBT_S, unheard=others)
    effects: tuple[Effect, ...] = to_all(others, Ask(round.id))
    state = replace(state, phase=Phase.DOUBTING, round=round)
    for peer in lost:
        state, more = _heard(state, peer, now_s)
        effects += more
    return state, effects


def _heard(state: RoundState, peer: PeerId, now_s: float) -> Step:
    """In doubt: one more does not know, or cannot be asked. When all are through, wait a moment and no longer."""
    round = state.round
    assert round is not None
    unheard = round.unheard - {peer}
    if unheard == round.unheard:
        return state, ()
    deadline_s = round.deadline_s if unheard else min(round.deadline_s, now_s + SETTLE_S)
    return replace(state, round=replace(round, unheard=unheard, deadline_s=deadline_s)), ()


def _lost(state: RoundState, peer: PeerId, now_s: float, *, refused: bool) -> Step:
    round = state.round
    if round is None:
        return state, ()
    if state.phase is Phase.DOUBTING:
        return _heard(state, peer, now_s)
    is_leader = round.leader == state.me
    if state.phase is Phase.CALLING:
        return without(state, peer, now_s, refused=refused) if peer in round.called - round.dead else (state, ())
    if is_leader and state.phase in (Phase.EXCHANGING, Phase.VOTED):
        if peer not in round.members or peer in round.votes:
            return state, ()
        return _drop_with_lost(state, "a member was lost", peer, refused=refused)
    if peer != round.leader or is_leader:
        return state, ()
    if state.phase is Phase.VOTED:
        return _doubt(state, now_s, lost=(peer,))
    if state.phase in (Phase.ANSWERED, Phase.EXCHANGING):
        return _drop_with_lost(state, "the leader was lost", peer, refused=refused)
    return state, ()


def _drop_with_lost(state: RoundState, reason: str, peer: PeerId, *, refused: bool) -> Step:
    """Drop because of a lost peer; one that is dead is no culprit, and is welcome as soon as it is back."""
    round = state.round
    assert round is not None
    if not refused:
        return drop(state, reason, culprits=frozenset({peer}))
    return drop(replace(state, round=replace(round, dead=round.dead | {peer})), reason)


def _tick(state: RoundState, now_s: float) -> Step:
    round = state.round
    if round is None or state.phase is Phase.APPLYING:
        return state, ()
    if now_s < round.deadline_s:
        return try_open(state, now_s)
    if state.phase is Phase.DOUBTING:
        return drop(state, "the leader is silent and nobody knows the verdict", knowledge=Knowledge.GAVE_UP)
    if state.phase is Phase.VOTED and round.leader != state.me:
        return _doubt(state, now_s)
    return _drop_late(state)


def _drop_late(state: RoundState) -> Step:
    """Time ran out. Whose part is missing here is late; else it may be whose result is missing; else who did not vote.

    A leader that has not opened the round in time waits for itself, and for nobody else.
    """
    round = state.round
    assert round is not None
    reason = "the round was not finished in time"
    others, near = round.members - {state.me}, waits_for(round, state)
    if late := near - round.parts:
        return drop(state, reason, late=late)
    results_missing = near - {owner for _, owner in round.spans}
    return drop(state, reason, unsure=results_missing or others - round.votes.keys())
