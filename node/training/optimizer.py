"""AdamW whose bits do not depend on the machine.

All replicas of a stage take the same step from the same bytes and must hold the same bits afterwards. IEEE 754
fixes the result of one addition, multiplication, division or square root, so this file uses those alone, one
tensor operation at a time. `torch.optim.AdamW` does not qualify: its `lerp` and `addcdiv` are contracted into
fused multiply-adds on some instruction sets and not on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 20
"""Elements per block: the operations are elementwise, so blocks change no bit, and temporaries stay at 8 MiB."""


@dataclass(frozen=True, slots=True)
class AdamWSettings:
    """What every replica must agree on about a step; the learning rate comes from the schedule."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    """The mean gradient is scaled down to this norm; None or 0 leaves it alone."""


def clip_scale(norm: float, max_norm: float | None) -> float:
    """Return the factor in (0, 1] that brings a gradient of `norm` down to `max_norm`.

    The same formula as `torch.nn.utils.clip_grad_norm_`.
    """
    if not max_norm:
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))


@torch.no_grad()
def adamw_step(
    values: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    settings: AdamWSettings,
    scale: float = 1.0,
) -> None:
    """Make one AdamW step with decoupled weight decay (arXiv 1711.05101, algorithm 2), in place.

    Everything that can fail for want of memory is allocated before the first value changes, so the step
    either happens or it does not.

    Args:
        values: Parameters, [N] fp32; changed.
        gradient: Their mean gradient, [N] fp32, on the same device; left as it is.
        exp_avg: First moment, [N] fp32; changed.
        exp_avg_sq: Second moment, [N] fp32; changed.
        step: The number of this step, counted from 1.
        lr: Learning rate.
        settings: The remaining constants.
        scale: Factor on the gradient, from `clip_scale`.
    """
    assert step >= 1, f"steps are counted from 1, not {step}"
    decay = 1.0 - lr * settings.weight_decay
    step_size = lr / (1.0 - _power(settings.beta1, step))
    # A multiplication by the reciprocal on purpose: CUDA divides by a scalar that way and the CPU does not.
    root_scale = 1.0 / math.sqrt(1.0 - _power(settings.beta2, step))
    size = min(_BLOCK, values.numel())
    first, second = values.new_empty(size), values.new_empty(size)

    for start in range(0, values.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        value, grad, mean, square = values[block], gradient[block], exp_avg[block], exp_avg_sq[block]
        g, t = first[: value.numel()], second[: value.numel()]

        torch.mul(grad, scale, out=g)
        mean.mul_(settings.beta1)
        mean.add_(torch.mul(g, 1.0 - settings.beta1, out=t))
        torch.mul(g, g, out=g)
        square.mul_(settings.beta2)
        square.add_(torch.mul(g, 1.0 - settings.beta2, out=t))

        torch.sqrt(square, out=t)
        t.mul_(root_scale)
        t.add_(settings.epsilon)
        torch.div(mean, t, out=t)
        t.mul_(step_size)
        value.mul_(decay)
        value.sub_(t)


def _power(base: float, exponent: int) -> float:
    """Return `base ** exponent` by squaring.

    Python's `**` asks the platform's libm, whose last bit differs between C libraries; products do not.
    """
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
