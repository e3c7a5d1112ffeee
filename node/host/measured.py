"""Machines as a running swarm has measured them, for planning: the room and the speed that nodes announce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from node.core.errors import ConfigError
from node.host.machines import Machine
from node.host.memory import SAFETY
from node.host.splitting import EFFICIENCY, Task, microbatches_under_way


@dataclass(frozen=True, slots=True)
class Measured:
    """One node of a running swarm."""

    name: str
    capacity_stages: int
    """Stages that it has memory for."""
    stage_tokens_per_s: float
    """Through one stage, forward and backward; 0 before it is measured."""
    drives: bool
    """Whether it has data."""


def machines_of(task: Task, nodes: Sequence[Measured]) -> tuple[Machine, ...]:
    """Return machines that have the nodes' room and speed; the first that drives comes first, for it has the data.

    A node whose speed is not measured yet counts as average. Links are not measured: those of a LAN are taken.

    Raises:
        ConfigError: nobody has data, or nothing is measured yet.
    """
    speeds = [node.stage_tokens_per_s for node in nodes if node.stage_tokens_per_s > 0]
    if not any(node.drives for node in nodes):
        raise ConfigError("No node of the swarm has data.", hint="Plan again when one has joined with --data.")
    if not speeds:
        raise ConfigError(
            "The swarm has measured no speeds yet.", hint="Plan again after some microbatches, or name the machines."
        )
    average = sum(speeds) / len(speeds)
    ordered = sorted(nodes, key=lambda node: not node.drives)
    layers_of_a_stage = task.shape.num_layers / task.plan.num_stages
    machines = []
    for number, node in enumerate(ordered, 1):
        layers = min(task.shape.num_layers, math.ceil(node.capacity_stages * layers_of_a_stage))
        needed = task.needed_bytes(layers, ends=node.drives, in_flight=microbatches_under_way(len(nodes) - 1))
        speed = (node.stage_tokens_per_s or average) * layers_of_a_stage * task.layer_flop
        machines.append(Machine(f"#{number} ({node.name})", math.ceil(needed * SAFETY), speed / EFFICIENCY))
    return tuple(machines)
