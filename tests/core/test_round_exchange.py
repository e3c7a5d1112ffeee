"""Exchange and votes, one transition a test: three replicas a < b < c, the leader first."""

import pytest
from three_replicas import (
    ABC,
    BUDGET_S,
    CALL,
    OTHER,
    RESULTS,
    SHARES,
    answers,
    calling,
    commit,
    leader_exchanging,
    leader_voted,
    member_exchanging,
    member_voted,
    of,
    prepared,
    reduced,
    replica,
    run,
    sent,
    span_in,
    vote,
)

from node.core.round_messages import (
    Fail,
    Knowledge,
    Open,
    Tell,
    Verdict,
    Vote,
)
from node.core.round_state import (
    Apply,
    Broken,
    Ended,
    Lost,
    PartIn,
    Phase,
    Received,
    Reduce,
    SealDone,
    Send,
    Tick,
)
from node.core.types import RoundStatus


def test_a_span_is_reduced_when_all_parts_are_there_even_if_one_came_before_the_opening():
    state, _ = run(replica("b"), Received("a", CALL), prepared("b", 20, 21), PartIn("r", "c"))
    state, effects = run(state, Received("a", Open("r", SHARES)))
    assert not of(effects, Reduce)

    state, effects = run(state, PartIn("r", "a"))
    assert not of(effects, Reduce), "its own sums are not sealed yet"

    assert of(run(state, SealDone("r"))[1], Reduce) == [Reduce("r")]


def test_member_votes_with_the_digest_of_everything_when_it_holds_all_spans():
    state, effects = run(
        member_exchanging(),
        *(PartIn("r", "a"), PartIn("r", "c"), span_in("c"), reduced("b"), span_in("a")),
    )

    assert sent(effects) == [("a", Vote("r", RESULTS))]
    assert state.phase is Phase.VOTED


def test_all_equal_votes_commit_and_everybody_hears_it():
    state, effects = run(leader_voted(), Received("b", vote()))
    assert effects == ()

    state, effects = run(state, Received("c", vote()))

    verdict = Verdict("r", committed=True, reason="", results=RESULTS)
    assert effects == (Send("b", verdict), Send("c", verdict), Apply("r", SHARES, RESULTS))


def test_votes_that_differ_drop_the_round():
    state, effects = run(leader_voted(), Received("b", vote("other")))

    why = "the members hold different results"
    no = Verdict("r", committed=False, reason=why)
    ended = Ended("r", RoundStatus.DROPPED, ABC, tokens=0, reason=why, shares=SHARES)
    assert effects == (Send("b", no), Send("c", no), ended)


def test_votes_that_come_before_the_leaders_own_are_kept():
    events = (PartIn("r", "b"), PartIn("r", "c"), reduced("a"), span_in("b"))
    state, _ = run(leader_exchanging(), Received("b", vote()), Received("c", vote()), *events)
    assert state.phase is Phase.EXCHANGING

    assert of(run(state, span_in("c"))[1], Apply) == [Apply("r", SHARES, RESULTS)]


def test_a_part_that_comes_before_the_leader_has_opened_counts():
    early, _ = run(calling(), PartIn("r", "b"), answers("b"), answers("c"), SealDone("r"))

    assert of(run(early, PartIn("r", "c"))[1], Reduce) == [Reduce("r")]


def test_results_of_no_member_are_nothing():
    assert run(member_exchanging(), span_in("x")) == (member_exchanging(), ())


def test_a_vote_is_for_the_leader_and_of_a_member():
    assert run(member_voted(), Received("c", vote())) == (member_voted(), ())


@pytest.mark.parametrize(("suspect", "culprits"), [("c", {"c"}), ("x", set()), (None, set())])
def test_who_broke_a_stream_off_is_named_if_it_is_a_member(suspect, culprits):
    broken = Broken("r", suspect, "cut off")

    for state, words in (
        (leader_exchanging(), [(to, Verdict("r", committed=False, reason="cut off")) for to in "bc"]),
        (member_exchanging(), [("a", Fail("r", suspect, "cut off"))]),
    ):
        state, effects = run(state, broken)
        (ended,) = of(effects, Ended)
        assert (ended.culprits, ended.reason) == (culprits, "cut off")
        assert sent(effects) == words


def test_a_member_that_fails_without_a_suspect_blames_nobody():
    _, effects = run(leader_exchanging(), Received("b", Fail("r", None, "out of memory")))

    (ended,) = of(effects, Ended)
    assert (ended.unsure, ended.reason) == (frozenset(), "out of memory")


@pytest.mark.parametrize("refused", [True, False])
def test_who_is_lost_drops_the_round_and_is_a_culprit_unless_it_is_dead(refused):
    for state, lost, reason in (
        (leader_exchanging(), "c", "a member was lost"),
        (leader_voted(), "c", "a member was lost"),
        (member_exchanging(), "a", "the leader was lost"),
        (run(replica("b"), Received("a", CALL))[0], "a", "the leader was lost"),
    ):
        state, effects = run(state, Lost(lost, refused=refused))

        (ended,) = of(effects, Ended)
        assert ended.reason == reason
        assert (ended.dead, ended.culprits) == ((frozenset(lost), frozenset()) if refused else (frozenset(), {lost}))
        assert not refused or lost not in dict(sent(effects)), "nobody listens there"


def test_the_loss_of_somebody_whom_nobody_waits_for_is_nothing():
    voted = run(leader_voted(), Received("b", vote()))[0]
    applying = run(member_voted(), commit())[0]

    for state, lost in ((leader_exchanging(), "x"), (voted, "b"), (member_exchanging(), "c"), (applying, "a")):
        assert run(state, Lost(lost, refused=True)) == (state, ())


def test_leader_drops_when_the_votes_are_not_there_by_the_deadline():
    state, effects = run(leader_voted(), Received("b", vote()), Tick(), now_s=BUDGET_S)

    assert of(effects, Ended)[0].unsure == {"c"}
    assert state.phase is Phase.IDLE


def test_leader_names_whose_parts_are_missing_when_time_runs_out():
    state, effects = run(leader_exchanging(), PartIn("r", "b"), Tick(), now_s=BUDGET_S)

    (ended,) = of(effects, Ended)
    assert (ended.late, ended.unsure, ended.culprits) == ({"c"}, frozenset(), frozenset())
    assert state.phase is Phase.IDLE


def test_leader_is_not_sure_of_whose_result_is_missing_when_all_parts_are_here():
    _, effects = run(
        leader_exchanging(), PartIn("r", "b"), PartIn("r", "c"), reduced("a"), span_in("b"), Tick(), now_s=BUDGET_S
    )

    (ended,) = of(effects, Ended)
    assert (ended.late, ended.unsure, ended.culprits) == (frozenset(), {"c"}, frozenset())


def test_a_broken_stream_drops_the_round_for_everybody():
    _, effects = run(member_exchanging(), Broken("r", "c", "cut off"))
    assert sent(effects) == [("a", Fail("r", "c", "cut off"))]

    _, effects = run(leader_exchanging(), Received("b", Fail("r", "c", "cut off")))
    assert {to for to, message in sent(effects) if not message.committed} == {"b", "c"}
    assert of(effects, Ended)[0].unsure == {"c"}, "one's word against another's"


def test_a_stranger_and_a_member_cannot_speak_for_the_leader():
    for sender in ("c", "x"):
        drop = Received(sender, Verdict("r", committed=False, reason="no"))
        opened = Received(sender, Open("r", SHARES))

        assert run(member_voted(), drop)[0].phase is Phase.VOTED
        assert run(replica("b"), Received("a", CALL), prepared("b", 20, 21), opened)[0].phase is Phase.ANSWERED

    assert run(leader_voted(), Received("x", vote()), Received("x", Fail("r", None, "")))[1] == ()


def test_a_commit_of_other_bytes_is_not_mine():
    state, effects = run(member_voted(), commit(OTHER))

    assert state.phase is Phase.VOTED
    assert effects == ()


def test_a_leader_takes_nobodys_word_for_its_own_round():
    state, effects = run(leader_voted(), Received("b", Tell("r", Knowledge.COMMITTED, RESULTS)))

    assert (state.phase, effects) == (Phase.VOTED, ())


def test_repeated_messages_change_nothing():
    once = run(leader_voted(), Received("b", vote()))
    twice = run(leader_voted(), Received("b", vote()), Received("b", vote()))
    assert once == twice

    committed = run(member_voted(), commit())[0]
    for late in (Received("a", CALL), Received("a", Open("r", SHARES)), commit(), span_in("a")):
        assert run(committed, late) == (committed, ())
