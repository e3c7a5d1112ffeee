"""Refused, late, taken back, held for later: the ways not to be in a round, one transition a test (as in `test_round_calls`)."""

from dataclasses import replace

import pytest
from three_replicas import (
    ANSWER_S,
    BASE,
    BUDGET_S,
    CALL,
    NEXT,
    answers,
    calling,
    leader_exchanging,
    leader_voted,
    member_exchanging,
    member_voted,
    of,
    prepared,
    replica,
    run,
    sent,
)

from node.core.round_messages import Fail, Open, Reason, Refusal, Verdict
from node.core.round_state import GRACE_S, Ended, FellBehind, Lost, Phase, Prepare, Received, Send, Tick
from node.core.round_step import wake_at_s


@pytest.mark.parametrize(
    ("reason", "opens_alone"),
    [(reason, reason in (Reason.BEHIND, Reason.SYNCING, Reason.UNKNOWN_RUN)) for reason in Reason],
)
def test_who_will_not_step_before_it_has_synced_does_not_count_for_the_quorum(reason, opens_alone):
    state, effects = run(calling(), *(Received(peer, Refusal("r", reason, BASE)) for peer in "bc"))

    assert not state.must_sync, "they are of this lineage"
    assert (state.phase is Phase.EXCHANGING) is opens_alone
    assert len(of(effects, Ended)) == (not opens_alone)


@pytest.mark.parametrize(
    ("reason", "standing"),
    [
        (Reason.AHEAD, replace(BASE, base_hash="ff")),  # lighter
        (Reason.SYNCING, NEXT),  # will not step there either
    ],
)
def test_a_leader_follows_nobody_who_is_not_on_a_heavier_lineage(reason, standing):
    state, effects = run(calling(), Received("b", Refusal("r", reason, standing)))

    assert (state.phase, effects) == (Phase.CALLING, ())
    assert run(state, answers("c"))[0].round.members == frozenset("ac")


def test_a_refusal_of_somebody_who_was_not_called_or_has_answered_changes_nothing():
    state, _ = run(calling(), answers("b"))

    for peer in "bx":
        assert run(state, Received(peer, Refusal("r", Reason.AHEAD, NEXT))) == (state, ())


def test_an_answer_after_a_refusal_is_too_late():
    state, _ = run(calling(), Received("b", Refusal("r", Reason.BUSY, BASE)))

    assert run(state, answers("b")) == (state, ())


def test_who_answers_after_the_opening_hears_that_it_is_left_out_and_a_member_hears_nothing():
    state, _ = run(calling(), answers("b"), Tick(), now_s=ANSWER_S)

    assert state.round.failed == {"c"}
    assert run(state, answers("c")) == (state, (Send("c", Verdict("r", committed=False, reason="opened without you")),))
    for who in "bx":
        assert run(state, replace(answers("b"), sender=who)) == (state, ())


def test_an_answer_to_somebody_else_is_not_mine_to_count():
    state, _ = run(replica("b"), Received("a", CALL), prepared("b", 20, 21))

    assert run(state, answers("c")) == (state, ())
    assert run(replica("a"), answers("c")) == (replica("a"), ())


def test_who_takes_its_answer_back_is_left_out_and_who_has_given_none_cannot():
    state, _ = run(calling(), Received("b", Fail("r", None, "out of memory")))
    assert state == calling()

    state, effects = run(calling(), answers("b"), Received("b", Fail("r", None, "out of memory")))
    assert (state.phase, effects) == (Phase.CALLING, ())

    assert run(state, answers("c"))[0].round.members == frozenset("ac")
    assert run(state, Lost("c", refused=True))[0].phase is Phase.IDLE, "one of two, since it lives"


def test_whose_vector_has_another_length_is_left_out_and_told_so():
    state, effects = run(calling(), answers("b", sizes=((0, 99),)), answers("c"))

    assert state.round.members == frozenset("ac")
    assert state.round.failed == {"b"}, "nobody looks any more whether it is there"
    told = dict(sent(effects))
    assert isinstance(told["c"], Open)
    assert told["b"] == Verdict("r", committed=False, reason="opened without you")


def test_the_loss_of_a_stranger_is_nothing_to_a_leader():
    assert run(calling(), Lost("x", refused=True)) == (calling(), ())


def test_a_leader_whose_bits_are_odd_drops_its_round_and_tells_the_others():
    state, effects = run(calling(), *(answers(who, hashes=((0, "a0"),)) for who in "bc"))

    (ended,) = of(effects, Ended)
    assert ended.reason == "this node's adapter is not the one that the others hold"
    assert {to for to, word in sent(effects) if not word.committed} == {"b", "c"}
    assert state.phase is Phase.IDLE


def test_a_call_is_answered_once_however_often_it_comes():
    joined, _ = run(replica("b"), Received("a", CALL))
    dropped, _ = run(joined, Received("a", Verdict("r", committed=False, reason="no")))
    remembered = run(member_exchanging(), Received("a", Verdict("r", committed=False, reason="no")))[0]

    assert run(joined, Received("a", CALL)) == (joined, ())
    assert run(remembered, Received("a", CALL)) == (remembered, ())
    assert run(dropped, Received("a", CALL))[1] == (Prepare("r"),), "it never opened: the leader may try again"


def test_a_member_waits_for_the_leaders_deadline_and_a_moment_more():
    state, _ = run(replica("b"), Received("a", CALL), now_s=7.0)

    assert wake_at_s(state) == 7.0 + BUDGET_S + GRACE_S


def test_the_same_leader_calling_again_has_dropped_its_round():
    again = replace(CALL, round="r2")
    for state in (run(replica("b"), Received("a", CALL))[0], member_exchanging()):
        state, effects = run(state, Received("a", again))

        assert [ended.round for ended in of(effects, Ended)] == ["r"]
        assert (state.round.id, state.phase) == ("r2", Phase.ANSWERED)
        assert sent(effects) == []


def test_a_round_whose_exchange_has_begun_gives_way_to_nobody_else():
    other = replace(CALL, round="r2")

    for state, caller in ((member_exchanging("c"), "b"), (leader_exchanging(), "b")):
        after, effects = run(state, Received(caller, other))
        assert after == state
        assert sent(effects) == [(caller, Refusal("r2", Reason.BUSY, BASE))]


def test_a_call_on_a_heavier_lineage_ends_a_round_of_the_lighter():
    state, effects = run(replica("b"), Received("a", CALL), Received("c", replace(CALL, round="r2", standing=NEXT)))

    assert [ended.round for ended in of(effects, Ended)] == ["r"]
    assert of(effects, FellBehind) == [FellBehind("c", NEXT)]
    assert state.must_sync


def test_of_the_calls_for_the_next_version_the_lowest_callers_latest_is_held():
    call = replace(CALL, round="r2", standing=NEXT, base_round="z")

    def calls(who, round):
        return Received(who, replace(call, round=round))

    state, effects = run(member_voted(), calls("c", "rc"))
    assert effects == ()
    state, effects = run(state, calls("a", "ra"))
    assert effects == (Send("c", Refusal("rc", Reason.BUSY, BASE)),)
    state, effects = run(state, calls("d", "rd"))
    assert effects == (Send("d", Refusal("rd", Reason.BUSY, BASE)),)
    assert run(state, calls("a", "ra")) == (state, ())
    state, effects = run(state, calls("a", "ra2"))
    assert effects == (), "it has given the other one up"
    assert (state.held.caller, state.held.call.round, state.held.until_s) == ("a", "ra2", BUDGET_S)

    state, effects = run(state, calls("d", "rd2"), now_s=BUDGET_S)
    assert effects == (Send("a", Refusal("ra2", Reason.BUSY, BASE)),), "time ran out for it"
    assert state.held.caller == "d"


def test_a_call_upon_another_round_proves_nothing_and_a_leader_believes_its_own_count():
    upon_mine = replace(CALL, round="r2", standing=NEXT, base_round="r")
    upon_another = replace(upon_mine, base_round="z")

    for state, call in ((member_voted(), upon_another), (leader_voted(), upon_mine)):
        state, effects = run(state, Received("c", call))
        assert (state.phase, effects) == (Phase.VOTED, ())
        assert state.held.call == call
