"""What a model split over machines makes, by arithmetic: who holds which stages, tokens a second, what sets the pace.

In the steady state a pipeline makes as many tokens a second as the slowest of its parts: a machine's compute, or one
direction of its link. Every microbatch is driven by the machine that has the data, which has embedding and head.

Legend: `up` and `down` are a machine's link; a *tensor* is the hidden state of one token, or its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from node.core.types import StagePlan
from node.host.machines import Machine
from node.host.memory import AdapterShape, Workload, fits, plan_memory
from node.host.shapes import ModelShape
from node.network.activations import ActivationCodec, encoded_size

Wire = Literal["star", "chain"]

EFFICIENCY = 0.65
"""Of a card's peak that training reaches: 8B in NF4 on a 4090 makes 2413 tokens/s with recomputation (torchtune)."""
_HALVINGS = 40
_NEARLY = 0.95
"""What fewer machines may lose and are still preferred: a hop less is a link and a machine less to fail."""


@dataclass(frozen=True, slots=True)
class Task:
    """The run that is to be split."""

    shape: ModelShape
    adapter: AdapterShape
    work: Workload
    """Of a machine with the whole model."""
    plan: StagePlan
    codec: ActivationCodec
    wire: Wire = "star"

    @property
    def layer_flop(self) -> int:
        """Operations of one layer for one token, forward and backward; attention's scores left out."""
        passes = 3 if self.work.gradient_checkpointing else 2
        return 2 * passes * self.shape.matrix_numel + 2 * (passes + 1) * self.adapter.layer_numel(self.shape)

    @property
    def ends_flop(self) -> int:
        """Operations of the head for one token, forward and backward."""
        return 4 * self.shape.vocabulary * self.shape.hidden

    @property
    def flop(self) -> int:
        """Operations of one token altogether."""
        return self.layer_flop * self.shape.num_layers + self.ends_flop

    @property
    def tensor_bytes(self) -> tuple[float, float]:
        """Bytes on the wire of a token's hidden state and of its gradient."""
        dtype = torch.bfloat16 if self.work.compute == "bfloat16" else torch.float32
        forward, backward = (
            encoded_size(self.codec, direction, (self.work.tokens,), self.shape.hidden, dtype) / self.work.tokens
            for direction in ("forward", "backward")
        )
        return forward, backward

    def needed_bytes(self, num_layers: int, *, ends: bool, in_flight: int) -> int:
        """Return the device memory of a machine with so many layers while `in_flight` microbatches are under way.

        The activations of one of them are kept, of the others the hidden states at the edges.
        """
        work = replace(self.work, num_layers=num_layers, ends=ends)
        edges = (in_flight - 1) * self.work.tokens * self.shape.hidden * (2 if work.compute == "bfloat16" else 4)
        return plan_memory(self.shape, self.adapter, work).device_bytes + edges


@dataclass(frozen=True, slots=True)
class Place:
    """What one machine does in a pipeline."""

    machine: Machine
    first_stage: int
    stop_stage: int
    num_layers: int
    first_layer: int
    drives: bool
    needed_bytes: int
    up_bytes: float
    """Bytes that it sends for one token."""
    down_bytes: float
    compute_s: float
    """Seconds of compute for one token."""

    @property
    def pace(self) -> tuple[float, str]:
        """The seconds of a token in its slowest part, and which that is: `card`, `uplink` or `downlink`."""
        up_s = self.up_bytes * 8e-6 / self.machine.up_mbit_per_s
        down_s = self.down_bytes * 8e-6 / self.machine.down_mbit_per_s
        return max((self.compute_s, "card"), (up_s, "uplink"), (down_s, "downlink"))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A split of the model over machines, the driver first."""

    places: tuple[Place, ...]

    @property
    def slowest(self) -> Place:
        """The place that sets the pace."""
        return max(self.places, key=lambda place: place.pace[0])

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second while all machines have work."""
        return 1.0 / self.slowest.pace[0]

    @property
    def compute_tokens_per_s(self) -> float:
        """Tokens a second if no link mattered."""
        return 1.0 / max(place.compute_s for place in self.places)

    def needed_mbit_per_s(self, place: Place) -> tuple[float, float]:
        """Return the link, down and up, with which the cards of this pipeline set the pace."""
        factor = 8e-6 * self.compute_tokens_per_s
        return place.down_bytes * factor, place.up_bytes * factor


def best_pipeline(task: Task, driver: Machine, others: Sequence[Machine]) -> Pipeline | None:
    """Return the fastest pipeline of `driver` and any of `others`; of nearly equal ones that with the fewest hops."""
    found = [
        pipeline
        for num_hops in range(len(others) + 1)
        if (pipeline := _fastest(task, driver, others, num_hops)) is not None
    ]
    if not found:
        return None
    most = max(pipeline.tokens_per_s for pipeline in found)
    return next(pipeline for pipeline in found if pipeline.tokens_per_s >= _NEARLY * most)


def full_pipeline(task: Task, driver: Machine, others: Sequence[Machine]) -> Pipeline | None:
    """Return the fastest pipeline in which every machine holds something (the driver at least embedding and head)."""
    return _fastest(task, driver, others, len(others))


def replicas(task: Task, machines: Sequence[Machine]) -> tuple[Pipeline, ...]:
    """Return the machines that can hold the whole model, each training alone beside the others."""
    return tuple(p for machine in machines if (p := _fastest(task, machine, (), 0)) is not None)


def missing_bytes(task: Task, driver: Machine, others: Sequence[Machine]) -> int:
    """Return about how much memory is lacking for all layers, 0 if they can be held."""
    in_flight = microbatches_under_way(len(others))
    most = [_most_layers(task, driver, ends=True, in_flight=in_flight)]
    most += [_most_layers(task, machine, ends=False, in_flight=in_flight) for machine in others]
    lacking = task.shape.num_layers - sum(max(0, layers) for layers in most)
    one, two = (task.needed_bytes(layers, ends=False, in_flight=in_flight) for layers in (1, 2))
    return max(0, lacking) * (two - one)


def _fastest(task: Task, driver: Machine, others: Sequence[Machine], num_hops: int) -> Pipeline | None:
    """Return the fastest pipeline with exactly so many hops.

    The links decide who takes part, since each bears the same whatever its machine holds; then the layers are spread
    so that the cards keep pace with each other.
    """
    chosen = _limit(task, driver, others, num_hops, heed_links=True)
    if chosen is None:
        return None
    balanced = _limit(task, driver, list(chosen)[1:], num_hops, heed_links=False)
    assert balanced is not None, "what keeps a pace with links keeps it without"
    counts = _trimmed(task, balanced)
    return _placed(task, list(balanced), counts)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What one machine can do in a pipeline of so many hops, whatever its pace."""

    machine: Machine
    in_memory: int
    """Layers that fit; -1 if not even the rest does."""
    link_s: float
    """Seconds that a token takes on its link."""
    ends_flop: int

    def stages_at(self, task: Task, tokens_per_s: float, *, heed_links: bool) -> int:
        """Return how many stages it can hold and work through at that speed; -1 if it cannot take part."""
        if heed_links and self.link_s * tokens_per_s > 1:
            return -1
        budget = math.inf if tokens_per_s == 0 else self.machine.flop_per_s * EFFICIENCY / tokens_per_s
        budget -= self.ends_flop
        if budget < 0:
            return -1
        num_layers = task.shape.num_layers
        layers = min(self.in_memory, math.floor(min(budget / task.layer_flop, num_layers)))
        if layers in (-1, num_layers):
            return -1 if layers == -1 else task.plan.num_stages
        return layers // len(task.plan.ranges[0])  # stages differ by a layer at most, and the first is a longest one


def _limit(
    task: Task, driver: Machine, others: Sequence[Machine], num_hops: int, *, heed_links: bool
) -> dict[Machine, int] | None:
    """Return the machines of the fastest pipeline, driver first, and the most stages that each can do at its pace."""
    bounds = []
    for index, machine in enumerate((driver, *others)):
        drives = index == 0
        up, down = _bytes_per_token(task, num_hops, drives=drives, holds_first=False)
        link_s = 8e-6 * max(up / machine.up_mbit_per_s, down / machine.down_mbit_per_s)
        in_memory = _most_layers(task, machine, ends=drives, in_flight=microbatches_under_way(num_hops))
        bounds.append(_Bounds(machine, in_memory, link_s, task.ends_flop if drives else 0))
    slow, fast = 0.0, sum(m.flop_per_s for m in (driver, *others)) * EFFICIENCY / task.flop
    best = _counts_at(task, bounds, num_hops, slow, heed_links=heed_links)
    if best is None:
        return None
    for _ in range(_HALVINGS):
        middle = (slow + fast) / 2
        counts = _counts_at(task, bounds, num_hops, middle, heed_links=heed_links)
        if counts is None:
            fast = middle
        else:
            slow, best = middle, counts
    return best


def _counts_at(
    task: Task, bounds: Sequence[_Bounds], num_hops: int, tokens_per_s: float, *, heed_links: bool
) -> dict[Machine, int] | None:
    """Return who can make so many tokens a second together, with the most stages of each; None if nobody can."""
    driver, *others = [(b.machine, b.stages_at(task, tokens_per_s, heed_links=heed_links)) for b in bounds]
    chosen = {machine for machine, _ in sorted(others, key=lambda other: -other[1])[:num_hops]}
    counts = dict([driver, *(other for other in others if other[0] in chosen)])
    if driver[1] < 0 or any(counts[machine] < 1 for machine in chosen) or num_hops > task.plan.num_stages:
        return None
    return counts if sum(counts.values()) >= task.plan.num_stages else None


def _trimmed(task: Task, most: dict[Machine, int]) -> list[int]:
    """Return how many stages each machine holds, the slowest ones relieved first of what is too much."""
    machines, counts = list(most), list(most.values())
    stage_flop = task.layer_flop * task.shape.num_layers / task.plan.num_stages

    def load(index: int) -> float:
        flop = counts[index] * stage_flop + (task.ends_flop if index == 0 else 0)
        return flop / machines[index].flop_per_s

    while sum(counts) > task.plan.num_stages:
        spare = [index for index in range(len(counts)) if counts[index] > (0 if index == 0 else 1)]
        counts[max(spare, key=load)] -= 1
    return counts


def microbatches_under_way(num_hops: int) -> int:
    """Return how many microbatches keep that many hops and the driver busy, with one on its way."""
    return num_hops + 2 if num_hops else 1


def _most_layers(task: Task, machine: Machine, *, ends: bool, in_flight: int) -> int:
    """Return how many layers fit into the machine's memory; -1 if not even nothing does."""

    def fit(num_layers: int) -> bool:
        return fits(task.needed_bytes(num_layers, ends=ends, in_flight=in_flight), machine.memory_bytes)

    if not fit(0):
        return -1
    low, high = 0, task.shape.num_layers
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fit(middle) else (low, middle - 1)
    return low


def _placed(task: Task, machines: Sequence[Machine], counts: Sequence[int]) -> Pipeline:
    """Return the pipeline in which each machine holds so many stages, from the first on."""
    num_hops = len(machines) - 1
    places, stage = [], 0
    for index, (machine, count) in enumerate(zip(machines, counts, strict=True)):
        ranges = task.plan.ranges[stage : stage + count]
        num_layers, drives = sum(map(len, ranges)), index == 0
        up, down = _bytes_per_token(task, num_hops, drives=drives, holds_first=stage == 0 and num_layers > 0)
        if drives and count == 0:
            down -= task.tensor_bytes[1]  # no gradient goes back into the frozen embedding
        flop = task.layer_flop * num_layers + (task.ends_flop if drives else 0)
        places.append(
            Place(
                machine=machine,
                first_stage=stage,
                stop_stage=stage + count,
                first_layer=ranges[0].start if ranges else 0,
                num_layers=num_layers,
                drives=drives,
                needed_bytes=task.needed_bytes(num_layers, ends=drives, in_flight=microbatches_under_way(num_hops)),
                up_bytes=up,
                down_bytes=down,
                compute_s=flop / (machine.flop_per_s * EFFICIENCY),
            )
        )
        stage += count
    return Pipeline(tuple(places))


def _bytes_per_token(task: Task, num_hops: int, *, drives: bool, holds_first: bool) -> tuple[float, float]:
    """Return the bytes that a machine sends and receives for one token.

    In a star all tensors of each hop pass the driver's link; in a chain only the first hop's and the last's. A hop that
    holds the first layers returns no gradient.
    """
    forward, backward = task.tensor_bytes
    if num_hops == 0:
        return 0.0, 0.0
    if drives:
        passes = num_hops if task.wire == "star" else 1
        return passes * (forward + backward), passes * (forward + backward)
    return (forward if holds_first else forward + backward), forward + backward
