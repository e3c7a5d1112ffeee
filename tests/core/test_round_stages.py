"""The round's protocol over three stages: a holds 0-1 and leads, b holds 1-2, c holds 0, d holds 2, e only drives."""

from dataclasses import replace

import pytest
from three_replicas import of, run, sent

from node.core.round_messages import Answer, Ask, Call, Fail, Knowledge, Open, SpanResult, Tell, Verdict, Vote
from node.core.round_shares import keys_for, shares_of
from node.core.round_state import (
    GRACE_S,
    Applied,
    Apply,
    Discard,
    Ended,
    Lead,
    Lost,
    PartIn,
    Phase,
    Prepare,
    PrepareDone,
    Received,
    Reduce,
    Reduced,
    RoundPlan,
    RoundState,
    SealDone,
    SpanIn,
    Tick,
)
from node.core.types import NO_SHARD, RoundStatus, Shard, Standing

SHARDS = {"a": Shard(0, 2), "b": Shard(1, 3), "c": Shard(0, 1), "d": Shard(2, 3), "e": NO_SHARD}
BUDGET_S, ANSWER_S = 10.0, 4.0


def standing(who, version=4):
    bits = tuple((stage, f"{version}{stage}") for stage in SHARDS[who].stages)
    return Standing(version, f"0{version}", 100 * version, bits)


def answer(who, **changes):
    sizes = tuple((stage, 60 + stage) for stage in SHARDS[who].stages)
    weight = {"a": 10, "c": 5, "e": 40}.get(who, 0)
    word = Answer("r", weight, weight, SHARDS[who], f"5{who}", standing(who).hashes, sizes, SHARDS)
    return replace(word, **changes)


CALL = Call("r", standing("a"), "q", BUDGET_S, "none/mean/3")
SHARES = shares_of({who: answer(who) for who in SHARDS})
RESULTS = tuple(SpanResult(stage, owner, f"{stage}{owner}") for stage, owner in sorted(keys_for(SHARES)))


def held_by(who):
    return tuple(result for result in RESULTS if SHARDS[who].holds(result.stage))


def between(owner, who):
    return tuple(result for result in held_by(who) if result.owner == owner)


def peer(who):
    sizes = answer(who).sizes
    return RoundState(who, standing(who), "none/mean/3", 3, SHARDS[who], sizes, base_round="q", alive=SHARDS)


def prepared(who, **changes):
    said = answer(who)
    return replace(PrepareDone("r", said.weight, said.tokens, said.session), **changes)


def near(who):
    return [other for other in SHARDS if other != who and SHARDS[other].overlaps(SHARDS[who])]


def exchanged(who):
    """Everything that brings a member from its seal to its vote."""
    events = [SealDone("r"), *(PartIn("r", other) for other in near(who))]
    if held_by(who):
        events.append(Reduced("r", between(who, who)))
    return [*events, *(SpanIn("r", other, between(other, who)) for other in near(who))]


def calling():
    plan = RoundPlan(frozenset(SHARDS), SHARDS, BUDGET_S, ANSWER_S)
    return run(peer("a"), Lead("r", plan), prepared("a"))[0]


def leader_voted():
    return run(calling(), *(Received(who, answer(who)) for who in "bcde"), *exchanged("a"))[0]


def member_exchanging(who):
    return run(peer(who), Received("a", CALL), prepared(who), Received("a", Open("r", SHARES)))[0]


def member_voted(who):
    return run(member_exchanging(who), *exchanged(who))[0]


def verdict(results=RESULTS):
    return Received("a", Verdict("r", committed=True, reason="", results=results))


def test_the_round_opens_with_each_stage_cut_among_its_holders_and_a_driver_without_spans():
    _, effects = run(calling(), *(Received(who, answer(who)) for who in "bcde"))

    opened = dict(sent(effects))
    assert opened == dict.fromkeys("bcde", Open("r", SHARES))
    assert [(share.peer_id, [span.stage for span in share.spans]) for share in SHARES] == [
        ("a", [0, 1]),
        ("b", [1, 2]),
        ("c", [0]),
        ("d", [2]),
        ("e", []),
    ]


@pytest.mark.parametrize("who", "bcde")
def test_a_member_votes_for_the_stages_that_it_holds(who):
    _, effects = run(member_exchanging(who), *exchanged(who))

    assert sent(effects) == [("a", Vote("r", held_by(who)))]
    assert len(of(effects, Reduce)) == (1 if held_by(who) else 0)


def test_a_driver_without_a_stage_votes_when_it_has_sealed_and_not_before():
    state = member_exchanging("e")
    assert state.phase is Phase.EXCHANGING

    state, effects = run(state, SealDone("r"))

    assert sent(effects) == [("a", Vote("r", ()))]
    assert state.phase is Phase.VOTED


def test_results_of_a_stage_that_is_not_held_do_not_count():
    state, effects = run(member_exchanging("c"), SealDone("r"), PartIn("r", "a"), Reduced("r", between("c", "c")))
    assert state.phase is Phase.EXCHANGING

    state, effects = run(state, SpanIn("r", "a", between("a", "a")))
    assert (state.phase, sent(effects)) == (Phase.EXCHANGING, [])

    assert run(state, SpanIn("r", "a", between("a", "c")))[0].phase is Phase.VOTED


def test_the_leader_commits_all_stages_at_once_when_every_holder_of_every_stage_agrees():
    state = leader_voted()
    for who in "bcd":
        state, effects = run(state, Received(who, Vote("r", held_by(who))))
        assert effects == ()

    state, effects = run(state, Received("e", Vote("r", ())))

    assert dict(sent(effects)) == dict.fromkeys("bcde", Verdict("r", committed=True, reason="", results=RESULTS))
    assert of(effects, Apply) == [Apply("r", SHARES, RESULTS)]


@pytest.mark.parametrize("who", "bcd")
def test_one_stage_with_unequal_results_drops_the_round_of_all_stages(who):
    spoilt = (replace(held_by(who)[-1], digest="ff"),)
    votes = {other: held_by(other) for other in "bcde"} | {who: (*held_by(who)[:-1], *spoilt)}

    state, effects = run(leader_voted(), *(Received(other, Vote("r", vote)) for other, vote in votes.items()))

    assert not of(effects, Apply)
    assert of(effects, Ended)[0].reason == "the members hold different results"


def test_a_vote_that_is_not_of_just_its_members_stages_drops_the_round():
    for vote in ((), held_by("c"), RESULTS):
        _, effects = run(leader_voted(), Received("d", Vote("r", vote)))
        assert of(effects, Ended)[0].status is RoundStatus.DROPPED


@pytest.mark.parametrize("who", "bcde")
def test_the_verdict_tells_every_member_the_results_of_all_stages(who):
    _, effects = run(member_voted(who), verdict())

    assert of(effects, Apply) == [Apply("r", SHARES, RESULTS)]


def test_a_verdict_that_is_not_of_the_members_own_results_or_not_of_all_stages_is_not_taken():
    mine = RESULTS.index(held_by("d")[0])
    spoilt = (*RESULTS[:mine], replace(RESULTS[mine], digest="ff"), *RESULTS[mine + 1 :])
    for results in (spoilt, held_by("d"), RESULTS[:-1], ()):
        state, effects = run(member_voted("d"), verdict(results))
        assert (state.phase, effects) == (Phase.VOTED, ())

    stranger = Received("x", Tell("r", Knowledge.COMMITTED, RESULTS))
    assert run(member_voted("d"), stranger)[1] == ()


def test_a_stage_without_a_quorum_keeps_all_stages_from_stepping():
    # of stage 2, b has answered and d, alive and silent, has not
    state, _ = run(calling(), *(Received(who, answer(who)) for who in "bce"))

    _, effects = run(state, Tick(), now_s=ANSWER_S)

    assert of(effects, Ended)[0].reason == "only 1 of the holders of stage 2 answered, not more than half"
    assert not of(effects, Apply)


def test_a_stage_that_nobody_holds_drops_the_round_and_says_which():
    answers = [Received(who, answer(who)) for who in "ce"]

    _, effects = run(calling(), *answers, Lost("b", refused=True), Lost("d", refused=True))

    assert of(effects, Ended)[0].reason == "nobody holds stage 2"


def test_a_stage_may_lose_a_holder_that_is_dead_if_another_has_it():
    answers = [Received(who, answer(who)) for who in "bce"]

    state, _ = run(calling(), *answers, Lost("d", refused=True))

    assert state.phase is Phase.EXCHANGING
    assert state.round.members == frozenset("abce")


def test_a_holder_whose_sums_a_driver_has_in_doubt_is_left_out_and_told():
    doubting = answer("e", doubts=frozenset({("d", "5d")}))
    state, effects = run(calling(), *(Received(who, answer(who)) for who in "bcd"), Received("e", doubting))

    assert state.round.members == frozenset("abce")
    turned_away = Verdict("r", committed=False, reason="opened without you", must_discard=True)
    assert ("d", turned_away) in sent(effects)
    state, effects = run(peer("d"), Received("a", CALL), prepared("d"), Received("a", turned_away))
    assert state.phase is Phase.IDLE
    assert effects[-1] == Discard()

    stranger = run(peer("d"), Received("a", CALL), prepared("d"), Received("c", turned_away))
    assert not of(stranger[1], Discard)

    earlier = answer("e", doubts=frozenset({("d", "another session")}))
    state, _ = run(calling(), *(Received(who, answer(who)) for who in "bcd"), Received("e", earlier))
    assert state.round.members == frozenset(SHARDS)


def test_a_stage_whose_every_holder_is_in_doubt_has_no_round_and_fresh_sums_for_the_next():
    first = answer("c", doubts=frozenset({("d", "5d")}))
    second = answer("e", doubts=frozenset({("b", "5b")}))
    answers = {"b": answer("b"), "c": first, "d": answer("d"), "e": second}

    _, effects = run(calling(), *(Received(who, found) for who, found in answers.items()))

    assert of(effects, Ended)[0].reason == "nobody holds stage 2"
    assert {to for to, word in sent(effects) if word.must_discard} == {"b", "d"}


def test_a_leader_whose_own_sums_are_in_doubt_drops_the_round_and_discards_them():
    doubting = answer("e", doubts=frozenset({("a", "5a")}))

    state, effects = run(calling(), *(Received(who, answer(who)) for who in "bcd"), Received("e", doubting))

    assert of(effects, Ended)[0].status is RoundStatus.DROPPED
    assert effects[-1] == Discard()
    assert state.phase is Phase.IDLE


def test_a_holder_with_other_bits_of_a_stage_that_the_leader_has_not_is_left_out():
    spoilt = answer("d", hashes=((2, "ff"),))

    state, _ = run(calling(), *(Received(who, answer(who)) for who in "bce"), Received("d", spoilt))

    assert state.round.members == frozenset("abce")


def test_an_answer_whose_stages_are_not_those_of_its_shard_is_not_counted():
    for spoilt in (
        answer("d", sizes=()),
        answer("d", hashes=()),
        answer("d", sizes=((1, 61),)),
        answer("d", shard=Shard(2, 4), sizes=((2, 62), (3, 63)), hashes=((2, "42"), (3, "43"))),
    ):
        state, _ = run(calling(), *(Received(who, answer(who)) for who in "bce"), Received("d", spoilt))
        assert state.phase is Phase.IDLE, "without d there is no quorum of stage 2"


def given_up(who):
    state, _ = run(member_voted(who), Tick(), now_s=BUDGET_S + GRACE_S)
    return run(state, Tick(), now_s=2 * BUDGET_S)[0]


@pytest.mark.parametrize("state", [member_voted("d"), given_up("d")], ids=["voted", "given up"])
def test_a_call_built_upon_a_round_is_held_until_its_caller_has_told_the_other_stages_results(state):
    call = replace(CALL, round="r2", base_round="r", standing=standing("a", 5), budget_s=100.0)

    state, effects = run(state, Received("a", call), now_s=30.0)
    assert sent(effects) == [("a", Ask("r"))]
    assert not of(effects, Apply)

    assert not of(run(state, Tick(), now_s=31.0)[1], Prepare), "it does not answer before it is there"
    state, effects = run(state, Received("a", Tell("r", Knowledge.COMMITTED, RESULTS)), now_s=31.0)
    assert of(effects, Apply) == [Apply("r", SHARES, RESULTS)]

    _, effects = run(state, Applied("r", standing("d", 5)), now_s=32.0)
    assert of(effects, Prepare) == [Prepare("r2")]


def test_a_member_of_another_stage_can_tell_the_whole_result():
    witness = run(member_voted("c"), verdict())[0]

    _, effects = run(witness, Received("d", Ask("r")))

    assert sent(effects) == [("d", Tell("r", Knowledge.COMMITTED, RESULTS))]
    assert of(run(given_up("d"), Received("c", sent(effects)[0][1]))[1], Apply) == [Apply("r", SHARES, RESULTS)]


def test_a_member_that_fails_ends_the_round_of_all_stages():
    _, effects = run(leader_voted(), Received("d", Fail("r", None, "out of memory")))

    assert of(effects, Ended)[0].reason == "out of memory"
    assert {to for to, word in sent(effects) if not word.committed} == set("bcde")


def test_the_end_of_a_round_says_who_was_in_it_with_which_session():
    _, effects = run(member_voted("e"), verdict(), Applied("r", standing("e", 5)))

    assert of(effects, Ended)[0].shares == SHARES
    assert of(effects, Ended)[0].tokens == 55
