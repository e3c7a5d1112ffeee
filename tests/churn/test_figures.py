"""The measure itself, on lives that can be counted by hand."""

import pytest

from churn.figures import Life, could_compute, longest_wait, times_of_two

LIVES = [Life(0, 100, 10), Life(20, 50, 10), Life(40, 60, 10), Life(90, 200, 10)]


def test_lives_are_counted_within_the_time_that_is_looked_at():
    assert could_compute(LIVES, 10, 100) == 10 * (90 + 30 + 20 + 10)


def test_two_are_alive_from_the_second_ones_begin_to_the_last_but_ones_end():
    assert times_of_two(LIVES, 10, 95) == [(20, 60), (90, 95)]


@pytest.mark.parametrize(
    ("commits", "longest"),
    [
        pytest.param([25, 35, 55, 92], 20, id="between two commits"),
        pytest.param([40, 59, 91], 20, id="from the beginning"),
        pytest.param([21, 22, 92], 38, id="to the end"),
        pytest.param([10, 70, 80], 40, id="none within"),
    ],
)
def test_the_longest_wait_is_within_a_time_of_two(commits, longest):
    assert longest_wait(commits, times_of_two(LIVES, 10, 95)) == longest
