"""Calling, answering and opening, one transition a test: three replicas a < b < c, the leader first."""

from dataclasses import replace

from three_replicas import (
    ABC,
    ANSWER_S,
    BASE,
    BUDGET_S,
    CALL,
    NEXT,
    RESULTS,
    SHARES,
    WHOLE,
    answer,
    answers,
    calling,
    lead,
    of,
    prepared,
    reduced,
    replica,
    run,
    seen,
    sent,
    share,
)

from node.core.round_messages import (
    Fail,
    Open,
    Reason,
    Refusal,
    Span,
    Verdict,
)
from node.core.round_state import (
    Applied,
    Apply,
    Ended,
    FellBehind,
    Lead,
    Lost,
    Phase,
    Prepare,
    Publish,
    Received,
    Reduce,
    Saw,
    Scatter,
    SealDone,
    Send,
    Synced,
    SyncFailed,
    SyncStarted,
    Tick,
)
from node.core.round_step import wake_at_s
from node.core.types import RoundStatus, Shard


def test_leader_seals_and_calls_everybody_else():
    state, effects = run(replica("a"), lead())

    assert state.phase is Phase.CALLING
    assert effects == (Prepare("r"), Send("b", CALL), Send("c", CALL))


def test_member_seals_then_answers_with_what_it_weighs_and_whom_it_sees():
    state, effects = run(replica("b"), Received("a", CALL))
    assert effects == (Prepare("r"),)

    state, effects = run(state, prepared("b", 20, 21))

    assert sent(effects) == [("a", answer("b"))]
    assert state.phase is Phase.ANSWERED


def test_leader_opens_as_soon_as_all_have_answered_with_spans_in_the_order_of_ids():
    state, effects = run(calling(), answers("c"))
    assert effects == ()

    state, effects = run(state, answers("b"))

    assert sent(effects) == [("b", Open("r", SHARES)), ("c", Open("r", SHARES))]
    assert of(effects, Scatter) == [Scatter("r", SHARES)]


def test_leader_goes_on_at_once_without_a_member_that_refuses_the_connection():
    state, effects = run(calling(), answers("b"), Lost("c", refused=True))

    assert state.phase is Phase.EXCHANGING
    assert state.round.members == frozenset("ab")
    assert [to for to, _ in sent(effects)] == ["b"]


def test_leader_waits_for_a_silent_member_until_the_answers_are_due_and_names_it():
    state, effects = run(calling(), answers("b"), Tick(), now_s=ANSWER_S - 0.1)
    assert (state.phase, effects) == (Phase.CALLING, ())
    assert wake_at_s(state) == ANSWER_S

    state, _ = run(state, Tick(), now_s=ANSWER_S)
    assert state.round.members == frozenset("ab")

    _, effects = run(state, Tick(), now_s=BUDGET_S)
    assert of(effects, Ended)[0].stalled == {"c"}


def test_leader_drops_when_half_of_the_living_do_not_answer():
    state, effects = run(calling(), Tick(), now_s=ANSWER_S)

    assert state.phase is Phase.IDLE
    assert of(effects, Ended)[0].status is RoundStatus.DROPPED
    assert "more than half" in of(effects, Ended)[0].reason


def test_one_of_two_goes_on_if_the_other_is_dead_and_not_if_it_only_stalls():
    two = frozenset("ab")
    state, _ = run(replica("a", alive=two), lead(two, two), prepared("a", 10, 11))

    assert run(state, Lost("b", refused=True))[0].phase is Phase.EXCHANGING
    assert run(state, Tick(), now_s=ANSWER_S)[0].phase is Phase.IDLE


def test_a_living_replica_that_only_a_member_sees_counts_in_the_quorum():
    seen_by_b = frozenset("abcd")
    state, _ = run(replica("a"), lead(frozenset("ab"), frozenset("ab")), prepared("a", 10, 11))

    state, effects = run(state, answers("b", alive=seen_by_b))

    assert state.phase is Phase.IDLE
    assert "more than half" in of(effects, Ended)[0].reason


def test_alone_a_round_is_the_same_path_without_a_message():
    me = frozenset("a")
    state, effects = run(replica("a", alive=me), lead(me, me), prepared("a", 10, 11))
    whole = (share("a", 10, 11, 0, 100),)
    assert effects == (Prepare("r"), Scatter("r", whole))

    state, effects = run(state, SealDone("r"))
    assert effects == (Reduce("r"),)

    state, effects = run(state, reduced("a"))
    assert effects == (Publish("r"), Apply("r", whole, RESULTS[:1]))

    state, effects = run(state, Applied("r", NEXT))
    assert [(e.status, e.tokens) for e in of(effects, Ended)] == [(RoundStatus.ALONE, 11)]
    assert (state.standing, state.base_round, state.phase) == (NEXT, "r", Phase.IDLE)


def test_a_round_in_which_nobody_has_anything_is_dropped_and_costs_no_traffic():
    state, effects = run(replica("a"), lead(frozenset("ab"), frozenset("ab")), prepared("a", 0, 0))

    state, effects = run(state, answers("b", alive=ABC - {"c"}, weight=0, tokens=0))

    assert state.phase is Phase.IDLE
    assert not of(effects, Scatter)


def test_member_that_is_further_says_so_and_stays():
    state, effects = run(replica("b", NEXT), Received("a", CALL))

    assert sent(effects) == [("a", Refusal("r", Reason.AHEAD, NEXT))]
    assert state.phase is Phase.IDLE


def test_leader_that_hears_of_a_heavier_lineage_gives_its_round_up_and_follows():
    state, effects = run(calling(), Received("b", Refusal("r", Reason.AHEAD, NEXT)))

    assert state.must_sync
    assert of(effects, FellBehind) == [FellBehind("b", NEXT)]
    assert of(effects, Ended)[0].status is RoundStatus.DROPPED


def test_member_that_is_behind_follows_and_answers_no_call_before_it_is_there():
    call = replace(CALL, standing=NEXT)
    state, effects = run(replica("b"), Received("a", call))
    assert sent(effects) == [("a", Refusal("r", Reason.BEHIND, BASE))]
    assert of(effects, FellBehind) == [FellBehind("a", NEXT)]

    state, effects = run(state, Received("a", replace(call, round="r2")))
    assert sent(effects) == [("a", Refusal("r2", Reason.SYNCING, BASE))]

    state, effects = run(state, Synced(NEXT, "r"), Received("a", replace(call, round="r3")))
    assert of(effects, Prepare) == [Prepare("r3")]


def test_equal_versions_with_other_bits_are_never_averaged():
    for base_hash, reason in (("ff", Reason.AHEAD), ("00", Reason.BEHIND)):
        call = replace(CALL, standing=replace(BASE, base_hash=base_hash))
        state, effects = run(replica("b"), Received("a", call))

        assert [message.reason for _, message in sent(effects)] == [reason]
        assert state.must_sync is (reason is Reason.BEHIND)


def test_other_settings_are_refused_whatever_the_state():
    _, effects = run(replica("b"), Received("a", replace(CALL, settings="bf16/mean/1")))

    assert sent(effects) == [("a", Refusal("r", Reason.UNEQUAL_SETTINGS, BASE))]


def test_of_two_leaders_the_lower_id_wins():
    higher = run(replica("b"), Lead("other", lead().plan), prepared("b", 20, 21, "other"))[0]
    state, effects = run(higher, Received("a", CALL))
    assert state.round.leader == "a"
    assert ("a", Verdict("other", committed=False, reason="another peer with a lower id calls")) in sent(effects)

    state, effects = run(calling(), Received("b", replace(CALL, round="other")))
    assert state.round.id == "r"
    assert sent(effects) == [("b", Refusal("other", Reason.BUSY, BASE))]


def test_a_called_member_tells_the_first_leader_that_it_goes_with_a_lower_one():
    state, _ = run(replica("c"), Received("b", replace(CALL, round="other")), prepared("c", 30, 31, "other"))

    state, effects = run(state, Received("a", CALL))

    assert ("b", Fail("other", None, "a lower id called too")) in sent(effects)
    assert state.round.id == "r"


def never_began(round, reason):
    return (Ended(round, RoundStatus.DROPPED, frozenset(), tokens=0, reason=reason),)


def test_a_second_lead_while_a_round_is_under_way_is_dropped_at_once():
    state = calling()

    assert run(state, Lead("r2", lead().plan)) == (state, never_began("r2", "another round is under way"))


def test_nobody_leads_or_answers_while_a_state_is_being_loaded():
    state, _ = run(replica("a"), SyncStarted())
    assert run(state, lead()) == (state, never_began("r", "this node is fetching a state"))

    state, effects = run(state, SyncFailed(), lead())
    assert of(effects, Prepare) == [Prepare("r")]


def test_an_open_that_is_not_what_was_answered_is_refused_and_its_leader_blamed():
    a, b, c = SHARES

    def with_span(of, start, stop):
        return replace(of, spans=(Span(0, start, stop),))

    for shares in (
        (a, c),  # without me
        (a, replace(b, weight=99), c),
        (a, replace(b, session="other"), c),
        (b, a, c),
        (a, with_span(b, 40, 67), c),
        (a, b),  # the last values belong to nobody
        (a, b, with_span(c, 67, 99)),
        (a, with_span(b, 33, 20), with_span(c, 20, 100)),  # backwards
        (with_span(b, 0, 67), c),  # without its leader
        (a, b, replace(c, spans=())),  # a holder without a span
        (a, b, replace(c, shard=Shard(0, 2), spans=(*c.spans, Span(1, 0, 5)))),  # a stage that the run has not
    ):
        state, _ = run(replica("b"), Received("a", CALL), prepared("b", 20, 21))
        state, effects = run(state, Received("a", Open("r", shares)))

        assert state.phase is Phase.IDLE
        assert [(to, type(message)) for to, message in sent(effects)] == [("a", Fail)]
        assert of(effects, Ended)[0].culprits == {"a"}


def test_whom_a_member_sees_goes_into_its_answer():
    _, effects = run(replica("b"), Saw(seen("ax")), Received("a", CALL), prepared("b", 20, 21))

    assert sent(effects)[0][1].alive == seen("abx")


def test_whom_the_plan_holds_for_alive_counts_from_the_call_on():
    state, _ = run(replica("a", alive=frozenset("a")), lead(alive=frozenset("bcd")))

    assert state.alive == seen("abcd")


def test_a_resting_replica_and_one_that_steps_need_no_clock():
    assert wake_at_s(replica("a")) is None
    me = frozenset("a")
    alone, _ = run(replica("a", alive=me), lead(me, me), prepared("a", 10, 11), SealDone("r"), reduced("a"))
    assert alone.phase is Phase.APPLYING
    assert wake_at_s(alone) is None
    assert alone.shard == WHOLE
