"""The rule that makes one span of many, and what a tensor has to pass before."""

import math

import pytest
import torch

from node.averaging.guard import refuse, refuse_norm
from node.averaging.reduce import CAP_FACTOR, cap_scales, squared_norm, weighted_mean


def test_the_mean_is_the_sum_of_the_parts_over_the_sum_of_the_weights():
    parts = [torch.randn(1000) for _ in range(2)]

    mean = weighted_mean(parts, [3, 5])

    assert torch.equal(mean, (parts[0] + parts[1]) / 8)


def test_all_parts_are_in_the_mean_however_many():
    parts = [torch.full((3,), 2.0**n) for n in range(4)]

    assert weighted_mean(parts, [1, 2, 3, 4]).tolist() == [1.5] * 3


def test_a_part_without_a_weight_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        weighted_mean([torch.ones(3)] * 3, [1] * 4)


@pytest.mark.parametrize(
    ("norms", "weights", "scales"),
    [
        ([1, 1, 9.9], [1, 1, 1], [1, 1, 1]),
        ([1, 1, 20], [1, 1, 1], [1, 1, 0.5]),
        ([1, 1, 20], [1, 1, 2], [1, 1, 1]),  # the length for each label counts
        ([1, 1, 40], [1, 1, 2], [1, 1, 0.5]),
        ([1, 20], [1, 1], [1, 1]),  # of two nobody knows which is odd
        ([1, 0, 20], [1, 0, 1], [1, 1, 1]),  # a third that counted nothing does not tell either
        ([0.01, 0.01, 0.2, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0.5, 1, 1]),  # nor does it lower the median
        ([1, 1, 0, 20], [1, 1, 1, 1], [1, 1, 1, 0.5]),
    ],
)
def test_a_part_is_scaled_down_to_ten_times_the_median_length_and_never_up(norms, weights, scales):
    parts = [torch.tensor([norm, 0.0, 0.0]) for norm in norms]

    assert cap_scales(parts, weights) == pytest.approx(scales)


def test_the_mean_leaves_the_parts_as_they_were():
    part = torch.ones(4)

    weighted_mean([part], [2])

    assert torch.equal(part, torch.ones(4))


def test_a_member_without_microbatches_changes_nothing():
    parts = [torch.randn(50), torch.zeros(50)]

    assert torch.equal(weighted_mean(parts, [7, 0]), parts[0] / 7)


def test_a_part_that_is_far_too_long_moves_the_mean_by_a_bounded_amount():
    honest = [torch.randn(1000) for _ in range(3)]
    liar = torch.randn(1000) * 1e9

    mean = weighted_mean([*honest, liar], [1, 1, 1, 1])

    longest = max(float(part.norm()) for part in honest)
    assert float(mean.norm()) <= (CAP_FACTOR + 3) * longest / 4
    assert not torch.equal(mean, sum([*honest, liar]) / 4)


def test_parts_are_kept_whole_where_most_members_have_nothing():
    parts = [torch.ones(10), torch.zeros(10), torch.zeros(10)]

    assert torch.equal(weighted_mean(parts, [1, 1, 1]), torch.ones(10) / 3)


def test_the_norm_is_computed_in_double_precision():
    values = torch.full((100_001,), 1e-3)

    assert squared_norm(values) == pytest.approx(100_001 * float(torch.tensor(1e-3).double()) ** 2, rel=1e-12)
    assert squared_norm(torch.zeros(0)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e35, -1e35])
@pytest.mark.parametrize("where", [0, 1, 99])
def test_values_that_would_poison_the_mean_are_refused(bad, where):
    values = torch.randn(100)
    assert refuse(values, 100) == ""

    values[where] = bad

    assert refuse(values, 100) != ""


def test_another_length_or_type_is_refused():
    assert refuse(torch.zeros(9), 10)
    assert refuse(torch.zeros(10, dtype=torch.float64), 10)
    assert refuse(torch.zeros(2, 5), 10)
    assert refuse(torch.zeros(0), 0) == ""


def test_an_impossible_norm_is_refused():
    assert all(refuse_norm(good) == "" for good in (0.0, 1e-30, 2.0))
    assert all(refuse_norm(bad) for bad in (math.nan, math.inf, -1.0))
