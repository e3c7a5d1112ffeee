"""The rule by which a reducer makes one span of many: a mean weighted by tokens, with a cap on outliers.

The mean is summed in the order of the members and divided once, in fp32. Only the span's own reducer computes it;
its bytes are the result for everybody, so nothing here has to be reproducible elsewhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

CAP_FACTOR = 10.0
"""A part whose gradient per label is this many times longer than the median is scaled down to it. Honest peers stay
far below; one that sends garbage moves the mean by a bounded amount (norm clipping, arXiv 1911.07963)."""
_MIN_PARTS_FOR_CAP = 3
_NORM_BLOCK = 1 << 15


def weighted_mean(parts: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Return the mean gradient of one span.

    Args:
        parts: One summed gradient [n] a member, fp32 on the CPU, finite, in the order of the members.
        weights: The label tokens behind each; their sum is positive.

    Returns:
        [n] fp32: sum of the parts over sum of the weights.
    """
    scales = cap_scales(parts, weights)
    first, *others = (part if scale == 1.0 else part * scale for part, scale in zip(parts, scales, strict=True))
    total = torch.add(first, others[0]) if others else first.clone()
    for part in others[1:]:
        total += part
    return total.div_(float(sum(weights)))


def cap_scales(parts: Sequence[Tensor], weights: Sequence[int]) -> list[float]:
    """Return the factor in (0, 1] for each part that keeps its norm per label within the cap; 1 below three parts."""
    if sum(1 for weight in weights if weight) < _MIN_PARTS_FOR_CAP:
        return [1.0] * len(parts)
    norms = [float(part.norm()) / weight if weight else 0.0 for part, weight in zip(parts, weights, strict=True)]
    given = [norm for norm, weight in zip(norms, weights, strict=True) if weight]
    cap = CAP_FACTOR * statistics.median(given)
    if cap == 0.0:  # most have nothing in this span: that says nothing about those who do
        return [1.0] * len(parts)
    return [min(1.0, cap / norm) if norm > 0 else 1.0 for norm in norms]


def squared_norm(values: Tensor) -> float:
    """Return the sum of squares of [n] fp32, computed in float64, block by block so that no block leaves the cache."""
    blocks = (values[start : start + _NORM_BLOCK].double() for start in range(0, values.numel(), _NORM_BLOCK))
    return sum(float(block.dot(block)) for block in blocks)
