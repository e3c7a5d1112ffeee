"""The learning rate of each step, the same float on every machine.

The curves are the ones of transformers' `get_scheduler`. The cosine is summed here rather than taken from libm,
whose last bit differs between platforms: one bit in the rate is one bit in every weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """Peak rate and shape of the schedule; part of what all replicas agree on."""

    learning_rate: float
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises from 0 to `learning_rate`."""
    total_steps: int = 0
    """Optimizer steps of the run; not used by `constant`. Whatever comes later has rate 0."""


def learning_rate(settings: ScheduleSettings, step: int) -> float:
    """Return the learning rate of the optimizer step that follows `step` earlier ones.

    As in transformers, the first step of a warm-up has rate 0.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step / max(1, settings.warmup_steps))
    if settings.kind == "constant":
        return settings.learning_rate
    assert settings.total_steps > 0, f"a {settings.kind} schedule needs the number of steps of the run"
    if step >= settings.total_steps:
        return 0.0
    progress = (step - settings.warmup_steps) / max(1, settings.total_steps - settings.warmup_steps)
    if settings.kind == "linear":
        return settings.learning_rate * (1.0 - progress)
    return settings.learning_rate * (0.5 * (1.0 + _cos_pi(progress)))


def _cos_pi(x: float) -> float:
    """Return cos(pi * x) for x in [0, 1], from additions and multiplications alone (error below 1e-15)."""
    if x > 0.5:
        return -_cos_pi(1.0 - x)
    if x > 0.25:
        return _series(math.pi * (0.5 - x), first_power=1)
    return _series(math.pi * x, first_power=0)


def _series(angle: float, *, first_power: int) -> float:
    """Sum the Taylor series of the cosine (`first_power` 0) or the sine (1) of an angle up to pi / 4."""
    term = total = angle if first_power else 1.0
    square = angle * angle
    for power in range(first_power + 2, first_power + 18, 2):
        term = -term * square / (power * (power - 1))
        total += term
    return total
