"""The deadline of a round follows the times of the rounds with the same peers."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core import deadline
from node.core.deadline import FLOOR_S, MAD_FACTOR, MAX_PEERS, NUM_KEPT, NUM_NEEDED, RoundTimes

CEILING_S = 60.0
TIMES = st.lists(st.floats(0.0, 1000.0), min_size=0, max_size=3 * NUM_KEPT)
FEW_TIMES = st.lists(st.floats(0.001, 20.0), min_size=NUM_NEEDED, max_size=NUM_KEPT)


def after(*rounds, peers=("p",)):
    """What is remembered after rounds with these (answer, exchange) times."""
    times = RoundTimes()
    for answer_s, exchange_s in rounds:
        times = times.finished(peers, answer_s=answer_s, exchange_s=exchange_s)
    return times


def budget(times, *peers, ceiling_s=CEILING_S):
    return times.budget(peers, ceiling_s=ceiling_s)


@pytest.mark.parametrize("known", range(NUM_NEEDED))
def test_a_peer_that_is_hardly_known_gets_what_the_recipe_says(known):
    times = after(*[(0.1, 0.2)] * known)

    assert budget(times, "p").budget_s == CEILING_S
    assert budget(times, "p").answer_s == CEILING_S / 2
    assert budget(after(*[(0.1, 0.2)] * NUM_NEEDED), "p", "stranger").budget_s == CEILING_S


def test_a_node_that_is_alone_has_all_the_time_there_is():
    assert budget(RoundTimes()).budget_s == CEILING_S


@given(TIMES, TIMES, st.floats(1.0, 3600.0), st.integers(0, 5))
def test_no_budget_leaves_the_bounds_whatever_was_measured(answers, exchanges, ceiling_s, num_ran_out):
    times = after(*zip(answers, exchanges, strict=False))
    for _ in range(num_ran_out):
        times = times.ran_out({"p"})

    found = budget(times, "p", ceiling_s=ceiling_s)

    assert min(FLOOR_S, ceiling_s / 2) <= found.answer_s <= ceiling_s / 2
    assert min(2 * FLOOR_S, ceiling_s) <= found.budget_s <= ceiling_s
    assert found.answer_s <= found.budget_s


@given(FEW_TIMES)
def test_the_deadline_is_the_median_plus_a_multiple_of_the_deviation_and_at_least_two_medians(exchanges):
    found = budget(after(*((0.0, t) for t in exchanges)), "p", ceiling_s=1e6)

    median = statistics.median(exchanges)
    deviation = statistics.median(abs(t - median) for t in exchanges)
    exchange_s = found.budget_s - found.answer_s
    assert exchange_s >= max(FLOOR_S, median + MAD_FACTOR * deviation, 2 * median) - 1e-9
    assert exchange_s <= max(FLOOR_S, median + MAD_FACTOR * max(deviation, median / 8)) + 1e-9


@given(st.floats(2.0, 10.0), st.floats(0.0, 1e6))
def test_one_odd_round_does_not_move_the_deadline(usual, odd):
    rounds = [(0.1, usual)] * 9

    with_it = budget(after(*rounds, (0.1, odd)), "p", ceiling_s=1e7)

    assert with_it == budget(after(*rounds), "p", ceiling_s=1e7)


@given(FEW_TIMES, st.floats(1.1, 5.0))
def test_slower_rounds_never_shorten_the_deadline(exchanges, factor):
    fast = budget(after(*((0.1, t) for t in exchanges)), "p", ceiling_s=1e6)
    slow = budget(after(*((0.1, t * factor) for t in exchanges)), "p", ceiling_s=1e6)

    assert slow.budget_s >= fast.budget_s


def test_a_slow_peer_lengthens_the_rounds_that_it_is_in_and_no_other():
    times = after(*[(0.1, 9.0)] * 8, peers=("slow", "fast"))
    for _ in range(NUM_KEPT):
        times = times.finished(("fast",), answer_s=0.1, exchange_s=0.4)

    assert budget(times, "fast").budget_s == 2 * FLOOR_S
    assert budget(times, "fast", "slow").budget_s == FLOOR_S + 18.0


def test_time_that_ran_out_is_doubled_until_a_round_is_finished():
    times = after(*[(0.1, 4.0)] * 8)
    assert budget(times, "p").budget_s == FLOOR_S + 8.0

    times = times.ran_out({"p"})
    assert budget(times, "p").budget_s == 2 * (FLOOR_S + 8.0)
    assert times.may_go_on("p")

    assert budget(times.finished({"p"}, answer_s=0.1, exchange_s=4.0), "p").budget_s == FLOOR_S + 8.0
    assert not times.ran_out({"p"}).may_go_on("p"), "too slow for the run"


def test_no_more_peers_and_rounds_are_remembered_than_are_needed():
    times = RoundTimes()
    for number in range(MAX_PEERS + 10):
        times = times.finished((f"p{number}",), answer_s=0.1, exchange_s=0.1)
    times = times.finished(("p11",), answer_s=0.1, exchange_s=0.1)
    for _ in range(3 * NUM_KEPT):
        times = times.finished(("p11",), answer_s=0.1, exchange_s=0.1)

    assert len(times.by_peer) == MAX_PEERS
    assert len(times.by_peer["p11"].exchanges_s) == NUM_KEPT


def test_without_the_least_spread_equal_rounds_would_leave_no_room(monkeypatch):
    monkeypatch.setattr(deadline, "_LEAST_SPREAD", 0.0)

    exchange_s = budget(after(*[(0.1, 4.0)] * 8), "p").budget_s - FLOOR_S

    assert exchange_s == 4.0, "a round that takes a moment longer than the others would be dropped"
