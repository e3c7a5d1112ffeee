"""A hundred thousand damaged frames at the doors, ten thousand damaged files of each kind: each is refused, quickly."""

from random import Random

import pytest

from hostile.cost import MAX_BYTES, MAX_S, Peak, cpu_s
from hostile.doors import doors_in_the_code
from hostile.files import KINDS

DOORS = [
    "hello",
    "welcome",
    "state-request",
    "state-answer",
    "word",
    "receipt",
    "parts",
    "results",
    "stage-request",
    "stage-reply",
    "tensors",
    "weight-request",
    "weight-reply",
    "relay",
    "dht-ping",
    "dht-find",
    "dht-store",
    "dht-answer",
    "control-GetStatus",
    "control-SaveCheckpoint",
    "control-GatherAdapter",
    "control-RunStages",
    "control-Stop",
]
FRAMES = 100_000
FEWER = {
    "dht-answer": 0.3,
    "control-GetStatus": 0.2,
    "control-SaveCheckpoint": 0.2,
    "control-Stop": 0.2,
    "dht-ping": 0.5,
    "relay": 0.1,
}
"""Of the mean of all doors: those that take nothing, or that are slow; the others have the more."""
FILES = {
    "recipe": 10_000,
    "shared-recipe": 10_000,
    "record": 10_000,
    "adapter": 10_000,
    "safetensors": 10_000,
    "gguf": 10_000,
}
FILES |= {"peft": 3000, "seal": 3000, "manifest": 3000, "index": 3000, "config": 3000, "address": 5000, "identity": 100}
FILES |= {f"rows-{kind}": 10_000 // len(KINDS) + 1 for kind in KINDS}
FILES |= dict.fromkeys(("checkpoint-manifest", "checkpoint-bookmark", "settings", "home-local", "home-peers"), 2000)
FILES |= dict.fromkeys(("home-seal", "home-control", "home-current", "home-port"), 2000)
_BATCH = 100


def frames_at(door):
    share = sum(FEWER.get(name, 0.0) for name in DOORS)
    others = (len(DOORS) - share) / (len(DOORS) - len(FEWER))
    return round(FRAMES / len(DOORS) * FEWER.get(door, others))


def storm(target, count, *, seed=""):
    """Run a target on `count` damaged inputs, and return the longest time and the most memory that one batch took."""
    rng, peak, longest, most = Random(f"{target.name}{seed}"), Peak(), 0.0, 0
    for start in range(0, count, _BATCH):
        inputs = [target.make(rng) for _ in range(min(_BATCH, count - start))]
        peak.reset()
        for data in inputs:
            took = cpu_s(lambda: target.run(data))  # noqa: B023
            assert took <= MAX_S, f"{took:.3f} s for {data[:300]!r}"
            longest = max(longest, took)
        most = max(most, peak.growth_bytes())
        assert most <= MAX_BYTES, f"{most >> 20} MB in a batch of {inputs[0][:100]!r}..."
    return longest, most


def test_every_door_of_the_code_has_a_target(targets):
    covered = {door for target in targets.values() for door in target.doors}

    assert covered == doors_in_the_code(), "a door without a target, or a target without a door"
    assert set(targets) == {*DOORS, *FILES}
    assert sum(map(frames_at, DOORS)) >= FRAMES


@pytest.mark.parametrize("name", [*DOORS, *FILES])
def test_damaged_input_is_refused_quickly(name, targets, audited, is_soak, record_property):
    count = (FILES.get(name) or frames_at(name)) * (10 if is_soak else 1)

    longest, most = storm(targets[name], count)

    record_property("figures", f"{name}: {count} inputs, at most {1e3 * longest:.1f} ms and {most >> 20} MB")
