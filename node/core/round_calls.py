"""Calling, answering and opening: the beginning of the round's machine (`round_step.py`)."""

from __future__ import annotations

from dataclasses import replace

from node.core.round_ends import Step, commit, commit_late, current, drop, follow, known, to_all
from node.core.round_exchange import enter_exchange
from node.core.round_messages import (
    Answer,
    Call,
    Fail,
    Knowledge,
    Open,
    Reason,
    Refusal,
    Share,
    Verdict,
    cut,
    has_quorum,
)
from node.core.round_state import (
    GRACE_S,
    Effect,
    Ended,
    HeldCall,
    Lead,
    Phase,
    Round,
    RoundState,
    Seal,
    SealDone,
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
    state = replace(state, phase=Phase.CALLING, round=round, alive=plan.alive | {state.me})
    return state, (Seal(event.round), *to_all(called, call))


def sealed(state: RoundState, event: SealDone, now_s: float) -> Step:
    """This replica's own sum is ready."""
    round = current(state, event.round, Phase.CALLING, Phase.ANSWERED)
    if round is None:
        return state, ()
    round = replace(round, weights={**round.weights, state.me: (event.weight, event.tokens)})
    state = replace(state, round=round)
    if state.phase is Phase.CALLING:
        return try_open(state, now_s)
    answer = Answer(round.id, event.weight, event.tokens, state.alive | {state.me})
    return state, (Send(round.leader, answer),)


def receive_call(state: RoundState, sender: PeerId, call: Call, now_s: float) -> Step:
    """Member: join the round, or say why not."""
    is_current = state.round is not None and state.round.id == call.round
    if is_current or known(state, call.round)[0] is not Knowledge.UNKNOWN:
        return state, ()  # a duplicate
    if call.settings != state.settings:
        return _refuse(state, sender, call, Reason.UNEQUAL_SETTINGS)
    proven = _commit_proven_by(state, call)
    if proven is not None:
        committed, effects = proven
        committed, more = _hold(committed, sender, call, now_s)
        return committed, effects + more
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
    state, effects = drop(state, "another replica with a lower id calls")
    if round.leader not in (state.me, sender):
        effects = (Send(round.leader, Fail(round.id, None, "a lower id called too")), *effects)
    state, more = _join(state, sender, call, now_s)
    return state, effects + more


def receive_answer(state: RoundState, sender: PeerId, answer: Answer, now_s: float) -> Step:
    """Leader: one more member has sealed."""
    round = state.round
    if round is None or round.id != answer.round or round.leader != state.me or sender not in round.called:
        return state, ()
    if state.phase is not Phase.CALLING:
        # Only to one that was left out: a member's late duplicate must not hear of a drop.
        if round.shares and sender not in round.members:
            return state, (Send(sender, Verdict(round.id, committed=False, digest="", reason="opened without you")),)
        return state, ()
    if sender in round.dead | round.failed:
        return state, ()
    round = replace(
        round,
        weights={**round.weights, sender: (answer.weight, answer.tokens)},
        views={**round.views, sender: answer.alive},
    )
    return try_open(replace(state, round=round), now_s)


def receive_refusal(state: RoundState, sender: PeerId, refusal: Refusal, now_s: float) -> Step:
    """Leader: one will not take part; if its lineage is heavier, this replica is the one that has to sync."""
    round = current(state, refusal.round, Phase.CALLING)
    if round is None or sender not in round.called or sender in round.weights:
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
    if round is None or sender != round.leader or state.me not in round.weights:
        return state, ()
    wrong = _what_is_wrong(state, round, opened.shares)
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
        weights={id: weight for id, weight in round.weights.items() if id != peer},
        views={id: view for id, view in round.views.items() if id != peer},
        dead=round.dead | {peer} if refused else round.dead,
        failed=round.failed if refused else round.failed | {peer},
    )
    return try_open(replace(state, round=round), now_s)


def try_open(state: RoundState, now_s: float) -> Step:
    """Leader: open as soon as everybody has answered, or with those who did when the answers are due."""
    round = state.round
    assert round is not None
    if state.phase is not Phase.CALLING or state.me not in round.weights:
        return state, ()
    waiting = round.called - round.weights.keys() - round.dead - round.failed
    if waiting and now_s < round.answer_by_s:
        return state, ()
    round = replace(round, stalled=waiting, failed=round.failed | waiting)
    state = replace(state, round=round)
    members = frozenset(round.weights)
    alive = [state.alive | round.called, *(round.views[peer] for peer in members if peer != state.me)]
    if not has_quorum(members, alive, round.dead):
        return drop(state, f"only {len(members)} of the replicas answered, not more than half")
    if not sum(weight for weight, _ in round.weights.values()):
        return drop(state, "nobody has anything to average yet")
    ids = sorted(members)
    spans = cut(state.num_values, [1.0] * len(ids))
    shares = tuple(Share(id, *round.weights[id], *span) for id, span in zip(ids, spans, strict=True))
    state, effects = enter_exchange(state, shares)
    return state, (*to_all(members - {state.me}, Open(round.id, shares)), *effects)


def _commit_proven_by(state: RoundState, call: Call) -> Step | None:
    """A call for the next version whose base is the round that this replica waits for: that round is committed."""
    if call.standing.version != state.standing.version + 1:
        return None
    if state.phase in (Phase.VOTED, Phase.DOUBTING):
        round = state.round
        assert round is not None
        return commit(state) if round.id == call.base_round and round.leader != state.me else None
    return commit_late(state, call.base_round, None)


def _join(state: RoundState, sender: PeerId, call: Call, now_s: float) -> Step:
    if call.standing.shares_bits_with(state.standing):
        round = Round(call.round, leader=sender, deadline_s=now_s + call.budget_s + GRACE_S)
        return replace(state, phase=Phase.ANSWERED, round=round), (Seal(call.round),)
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
    """Keep one call for later, the one of the lowest id; the other caller hears at once that it is in vain."""
    held = state.held
    if held is not None and held.caller <= sender and held.until_s > now_s:
        return (state, ()) if held.call.round == call.round else _refuse(state, sender, call, Reason.BUSY)
    effects: tuple[Effect, ...] = ()
    if held is not None and held.caller != sender:
        state, effects = _refuse(state, held.caller, held.call, Reason.BUSY)
    return replace(state, held=HeldCall(sender, call, now_s + call.budget_s)), effects


def _refuse(state: RoundState, sender: PeerId, call: Call, reason: Reason) -> Step:
    return state, (Send(sender, Refusal(call.round, reason, state.standing)),)


def _what_is_wrong(state: RoundState, round: Round, shares: tuple[Share, ...]) -> str:
    """Say why the opened round is not one that this replica can take part in; empty if it can."""
    mine = [share for share in shares if share.peer_id == state.me]
    if len(mine) != 1 or (mine[0].weight, mine[0].tokens) != round.weights[state.me]:
        return "the round was opened with another weight than this node gave"
    ids = [share.peer_id for share in shares]
    if ids != sorted(set(ids)) or round.leader not in ids:
        return "the round's members are not in order"
    edges = [0, *(share.stop for share in shares)]
    starts = [share.start for share in shares]
    if starts != edges[:-1] or edges[-1] != state.num_values or edges != sorted(edges):
        return "the round's spans do not cover the vector"
    return ""
