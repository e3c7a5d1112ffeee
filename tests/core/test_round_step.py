"""The round's protocol, one transition a test: three replicas a < b < c, the leader first."""

from dataclasses import replace

from node.core.round_messages import (
    Answer,
    Ask,
    Call,
    Fail,
    Knowledge,
    Open,
    Reason,
    Refusal,
    Share,
    Span,
    SpanResult,
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
    Lead,
    Lost,
    PartIn,
    Phase,
    Prepare,
    PrepareDone,
    Publish,
    Received,
    Reduce,
    Reduced,
    RoundPlan,
    RoundState,
    Saw,
    Scatter,
    SealDone,
    Send,
    SpanIn,
    Synced,
    SyncFailed,
    SyncStarted,
    Tick,
)
from node.core.round_step import step, wake_at_s
from node.core.types import RoundStatus, Shard, Standing

ABC = frozenset("abc")
WHOLE = Shard(0, 1)
BASE = Standing(4, "0b", 400, ((0, "b0"),))
NEXT = Standing(5, "0c", 460, ((0, "c0"),))
BUDGET_S, ANSWER_S = 10.0, 4.0
CALL = Call("r", BASE, "q", BUDGET_S, "none/mean/1")


def share(who, weight, tokens, start, stop):
    return Share(who, weight, tokens, WHOLE, f"5{who}", (Span(0, start, stop),))


SHARES = (share("a", 10, 11, 0, 33), share("b", 20, 21, 33, 67), share("c", 30, 31, 67, 100))
RESULTS = tuple(SpanResult(0, who, f"d{who}") for who in "abc")


def seen(*peers):
    return {peer: WHOLE for group in peers for peer in group}


def replica(me, standing=BASE, alive=ABC):
    return RoundState(me, standing, "none/mean/1", 1, WHOLE, ((0, 100),), base_round="q", alive=seen(alive))


def prepared(who, weight, tokens, round="r"):
    return PrepareDone(round, weight, tokens, f"5{who}")


def reduced(who):
    return Reduced("r", (SpanResult(0, who, f"d{who}"),))


def span_in(who):
    return SpanIn("r", who, (SpanResult(0, who, f"d{who}"),))


def vote(digest="db"):
    return Vote("r", (RESULTS[0], replace(RESULTS[1], digest=digest), RESULTS[2]))


def run(state, *events, now_s=0.0):
    """Feed all events and return the state with all effects."""
    effects = ()
    for event in events:
        state, more = step(state, event, now_s)
        effects += more
    return state, effects


def of(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects):
    return [(effect.to, effect.message) for effect in of(effects, Send)]


def lead(members=ABC, alive=ABC):
    return Lead("r", RoundPlan(members, seen(alive), BUDGET_S, ANSWER_S))


def answer(who, alive=ABC, **changes):
    weight, tokens = next((s.weight, s.tokens) for s in SHARES if s.peer_id == who)
    word = Answer("r", weight, tokens, WHOLE, f"5{who}", BASE.hashes, ((0, 100),), seen(alive))
    return replace(word, **changes)


def answers(who, **changes):
    return Received(who, answer(who, **changes))


def calling():
    return run(replica("a"), lead(), prepared("a", 10, 11))[0]


def leader_exchanging():
    return run(calling(), answers("b"), answers("c"), SealDone("r"))[0]


def leader_voted():
    events = (PartIn("r", "b"), PartIn("r", "c"), reduced("a"), span_in("b"), span_in("c"))
    return run(leader_exchanging(), *events)[0]


def member_exchanging(me="b"):
    weight, tokens = next((s.weight, s.tokens) for s in SHARES if s.peer_id == me)
    opened = Received("a", Open("r", SHARES))
    return run(replica(me), Received("a", CALL), prepared(me, weight, tokens), opened, SealDone("r"))[0]


def member_voted():
    events = (PartIn("r", "a"), PartIn("r", "c"), reduced("b"), span_in("a"), span_in("c"))
    return run(member_exchanging(), *events)[0]


def member_doubting(now_s=BUDGET_S + GRACE_S):
    return run(member_voted(), Tick(), now_s=now_s)[0]


def commit(results=RESULTS):
    return Received("a", Verdict("r", committed=True, reason="", results=results))


OTHER = (replace(RESULTS[0], digest="xx"), *RESULTS[1:])


# --- calling and answering -------------------------------------------------------------------------------------


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
    assert of(effects, Ended)[0].culprits >= {"c"}


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


def test_a_second_lead_while_a_round_is_under_way_is_dropped_at_once():
    state, effects = run(calling(), Lead("r2", lead().plan))

    assert state.round.id == "r"
    assert [(e.round, e.status) for e in of(effects, Ended)] == [("r2", RoundStatus.DROPPED)]


def test_nobody_leads_or_answers_while_a_state_is_being_loaded():
    state, _ = run(replica("a"), SyncStarted())
    assert of(run(state, lead())[1], Ended)[0].status is RoundStatus.DROPPED

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

    assert of(effects, Ended)[0].culprits == {"c"}
    assert state.phase is Phase.IDLE


def test_a_broken_stream_drops_the_round_for_everybody():
    _, effects = run(member_exchanging(), Broken("r", "c", "cut off"))
    assert sent(effects) == [("a", Fail("r", "c", "cut off"))]

    _, effects = run(leader_exchanging(), Received("b", Fail("r", "c", "cut off")))
    assert {to for to, message in sent(effects) if not message.committed} == {"b", "c"}
    assert of(effects, Ended)[0].culprits == {"c"}


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


def test_whom_a_member_sees_goes_into_its_answer():
    _, effects = run(replica("b"), Saw(seen("ax")), Received("a", CALL), prepared("b", 20, 21))

    assert sent(effects)[0][1].alive == seen("abx")


def test_a_resting_replica_needs_no_clock():
    assert wake_at_s(replica("a")) is None
