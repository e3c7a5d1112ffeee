"""Which use of some machines makes the most tokens a second, and what a person should know about it, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from node.core.types import StagePlan
from node.host.machines import Machine
from node.host.memory import fits, round_traffic
from node.host.splitting import (
    Pipeline,
    Task,
    best_pipeline,
    full_pipeline,
    missing_bytes,
    replicas,
)
from node.network.activations import ActivationCodec

Kind = Literal["split", "replicate", "impossible"]

_NEARLY = 0.95
"""What replicas may lose against a split and are still preferred."""
_WORTH = 1.1
"""How much faster another setting has to be before it is named."""
_MOST_DRIVERS = 8
"""Machines of which each is tried as the one with the data; beyond it the search would be felt."""
_FEWER_BYTES: tuple[ActivationCodec, ...] = ("bf16", "int8", "lowbit")


@dataclass(frozen=True, slots=True)
class Rounds:
    """What averaging between replicas costs."""

    compression: Literal["none", "bf16"]
    target_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do with the machines."""

    kind: Kind
    pipelines: tuple[Pipeline, ...]
    """One if the model is split, one for each machine if it is replicated, none if it cannot be held."""
    split_over_all: Pipeline | None
    """What becomes of it if every machine holds a part."""
    sentences: tuple[str, ...]

    @property
    def tokens_per_s(self) -> float:
        """Of all machines together."""
        return sum(pipeline.tokens_per_s for pipeline in self.pipelines)


def advise(task: Task, machines: Sequence[Machine], rounds: Rounds) -> Advice:
    """Return the best use of `machines`, of which the first has the data.

    Machines that each hold the whole model are preferred to a split that is as fast: the round between them can wait, a
    microbatch on its way cannot.
    """
    driver, others = machines[0], machines[1:]
    everyone = full_pipeline(task, driver, others)
    split = best_pipeline(task, driver, others)
    alone = replicas(task, machines)
    total = sum(pipeline.tokens_per_s for pipeline in alone)
    keeps_data = split is None or any(pipeline.places[0].machine is driver for pipeline in alone)
    if alone and keeps_data and (split is None or total >= _NEARLY * split.tokens_per_s):
        return Advice("replicate", alone, everyone, _of_replicas(task, machines, alone, everyone, rounds))
    if split is None:
        return Advice("impossible", (), None, _of_nothing(task, machines))
    said = _of_split(task, machines, split, everyone)
    if total >= split.tokens_per_s:
        said += (f"Replicate instead if {_listed(_first(alone))} may have the data: {total:,.0f} tokens/s.",)
    return Advice("split", (split,), everyone, said)


def _of_nothing(task: Task, machines: Sequence[Machine]) -> tuple[str, ...]:
    driver = machines[0]
    ends_bytes = task.needed_bytes(0, ends=True, in_flight=len(machines) + 1)
    if not fits(ends_bytes, driver.memory_bytes):
        ends = f"embedding and head with one microbatch need {_gib(ends_bytes)} and a margin"
        return (f"{driver.name} has the data, and {ends}: too much for it.",)
    lacking = missing_bytes(task, driver, machines[1:])
    if lacking:
        return (f"The model does not fit: these machines lack about {_gib(lacking)} for its layers.",)
    return ("The model does not fit, since a stage is indivisible: a larger `potluck.stages` may help.",)


def _of_replicas(
    task: Task, machines: Sequence[Machine], alone: Sequence[Pipeline], everyone: Pipeline | None, rounds: Rounds
) -> tuple[str, ...]:
    holders = _first(alone)
    total = sum(pipeline.tokens_per_s for pipeline in alone)
    idle = [machine for machine in machines if machine not in holders]
    said = [f"{holders[0].name} holds the whole model and makes {total:,.0f} tokens/s alone."]
    if len(holders) > 1:
        against = f"; split over all machines {everyone.tokens_per_s:,.0f}" if everyone is not None else ""
        said = [f"Replicate instead of splitting: {_listed(holders)} hold the whole model each."]
        said.append(f"With data on each they make {total:,.0f} tokens/s{against}.")
    said += _compared(everyone, idle, len(machines))
    if len(holders) > 1:
        said += _of_rounds(task, holders, total, rounds)
    if machines[0] not in holders:
        said.append(f"{machines[0].name} has the data and cannot hold embedding and head: put data on others.")
    return tuple(said)


def _of_rounds(task: Task, holders: Sequence[Machine], tokens_per_s: float, rounds: Rounds) -> list[str]:
    """Return what keeps the round between replicas from setting the pace, if it would."""
    link = min(min(machine.up_mbit_per_s, machine.down_mbit_per_s) for machine in holders)
    trainable = task.shape.num_layers * task.adapter.layer_numel(task.shape)
    round_s = round_traffic(trainable, len(holders), rounds.compression).seconds(link)
    tokens = math.ceil(round_s * tokens_per_s / 1024) * 1024
    if tokens <= rounds.target_batch_tokens:
        return []
    advised = f"`potluck.averaging.target_batch_tokens: {tokens}`"
    return [f"A round takes {round_s:,.1f} s: with {advised} or more it ends before the next one is due."]


def _first(pipelines: Sequence[Pipeline]) -> list[Machine]:
    return [pipeline.places[0].machine for pipeline in pipelines]


def _of_split(task: Task, machines: Sequence[Machine], split: Pipeline, everyone: Pipeline | None) -> tuple[str, ...]:
    said = [pace_sentence(split)]
    used = [place.machine for place in split.places]
    said += _compared(everyone, [machine for machine in machines if machine not in used], len(machines))
    said += _settings(task, machines, split)
    return tuple(said)


def pace_sentence(pipeline: Pipeline) -> str:
    """Return which card or link sets the pace, and what link would not."""
    place = pipeline.slowest
    _, part = place.pace
    if part == "card":
        return f"The card of {place.machine.name} sets the pace."
    down, up = pipeline.needed_mbit_per_s(place)
    needed = up if part == "uplink" else down
    return (
        f"The {part} of {place.machine.name} sets the pace: with {needed:,.0f} Mbit/s the cards would, at "
        f"{pipeline.compute_tokens_per_s:,.0f} tokens/s."
    )


def _compared(everyone: Pipeline | None, idle: Sequence[Machine], num_machines: int) -> list[str]:
    """Return why some machines have nothing to do."""
    if not idle:
        return []
    if everyone is None:
        return [f"Leave {_listed(idle)} out: not every machine can hold a part."]
    _, part = everyone.slowest.pace
    speed, slowest = everyone.tokens_per_s, everyone.slowest.machine.name
    instead = f"split over all {num_machines} machines it would be {speed:,.0f} tokens/s"
    return [f"Leave {_listed(idle)} out: {instead}, since the {part} of {slowest} would set the pace."]


def _settings(task: Task, machines: Sequence[Machine], split: Pipeline) -> list[str]:
    """Return the changes of the recipe, or of who has the data, that would be worth it."""
    enough = split.tokens_per_s * _WORTH
    said = []
    if task.wire == "star" and (speed := _speed(replace(task, wire="chain"), machines)) > enough:
        said.append(f"`potluck.wire: chain` would make {speed:,.0f} tokens/s.")
    rank = _FEWER_BYTES.index(task.codec) if task.codec in _FEWER_BYTES else -1
    for codec in _FEWER_BYTES[rank + 1 :]:
        if (speed := _speed(replace(task, codec=codec), machines)) > enough:
            said.append(f"`potluck.activations: {codec}` would make {speed:,.0f} tokens/s.")
            enough = speed * _WORTH
    finest = StagePlan.even(task.shape.num_layers, task.shape.num_layers)
    if (speed := _speed(replace(task, plan=finest), machines)) > split.tokens_per_s * _WORTH:
        said.append(
            f"`potluck.stages: {finest.num_stages}` would make {speed:,.0f} tokens/s: layers spread more evenly."
        )
    if len(machines) <= _MOST_DRIVERS:
        others = {
            machine: _speed(task, [machine, *(m for m in machines if m is not machine)]) for machine in machines[1:]
        }
        best = max(others, key=lambda machine: others[machine], default=None)
        if best is not None and others[best] > split.tokens_per_s * _WORTH:
            said.append(f"With the data on {best.name} it would be {others[best]:,.0f} tokens/s.")
    return said


def _speed(task: Task, machines: Sequence[Machine]) -> float:
    pipeline = best_pipeline(task, machines[0], machines[1:])
    return 0.0 if pipeline is None else pipeline.tokens_per_s


def _listed(machines: Sequence[Machine]) -> str:
    *some, last = [machine.name for machine in machines]
    return f"{', '.join(some)} and {last}" if some else last


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
