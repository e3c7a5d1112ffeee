"""Calling, answering and opening: the beginning of the round's machine (`round_step.py`)."""

from __future__ import annotations

from dataclasses import replace

from node.core.round_ends import Step, commit, commit_late, current, drop, follow, known, to_all, with_results
from node.core.round_exchange import enter_exchange
from node.core.round_messages import (
    Answer,
    Ask,
    Call,
    Fail,
    Knowledge,
    Open,
    Reason,
    Refusal,
    Verdict,
)
from node.core.round_shares import doubted, odd_ones_out, shares_of, what_is_wrong, why_not
from node.core.round_state import (
    GRACE_S,
    Discard,
    Effect,
    Ended,
    HeldCall,
    Lead,
    Phase,
    Prepare,
    PrepareDone,
    Round,
    RoundState,
    Send,
)
from node.core.types import PeerId, RoundStatus


def lead(state: RoundState, event: Lead, now_s: float) -> Step:
    """Call a round."""
    plan = event.plan
    if state.phase is not Phase.IDLE or state.must_sync:
        reason = "this node is fetching a state" if state.must_sync else "another round is under way"
        return state, (Ended(event.round, RoundStatus.DROPPED, frozenset(), tokens=0, reason=reason),)
    called = plan.members - {state.me}
    round = Round(
        event.round,
        leader=state.me,
        deadline_s=now_s + plan.budget_s,
        answer_by_s=now_s + min(plan.answer_s, plan.budget_s),
        called=called,
    )
    call = Call(event.round, state.standing, state.base_round, plan.budget_s, state.settings)
    state = replace(state, phase=Phase.CALLING, round=round, alive={**plan.alive, state.me: state.shard})
    return state, (Prepare(event.round), *to_all(called, call))


def prepared(state: RoundState, event: PrepareDone, now_s: float) -> Step:
    """This peer rests."""
    round = current(state, event.round, Phase.CALLING, Phase.ANSWERED)
    if round is None:
        return state, ()
    answer = Answer(
        round.id,
        event.weight,
        event.tokens,
        state.shard,
        event.session,
        state.standing.hashes,
        state.sizes,
        {**state.alive, state.me: state.shard},
        event.doubts,
    )
    state = replace(state, round=replace(round, answers={**round.answers, state.me: answer}))
    if state.phase is Phase.CALLING:
        return try_open(state, now_s)
    return state, (Send(round.leader, answer),)


def receive_call(state: RoundState, sender: PeerId, call: Call, now_s: float) -> Step:
    """Member: join the round, or say why not."""
    if known(state, call.round)[0] is not Knowledge.UNKNOWN:
        return state, ()  # a duplicate
    if call.settings != state.settings:
        return _refuse(state, sender, call, Reason.UNEQUAL_SETTINGS)
    proven = _commit_proven_by(state, call)
    if proven is not None:
        committed, effects = proven
        committed, more = _hold(committed, sender, call, now_s)
        return committed, effects + more
    if _may_be_committed(state, call):
        state, effects = _hold(state, sender, call, now_s)
        return state, (Send(sender, Ask(call.base_round)), *effects)
    is_under_way = state.phase in (Phase.VOTED, Phase.DOUBTING, Phase.APPLYING)
    if is_under_way and call.standing.version == state.standing.version + 1:
        return _hold(state, sender, call, now_s)
    if state.must_sync:
        return _refuse(state, sender, call, Reason.SYNCING)
    if state.phase is Phase.IDLE:
        return _join(state, sender, call, now_s)
    if is_under_way or not _gives_way_to(state, sender, call):
        return _refuse(state, sender, call, Reason.BUSY)
    round = state.round
    assert round is not None
    state, effects = drop(state, "another peer with a lower id calls")
    if round.leader not in (state.me, sender):
        effects = (Send(round.leader, Fail(round.id, None, "a lower id called too")), *effects)
    state, more = _join(state, sender, call, now_s)
    return state, effects + more


def receive_answer(state: RoundState, sender: PeerId, answer: Answer, now_s: float) -> Step:
    """Leader: one more member rests."""
    round = state.round
    if round is None or round.id != answer.round or round.leader != state.me or sender not in round.called:
        return state, ()
    if state.phase is not Phase.CALLING:
        # Only to one that was left out: a member's late duplicate must not hear of a drop.
        if round.shares and sender not in round.members:
            return state, (Send(sender, _without_you(round)),)
        return state, ()
    if sender in round.dead | round.failed:
        return state, ()
    stages = tuple(answer.shard.stages)
    is_coherent = stages == tuple(stage for stage, _ in answer.sizes) == tuple(stage for stage, _ in answer.hashes)
    if not is_coherent or answer.shard.stop_stage > state.num_stages:
        return without(state, sender, now_s, refused=False)
    round = replace(round, answers={**round.answers, sender: answer})
    return try_open(replace(state, round=round), now_s)


def receive_refusal(state: RoundState, sender: PeerId, refusal: Refusal, now_s: float) -> Step:
    """Leader: one will not take part; if its lineage is heavier, this peer is the one that has to sync."""
    round = current(state, refusal.round, Phase.CALLING)
    if round is None or sender not in round.called or sender in round.answers:
        return state, ()
    will_step_elsewhere = refusal.reason in (Reason.AHEAD, Reason.BUSY)
    differs = not refusal.standing.shares_bits_with(state.standing)
    if will_step_elsewhere and differs and refusal.standing.is_heavier_than(state.standing):
        state, effects = drop(state, "another lineage is further")
        state, more = follow(state, sender, refusal.standing)
        return state, effects + more
    if refusal.reason in (Reason.BEHIND, Reason.SYNCING, Reason.UNKNOWN_RUN):
        round = replace(round, dead=round.dead | {sender})
    else:
        round = replace(round, failed=round.failed | {sender})
    return try_open(replace(state, round=round), now_s)


def receive_open(state: RoundState, sender: PeerId, opened: Open) -> Step:
    """Member: the round is open; check that it is the one that was answered."""
    round = current(state, opened.round, Phase.ANSWERED)
    if round is None or sender != round.leader or state.me not in round.answers:
        return state, ()
    wrong = what_is_wrong(
        opened.shares, me=state.me, mine=round.answers[state.me], leader=round.leader, num_stages=state.num_stages
    )
    if wrong:
        fail = Send(round.leader, Fail(round.id, round.leader, wrong))
        state, effects = drop(state, wrong, culprits=frozenset({round.leader}))
        return state, (fail, *effects)
    return enter_exchange(state, opened.shares)


def without(state: RoundState, peer: PeerId, now_s: float, *, refused: bool) -> Step:
    """Leader, calling: go on without a peer that cannot be reached or that took its answer back."""
    round = state.round
    assert round is not None
    round = replace(
        round,
        answers={id: answer for id, answer in round.answers.items() if id != peer},
        dead=round.dead | {peer} if refused else round.dead,
        failed=round.failed | {peer},
    )
    return try_open(replace(state, round=round), now_s)


def try_open(state: RoundState, now_s: float) -> Step:
    """Leader: open as soon as everybody has answered, or with those who did when the answers are due."""
    round = state.round
    assert round is not None
    if state.phase is not Phase.CALLING or state.me not in round.answers:
        return state, ()
    waiting = round.called - round.answers.keys() - round.dead - round.failed
    if waiting and now_s < round.answer_by_s:
        return state, ()
    misfits, others = odd_ones_out(round.answers)
    in_doubt = doubted(round.answers)
    left_out = misfits | others | in_doubt
    answers = {id: answer for id, answer in round.answers.items() if id not in left_out}
    round = replace(round, stalled=waiting, failed=round.failed | waiting | left_out)
    state = replace(state, round=round)
    turned_away: tuple[Effect, ...] = to_all(left_out - in_doubt - {state.me}, _without_you(round))
    turned_away += to_all(in_doubt - {state.me}, replace(_without_you(round), must_discard=True))
    if state.me in left_out:
        state, effects = _step_aside(state, is_in_doubt=state.me in in_doubt)
        return state, (*turned_away, *effects)
    members = frozenset(answers)
    views = [{**state.alive, **{id: a.shard for id, a in answers.items()}}, *(a.alive for a in answers.values())]
    # Who is in doubt or holds other bits has answered, and will load a state before it steps: it is no hidden half.
    if reason := why_not(answers, views, round.dead | others | in_doubt, state.num_stages):
        state, effects = drop(state, reason)
        return state, (*turned_away, *effects)
    if not sum(answer.weight for answer in answers.values()):
        state, effects = drop(state, "nobody has anything to average yet")
        return state, (*turned_away, *effects)
    shares = shares_of(answers)
    state, effects = enter_exchange(state, shares)
    return state, (*to_all(members - {state.me}, Open(round.id, shares)), *turned_away, *effects)


def _without_you(round: Round) -> Verdict:
    return Verdict(round.id, committed=False, reason="opened without you")


def _step_aside(state: RoundState, *, is_in_doubt: bool) -> Step:
    """Leader: the others cannot average with this peer's sums, so that there is no round."""
    if not is_in_doubt:
        return drop(state, "this node's adapter is not the one that the others hold")
    state, effects = drop(state, "a microbatch may be in this node's sums and in another's")
    return state, (*effects, Discard())


def _commit_proven_by(state: RoundState, call: Call) -> Step | None:
    """A call for the next version whose base is the round that this peer waits for: that round is committed."""
    if call.standing.version != state.standing.version + 1:
        return None
    if state.phase in (Phase.VOTED, Phase.DOUBTING):
        round = state.round
        assert round is not None
        is_proven = round.id == call.base_round and round.leader != state.me
        whole = with_results(round, round.results) if is_proven else None
        return None if whole is None else commit(replace(state, round=whole))
    return commit_late(state, call.base_round, None)


def _may_be_committed(state: RoundState, call: Call) -> bool:
    """Whether the call proves that a round is committed of which this peer does not know the other stages' results."""
    if call.standing.version != state.standing.version + 1 or state.must_sync:
        return False
    if state.phase in (Phase.VOTED, Phase.DOUBTING):
        return state.round is not None and state.round.id == call.base_round and state.round.leader != state.me
    return state.phase is Phase.IDLE and state.doubt is not None and state.doubt.round.id == call.base_round


def _join(state: RoundState, sender: PeerId, call: Call, now_s: float) -> Step:
    if call.standing.shares_bits_with(state.standing):
        round = Round(call.round, leader=sender, deadline_s=now_s + call.budget_s + GRACE_S)
        return replace(state, phase=Phase.ANSWERED, round=round), (Prepare(call.round),)
    if call.standing.is_heavier_than(state.standing):
        state, effects = _refuse(state, sender, call, Reason.BEHIND)
        state, more = follow(state, sender, call.standing)
        return state, effects + more
    return _refuse(state, sender, call, Reason.AHEAD)


def _gives_way_to(state: RoundState, sender: PeerId, call: Call) -> bool:
    """Whether the current round, which has not been voted on, is given up for this call."""
    round = state.round
    assert round is not None
    if state.phase is Phase.EXCHANGING:
        return sender == round.leader and sender != state.me  # it must have dropped the round
    if not call.standing.shares_bits_with(state.standing):
        return call.standing.is_heavier_than(state.standing)
    return sender <= round.leader


def _hold(state: RoundState, sender: PeerId, call: Call, now_s: float) -> Step:
    """Keep one call for later, the latest of the lowest id; the other caller hears at once that it is in vain."""
    held = state.held
    if held is not None and held.until_s > now_s:
        if held.call.round == call.round:
            return state, ()  # a duplicate
        if held.caller < sender:
            return _refuse(state, sender, call, Reason.BUSY)
    effects: tuple[Effect, ...] = ()
    if held is not None and held.caller != sender:
        state, effects = _refuse(state, held.caller, held.call, Reason.BUSY)
    return replace(state, held=HeldCall(sender, call, now_s + call.budget_s)), effects


def _refuse(state: RoundState, sender: PeerId, call: Call, reason: Reason) -> Step:
    return state, (Send(sender, Refusal(call.round, reason, state.standing)),)
