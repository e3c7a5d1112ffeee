import math

import pytest
import torch
from transformers import get_scheduler

from node.training.schedule import ScheduleSettings, _cos_pi, learning_rate

NAMES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (5, 40), (1, 1000), (10, 10)])
def test_rates_are_the_ones_of_transformers(kind, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    theirs = get_scheduler(NAMES[kind], optimizer, num_warmup_steps=warmup, num_training_steps=total)
    settings = ScheduleSettings(learning_rate=2e-4, kind=kind, warmup_steps=warmup, total_steps=total)

    for step in range(total):
        assert learning_rate(settings, step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-18), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_rate_stays_at_zero_after_the_end(kind):
    settings = ScheduleSettings(learning_rate=1.0, kind=kind, warmup_steps=2, total_steps=10)

    assert learning_rate(settings, 10) == learning_rate(settings, 17) == 0.0


def test_cosine_without_libm_is_a_cosine():
    for step in range(10_001):
        x = step / 10_000
        assert abs(_cos_pi(x) - math.cos(math.pi * x)) < 1e-15, x
