"""Exchange, votes, verdict, doubt and step, one transition a test: three replicas a < b < c, the leader first."""

from dataclasses import replace

from three_replicas import (
    BASE,
    BUDGET_S,
    CALL,
    NEXT,
    OTHER,
    RESULTS,
    SHARES,
    commit,
    leader_exchanging,
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

from node.core.round_messages import (
    Ask,
    Fail,
    Knowledge,
    Open,
    Tell,
    Verdict,
    Vote,
)
from node.core.round_state import (
    DOUBT_S,
    GRACE_S,
    SETTLE_S,
    Applied,
    Apply,
    ApplyFailed,
    Broken,
    Ended,
    FellBehind,
    Lost,
    PartIn,
    Phase,
    Prepare,
    Received,
    Reduce,
    SealDone,
    Send,
    SyncStarted,
    Tick,
)
from node.core.round_step import wake_at_s
from node.core.types import RoundStatus

# --- exchange, votes, verdict ----------------------------------------------------------------------------------


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

    assert of(effects, Ended)[0].status is RoundStatus.DROPPED
    assert not of(effects, Apply)
    assert [(to, message.committed) for to, message in sent(effects)] == [("b", False), ("c", False)]


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

    assert ("c", Tell("r", Knowledge.COMMITTED, RESULTS)) in sent(effects)


def test_one_that_never_voted_proves_that_the_round_was_dropped():
    state, effects = run(member_doubting(), Received("c", Tell("r", Knowledge.DROPPED)))

    assert state.phase is Phase.IDLE
    assert not of(effects, Ended)[0].is_in_doubt


def test_when_nobody_knows_the_doubt_ends_soon_and_says_that_it_is_one():
    at_s = BUDGET_S + GRACE_S
    state, _ = run(member_doubting(at_s), Lost("a"), Received("c", Tell("r", Knowledge.PENDING)), now_s=at_s)
    assert wake_at_s(state) == at_s + SETTLE_S

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


# --- stepping --------------------------------------------------------------------------------------------------


def test_a_call_for_the_next_version_waits_until_this_replica_has_stepped():
    applying = run(member_voted(), commit())[0]
    call = replace(CALL, round="r2", standing=NEXT, base_round="r")

    state, effects = run(applying, Received("a", call))
    assert effects == ()

    _, effects = run(state, Applied("r", NEXT))
    assert [(e.status, e.tokens) for e in of(effects, Ended)] == [(RoundStatus.COMMITTED, 63)]
    assert of(effects, Prepare) == [Prepare("r2")]


def test_one_that_cannot_step_fetches_the_state_that_it_should_have_reached():
    applying = run(member_voted(), commit())[0]

    state, effects = run(applying, ApplyFailed("r", "out of memory"))

    assert state.must_sync
    assert of(effects, FellBehind)[0].peer == "a"
    assert of(effects, FellBehind)[0].standing.version == BASE.version + 1
