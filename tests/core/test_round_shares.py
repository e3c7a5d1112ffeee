"""Spans, quorums, who fits together, and which of two states is followed."""

import hashlib
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.round_messages import Answer
from node.core.round_shares import (
    are_whole,
    cut,
    doubted,
    has_quorum,
    keys_for,
    next_base_hash,
    odd_ones_out,
    round_digest,
    shares_of,
    spans_for,
    what_is_wrong,
    why_not,
)
from node.core.round_state import SpanResult
from node.core.types import NO_SHARD, Shard, Standing

NUM_STAGES = 4
standings = st.builds(
    Standing,
    version=st.integers(0, 3),
    base_hash=st.sampled_from(["00", "0a", "ff"]),
    committed_tokens=st.integers(0, 3),
)
shards = st.tuples(st.integers(0, NUM_STAGES), st.integers(0, NUM_STAGES)).map(lambda edges: Shard(*sorted(edges)))


def answer(shard, *, weight=3, size=100, bits="aa", session="5e", **changes):
    word = Answer(
        "r",
        weight,
        weight,
        shard,
        session,
        tuple((stage, bits) for stage in shard.stages),
        tuple((stage, size + stage) for stage in shard.stages),
        {},
    )
    return replace(word, **changes)


swarms = st.dictionaries(st.sampled_from("abcdefgh"), shards.map(answer), min_size=1)


@given(num_values=st.integers(0, 10_000), speeds=st.lists(st.floats(0.01, 1000), min_size=1, max_size=9))
def test_spans_cover_the_vector_without_gap_or_overlap(num_values, speeds):
    spans = cut(num_values, speeds)

    assert len(spans) == len(speeds)
    assert spans[0][0] == 0
    assert spans[-1][1] == num_values
    assert all(start <= stop for start, stop in spans)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_a_faster_member_reduces_a_longer_span():
    assert cut(100, [1, 1, 2]) == ((0, 25), (25, 50), (50, 100))


def test_equal_members_get_spans_that_differ_by_one_at_most():
    lengths = [stop - start for start, stop in cut(1000, [1.0] * 7)]

    assert max(lengths) - min(lengths) <= 1


@given(answers=swarms)
def test_every_stage_is_cut_among_its_own_holders_and_each_member_finds_the_round_in_order(answers):
    shares = shares_of(answers)
    held = {stage for found in answers.values() for stage in found.shard.stages}

    assert [share.peer_id for share in shares] == sorted(answers)
    for stage in held:
        holders = {share.peer_id for share in shares if share.shard.holds(stage)}
        spans = {share.peer_id: span for share in shares for span in share.spans if span.stage == stage}
        assert spans.keys() == holders
        assert sum(len(span) for span in spans.values()) == 100 + stage
    is_whole = held == set(range(NUM_STAGES))
    for id, found in answers.items():
        leader = min(answers)
        wrong = what_is_wrong(shares, me=id, mine=found, leader=leader, num_stages=NUM_STAGES)
        assert (wrong == "") is is_whole


@given(answers=swarms)
def test_what_a_member_has_to_hold_is_whole_only_with_each_of_its_stages_spans_once(answers):
    shares = shares_of(answers)
    for share in shares:
        keys = sorted(keys_for(shares, share.shard))
        results = tuple(SpanResult(stage, owner, "d") for stage, owner in keys)

        assert are_whole(results, shares, share.shard)
        assert not keys or not are_whole(results[1:], shares, share.shard)
        assert not keys or not are_whole((*results, results[0]), shares, share.shard)
        assert not are_whole((*results, SpanResult(99, "x", "d")), shares, share.shard)


def test_the_digest_is_of_all_results_whatever_their_order():
    shares = shares_of({"a": answer(Shard(0, 2)), "b": answer(Shard(1, 3))})
    results = tuple(SpanResult(stage, owner, f"{stage}{owner}") for stage, owner in sorted(keys_for(shares)))

    digest = round_digest("r", shares, results)

    assert round_digest("r", shares, results[::-1]) == digest
    assert round_digest("q", shares, results) != digest
    for index, result in enumerate(results):
        spoilt = [*results]
        spoilt[index] = replace(result, digest="xx")
        assert round_digest("r", shares, tuple(spoilt)) != digest
    for changes in ({"session": "other"}, {"shard": Shard(0, 3)}, {"weight": 9}, {"tokens": 9}, {"spans": ()}):
        assert round_digest("r", (replace(shares[0], **changes), shares[1]), results) != digest


def test_a_lineages_hash_is_of_all_rounds_before_in_their_order():
    assert next_base_hash("0b", "d1") == hashlib.sha256(b"0b|d1").hexdigest()


def test_spans_go_to_who_holds_their_stage():
    (share, _) = shares_of({"a": answer(Shard(0, 3)), "b": answer(Shard(1, 4))})

    assert [span.stage for span in spans_for(share, Shard(1, 4))] == [1, 2]
    assert spans_for(share, NO_SHARD) == ()


@pytest.mark.parametrize(
    ("members", "alive", "dead", "may_commit"),
    [
        ("a", ["a"], "", True),
        ("a", ["ab"], "", False),  # the other half may do the same
        ("a", ["ab"], "b", True),  # nobody listens at b
        ("ab", ["abc", "abc"], "", True),
        ("ab", ["abcd", "abcd"], "", False),
        ("ab", ["ab", "abcd"], "", False),  # one member knows more than the leader
        ("ab", ["ab", "abcd"], "d", True),
        ("ab", ["", ""], "", True),  # a member that sees nobody still sees the members
    ],
)
def test_a_quorum_is_more_than_half_of_what_any_member_holds_for_alive(members, alive, dead, may_commit):
    assert has_quorum(frozenset(members), [frozenset(seen) for seen in alive], frozenset(dead)) is may_commit


@given(all_ids=st.frozensets(st.sampled_from("abcdefg"), min_size=1), data=st.data())
def test_two_halves_that_know_of_each_other_are_never_both_a_quorum(all_ids, data):
    half = data.draw(st.frozensets(st.sampled_from(sorted(all_ids))))
    halves = [half, all_ids - half]

    verdicts = [bool(h) and has_quorum(h, [all_ids] * len(h), frozenset()) for h in halves]

    assert sum(verdicts) <= 1


@given(swarm=swarms, data=st.data())
def test_two_halves_of_a_swarm_never_both_have_a_quorum_of_every_stage(swarm, data):
    half = data.draw(st.frozensets(st.sampled_from(sorted(swarm))))
    alive = {id: found.shard for id, found in swarm.items()}

    verdicts = []
    for members in (half, swarm.keys() - half):
        answers = {id: swarm[id] for id in members}
        verdicts.append(why_not(answers, [alive] * len(answers), (), NUM_STAGES) == "")

    assert sum(verdicts) <= 1


def test_the_quorum_is_counted_stage_by_stage():
    first, second = Shard(0, 1), Shard(1, 2)
    alive = {"a": first, "b": first, "c": second, "d": second, "e": NO_SHARD}

    def why(members, dead=""):
        answers = {id: answer(alive[id]) for id in members}
        return why_not(answers, [alive] * len(answers), set(dead), 2)

    assert why("abcd") == ""
    assert why("abcde") == ""
    assert why("abde") == "only 1 of the holders of stage 1 answered, not more than half"
    assert why("abde", dead="c") == ""
    assert why("ab", dead="cd") == "nobody holds stage 1"
    assert why("e") == "nobody holds stage 0"


def test_of_unequal_bits_the_lowest_hash_stays_and_of_unequal_lengths_the_most_frequent():
    one, two = Shard(0, 1), Shard(0, 2)
    answers = {"a": answer(one, bits="bb"), "b": answer(two, bits="aa"), "c": answer(Shard(1, 2), bits="aa")}
    assert odd_ones_out(answers) == (frozenset(), frozenset("a"))

    answers = {"a": answer(one, size=9), "b": answer(two), "c": answer(one)}
    assert odd_ones_out(answers) == (frozenset("a"), frozenset())


def test_only_the_session_that_is_in_doubt_is_left_out():
    whole = Shard(0, NUM_STAGES)
    driver = answer(NO_SHARD, doubts=frozenset({("a", "01"), ("b", "01"), ("gone", "01")}))

    answers = {"a": answer(whole, session="01"), "b": answer(whole, session="02"), "c": driver}

    assert doubted(answers) == {"a"}


@given(a=standings, b=standings, c=standings)
def test_which_state_is_followed_is_a_total_order(a, b, c):
    assert (a == b) or (a.is_heavier_than(b) != b.is_heavier_than(a))
    assert not (a.is_heavier_than(b) and b.is_heavier_than(c)) or a.is_heavier_than(c)


def test_more_committed_work_weighs_more_than_a_higher_version():
    assert Standing(3, "ff", 100).is_heavier_than(Standing(7, "00", 99))


def test_peers_of_one_lineage_share_bits_unless_a_stage_in_common_differs():
    here = Standing(3, "0a", 100, ((0, "aa"), (1, "bb")))

    assert here.shares_bits_with(replace(here, hashes=((1, "bb"), (2, "cc"))))
    assert here.shares_bits_with(replace(here, hashes=()))
    assert not here.shares_bits_with(replace(here, base_hash="0b"))
    broken = replace(here, hashes=((1, "b0"), (2, "cc")))
    assert not here.shares_bits_with(broken)
    assert broken.is_heavier_than(here)
    assert not here.is_heavier_than(broken)
