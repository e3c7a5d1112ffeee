"""Spans, quorums, and which of two states is followed."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.round_messages import Standing, cut, has_quorum

standings = st.builds(
    Standing,
    version=st.integers(0, 3),
    base_hash=st.sampled_from(["00", "0a", "ff"]),
    committed_tokens=st.integers(0, 3),
)


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


@given(a=standings, b=standings, c=standings)
def test_which_state_is_followed_is_a_total_order(a, b, c):
    assert (a == b) or (a.is_heavier_than(b) != b.is_heavier_than(a))
    assert not (a.is_heavier_than(b) and b.is_heavier_than(c)) or a.is_heavier_than(c)


def test_more_committed_work_weighs_more_than_a_higher_version():
    assert Standing(3, "ff", 100).is_heavier_than(Standing(7, "00", 99))
