"""Verdict, doubt and step, one transition a test: three replicas a < b < c, the leader first."""

from dataclasses import replace

import pytest
from three_replicas import (
    ABC,
    ANSWER_S,
    BASE,
    BUDGET_S,
    CALL,
    NEXT,
    OTHER,
    RESULTS,
    SHARES,
    answers,
    calling,
    commit,
    lead,
    leader_voted,
    member_doubting,
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

from node.core.round_ends import known, remember
from node.core.round_messages import (
    Ask,
    Knowledge,
    Open,
    SpanResult,
    Tell,
    Verdict,
    Vote,
)
from node.core.round_state import (
    DOUBT_S,
    GRACE_S,
    REMEMBERED_ROUNDS,
    SETTLE_S,
    Applied,
    Apply,
    ApplyFailed,
    Discard,
    Ended,
    FellBehind,
    Lead,
    Lost,
    PartIn,
    Phase,
    Prepare,
    Received,
    SealDone,
    Send,
    Synced,
    SyncStarted,
    Tick,
)
from node.core.round_step import wake_at_s
from node.core.types import RoundStatus, Standing

# --- doubt -----------------------------------------------------------------------------------------------------


def test_before_its_vote_a_member_ends_a_round_by_itself():
    state, effects = run(member_exchanging(), Tick(), now_s=BUDGET_S + GRACE_S)

    assert state.phase is Phase.IDLE
    assert of(effects, Ended)[0].status is RoundStatus.DROPPED
    assert not of(effects, Ended)[0].is_in_doubt


def test_after_its_vote_a_member_asks_the_others_instead():
    for why, now_s in ((Tick(), BUDGET_S + GRACE_S), (Lost("a"), 1.0)):
        state, effects = run(member_voted(), why, now_s=now_s)

        assert state.phase is Phase.DOUBTING
        assert state.round.unheard == (frozenset("ac") if isinstance(why, Tick) else frozenset("c"))
        assert sent(effects) == [("a", Ask("r")), ("c", Ask("r"))]
        assert wake_at_s(state) == now_s + DOUBT_S


def test_whoever_saw_the_commit_hands_it_over():
    witness = run(member_voted(), commit())[0]
    _, effects = run(witness, Received("c", Ask("r")))
    assert sent(effects) == [("c", Tell("r", Knowledge.COMMITTED, RESULTS))]

    state, effects = run(member_doubting(), Received("c", Tell("r", Knowledge.COMMITTED, RESULTS)))
    assert of(effects, Apply) == [Apply("r", SHARES, RESULTS)]


def test_a_member_that_waits_too_is_told_as_soon_as_it_is_known():
    state, effects = run(member_voted(), Received("c", Ask("r")))
    assert sent(effects) == [("c", Tell("r", Knowledge.PENDING))]

    _, effects = run(state, commit())
    assert sent(effects) == [("c", Tell("r", Knowledge.COMMITTED, RESULTS))]
    _, effects = run(state, Received("a", Verdict("r", committed=False, reason="no")))
    assert sent(effects) == [("c", Tell("r", Knowledge.DROPPED))]

    state, _ = run(leader_voted(), Received("b", Ask("r")), Received("b", vote()))
    _, effects = run(state, Received("c", vote()))
    assert [(to, type(word)) for to, word in sent(effects)] == [("b", Verdict), ("c", Verdict), ("b", Tell)]
    _, effects = run(state, Received("c", vote("other")))
    assert [(to, type(word)) for to, word in sent(effects)] == [("b", Verdict), ("c", Verdict), ("b", Tell)]


def test_one_that_never_heard_of_a_round_says_so_and_notes_nobody():
    assert run(member_voted(), Received("c", Ask("z"))) == (member_voted(), (Send("c", Tell("z", Knowledge.UNKNOWN)),))


def test_the_latest_rounds_are_remembered_and_each_once():
    state = replica("b")
    for number in range(REMEMBERED_ROUNDS + 1):
        state = remember(state, f"r{number}", Knowledge.DROPPED)
    state = remember(state, "r5", Knowledge.COMMITTED, RESULTS)

    assert [round for round, *_ in state.ended] == [*(f"r{n}" for n in range(1, 17) if n != 5), "r5"]
    assert known(state, "r5") == (Knowledge.COMMITTED, RESULTS)
    assert known(state, "r0") == (Knowledge.UNKNOWN, ())


def test_one_that_never_voted_proves_that_the_round_was_dropped():
    state, effects = run(member_doubting(), Received("c", Tell("r", Knowledge.DROPPED)))

    assert state.phase is Phase.IDLE
    assert not of(effects, Ended)[0].is_in_doubt


def test_when_nobody_knows_the_doubt_ends_soon_and_says_that_it_is_one():
    at_s = BUDGET_S + GRACE_S
    state, _ = run(member_doubting(at_s), Lost("a"), Lost("a"), now_s=at_s)
    assert wake_at_s(state) == at_s + DOUBT_S
    state, _ = run(state, Received("c", Tell("r", Knowledge.PENDING)), now_s=at_s)
    assert wake_at_s(state) == at_s + SETTLE_S
    last, _ = run(member_doubting(at_s), Received("c", Tell("r", Knowledge.UNKNOWN)), Lost("a"), now_s=at_s)
    assert last == state

    state, effects = run(state, Tick(), now_s=at_s + SETTLE_S)

    assert of(effects, Ended)[0].is_in_doubt
    assert run(state, Received("c", Ask("r")))[1] == (Send("c", Tell("r", Knowledge.GAVE_UP)),)


def given_up():
    return run(member_doubting(), Tick(), now_s=BUDGET_S + GRACE_S + DOUBT_S)[0]


def test_a_commit_that_comes_to_light_late_is_honoured_until_the_next_round_opens():
    assert of(run(given_up(), commit())[1], Apply) == [Apply("r", SHARES, RESULTS)]
    assert run(given_up(), commit(OTHER))[1] == ()

    later = replace(CALL, round="r2")
    opened = Received("a", Open("r2", SHARES))
    state, _ = run(given_up(), Received("a", later), prepared("b", 20, 21, "r2"), opened)
    assert run(state, commit()) == (state, ())
    state, _ = run(state, Received("a", Verdict("r2", committed=False, reason="no")))
    assert run(state, commit()) == (state, ())
    assert run(given_up(), replace(commit(), message=replace(commit().message, round="z"))) == (given_up(), ())
    assert run(given_up(), replace(commit(), sender="x")) == (given_up(), ()), "no member of it"


def test_a_round_that_has_not_opened_ends_when_an_earlier_one_turns_out_to_be_committed():
    called, _ = run(given_up(), Received("a", replace(CALL, round="r2")))
    leading, _ = run(given_up(), Lead("r2", lead().plan))

    for state in (called, leading):
        state, effects = run(state, commit())
        (ended,) = of(effects, Ended)
        assert (ended.round, ended.reason) == ("r2", "an earlier round turned out to be committed")
        assert of(effects, Apply) == [Apply("r", SHARES, RESULTS)]
        assert (state.phase, state.doubt) == (Phase.APPLYING, None)


def test_a_round_that_was_dropped_for_certain_leaves_no_doubt():
    state, _ = run(member_voted(), Received("a", Verdict("r", committed=False, reason="no")))

    assert run(state, commit()) == (state, ())


def test_a_state_that_was_loaded_ends_all_doubt():
    state, _ = run(given_up(), SyncStarted(), Synced(NEXT, "z"))

    assert (state.standing, state.base_round, state.must_sync, state.doubt) == (NEXT, "z", False, None)


def test_no_late_commit_is_honoured_while_another_state_is_being_loaded():
    state, _ = run(given_up(), SyncStarted())

    assert run(state, commit()) == (state, ())


def test_a_call_that_was_built_upon_the_round_proves_that_it_was_committed():
    call = replace(CALL, round="r2", standing=NEXT, base_round="r")
    for state in (member_voted(), member_doubting(), given_up()):
        state, effects = run(state, Received("a", call))
        assert of(effects, Apply) == [Apply("r", SHARES, RESULTS)]

        state, effects = run(state, Applied("r", NEXT))
        assert of(effects, Prepare) == [Prepare("r2")], "the call was held until this replica was there"


@pytest.mark.parametrize(
    ("state", "knowledge"),
    [
        (lambda: run(replica("b"), Received("a", CALL))[0], Knowledge.UNKNOWN),
        (member_exchanging, Knowledge.DROPPED),
        (member_voted, Knowledge.DROPPED),
        (member_doubting, Knowledge.DROPPED),
    ],
    ids=["answered", "exchanging", "voted", "doubting"],
)
@pytest.mark.parametrize("must_discard", [True, False])
def test_a_leaders_drop_ends_the_round_and_proves_it_once_it_was_open(state, knowledge, must_discard):
    no = Verdict("r", committed=False, reason="no", must_discard=must_discard)

    after, effects = run(state(), Received("a", no))

    assert (after.phase, after.round) == (Phase.IDLE, None)
    assert [(ended.reason, ended.is_in_doubt) for ended in of(effects, Ended)] == [("no", False)]
    assert len(of(effects, Discard)) == must_discard
    assert sent(run(after, Received("c", Ask("r")))[1]) == [("c", Tell("r", knowledge))]


# --- stepping --------------------------------------------------------------------------------------------------


def test_a_call_for_the_next_version_waits_until_this_replica_has_stepped():
    applying = run(member_voted(), commit())[0]
    call = replace(CALL, round="r2", standing=NEXT, base_round="r")

    state, effects = run(applying, Received("a", call))
    assert effects == ()

    there, effects = run(state, Applied("r", NEXT), now_s=4.0)
    assert [(e.status, e.tokens) for e in of(effects, Ended)] == [(RoundStatus.COMMITTED, 63)]
    assert of(effects, Prepare) == [Prepare("r2")]
    assert (there.round.leader, there.held) == ("a", None)
    assert wake_at_s(there) == BUDGET_S + GRACE_S, "its time runs from the call"

    late, effects = run(state, Applied("r", NEXT), now_s=BUDGET_S)
    assert not of(effects, Prepare)
    assert (late.phase, late.held) == (Phase.IDLE, None)


@pytest.mark.parametrize(("voted", "source"), [(member_voted, "a"), (leader_voted, "b")], ids=["member", "leader"])
def test_one_that_cannot_step_fetches_the_state_that_it_should_have_reached(voted, source):
    state, _ = run(voted(), Received("b", vote()), Received("c", vote()), commit())
    assert state.phase is Phase.APPLYING

    state, effects = run(state, ApplyFailed("r", "out of memory"))

    ended = Ended("r", RoundStatus.DROPPED, ABC, tokens=0, reason="out of memory", shares=SHARES)
    assert effects == (ended, FellBehind(source, Standing(BASE.version + 1, "", BASE.committed_tokens + 63)))
    assert (state.phase, state.round, state.must_sync) == (Phase.IDLE, None, True)


def test_one_that_cannot_step_alone_has_nobody_to_follow():
    me = frozenset("a")
    state, _ = run(replica("a", alive=me), lead(me, me), prepared("a", 10, 11), SealDone("r"), reduced("a"))

    state, effects = run(state, ApplyFailed("r", "out of memory"))

    assert [type(effect) for effect in effects] == [Ended]
    assert (state.phase, state.must_sync) == (Phase.IDLE, False)


@pytest.mark.parametrize("told", [Applied("z", NEXT), ApplyFailed("z", ""), Applied("r", NEXT), ApplyFailed("r", "")])
def test_the_end_of_a_step_that_this_round_has_not_come_to_is_nothing(told):
    for state in (replica("b"), member_voted()):
        assert run(state, told) == (state, ())
    if told.round == "z":
        applying = run(member_voted(), commit())[0]
        assert run(applying, told) == (applying, ())


def test_two_that_stepped_together_say_who_was_in_it_and_who_was_dead_or_silent():
    for event, dead, stalled in ((Lost("c", refused=True), "c", ""), (Tick(), "", "c")):
        state, _ = run(run(calling(), answers("b"))[0], event, now_s=ANSWER_S)
        shares = state.round.shares
        two = tuple(SpanResult(0, who, f"d{who}") for who in "ab")
        done = (SealDone("r"), PartIn("r", "b"), reduced("a"), span_in("b"), Received("b", Vote("r", two)))

        state, effects = run(state, *done, Applied("r", NEXT))

        assert effects[-1] == Ended(
            "r",
            RoundStatus.COMMITTED,
            frozenset("ab"),
            32,
            stalled=frozenset(stalled),
            dead=frozenset(dead),
            shares=shares,
        )
        assert (state.round, state.standing) == (None, NEXT)
