"""`potluck plan --peers`: who would hold which layers, what it would make, what sets the pace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from node.cli.common import print_json

if TYPE_CHECKING:
    from pathlib import Path

    from node.config.recipe import Recipe
    from node.host.advice import Advice
    from node.host.machines import Machine
    from node.host.memory import AdapterShape, Workload
    from node.host.shapes import ModelShape
    from node.host.splitting import Pipeline, Task

SWARM = "swarm"
"""In place of machines: those of the swarm that the node on this machine is in."""


def plan_peers(text: str, recipe: Recipe, task: Task, *, home: Path, as_json: bool, quiet: bool) -> None:
    """Print the plan for the machines that `text` names, or for the swarm of the node under `home`.

    Raises:
        ConfigError: The text is not in order, or the swarm trains another model or has measured nothing yet.
        NotRunning: The swarm is asked for, and no node runs under `home`.
        OutOfDeviceMemory: The machines cannot hold the model.
    """
    from node.core.errors import OutOfDeviceMemory
    from node.host.advice import Rounds, advise
    from node.host.machines import parse_machines

    about = []
    if text == SWARM:
        task, machines = _swarm(home, task)
        about.append("Room and speeds are those that the swarm's nodes announce; their links are not known.")
    else:
        machines = parse_machines(text)
    averaging = recipe.potluck.averaging
    advice = advise(task, machines, Rounds(averaging.compression, averaging.target_batch_tokens))
    record = _record(task, advice)
    record["advice"] = [*about, *record["advice"]]
    if as_json:
        print_json(record)
    elif quiet:
        click.echo(advice.kind)
    elif advice.kind != "impossible":
        _print(recipe, record)
    if advice.kind == "impossible":
        raise OutOfDeviceMemory(advice.sentences[0], hint="Bring another machine, or take a smaller model.")


def task_of(recipe: Recipe, shape: ModelShape, adapter: AdapterShape, work: Workload) -> Task:
    """Return what has to be split: the recipe's model on graphics cards, cut into the recipe's stages."""
    from node.core.types import StagePlan
    from node.holding import stages_of
    from node.host.splitting import Task

    on_cards = replace(work, compute="bfloat16", on_gpu=True)
    stages = recipe.potluck.stages
    if stages == "auto":
        stages = stages_of(shape, nf4=work.quantization == "nf4")
    plan = StagePlan.even(shape.num_layers, min(stages, shape.num_layers))
    return Task(shape, adapter, on_cards, plan, recipe.potluck.activations, recipe.potluck.wire)


def _swarm(home: Path, task: Task) -> tuple[Task, tuple[Machine, ...]]:
    """Return the task as the running swarm cuts it, and the swarm's machines."""
    from node.control.client import ControlClient
    from node.core.errors import ConfigError
    from node.core.types import StagePlan
    from node.host.measured import Measured, machines_of

    with ControlClient(home) as client:
        status = client.status()
    layers = task.shape.num_layers
    if not status.num_stages:
        raise ConfigError("The node here has not loaded its model yet.", hint="Plan again in a moment.")
    if status.num_layers != layers:
        raise ConfigError(
            f"The node here trains a model of {status.num_layers} layers, and the recipe's has {layers}.",
            hint="Give the recipe that the swarm trains.",
        )
    task = replace(task, plan=StagePlan.even(layers, status.num_stages))
    nodes = [
        # an undivided model is measured by what its driver trains
        Measured(
            peer.name,
            peer.capacity_stages,
            peer.stage_tokens_per_s or (peer.tokens_per_s if status.num_stages == 1 else 0.0),
            peer.drives,
        )
        for peer in sorted(status.peers, key=lambda peer: (not peer.is_me, peer.peer_id))
    ]
    return task, machines_of(task, nodes)


def _record(task: Task, advice: Advice) -> dict[str, Any]:
    return {
        "kind": advice.kind,
        "tokens_per_s_estimate": round(advice.tokens_per_s, 1),
        "num_stages": task.plan.num_stages,
        "wire": task.wire,
        "activations": task.codec,
        "pipelines": [_pipeline(pipeline) for pipeline in advice.pipelines],
        "split_over_all_tokens_per_s": round(advice.split_over_all.tokens_per_s, 1) if advice.split_over_all else None,
        "advice": list(advice.sentences),
    }


def _pipeline(pipeline: Pipeline) -> dict[str, Any]:
    places = []
    for place in pipeline.places:
        down, up = pipeline.needed_mbit_per_s(place)
        machine = place.machine
        places.append(
            {
                "machine": machine.name,
                "drives": place.drives,
                "stages": [place.first_stage, place.stop_stage],
                "layers": [place.first_layer, place.first_layer + place.num_layers],
                "needed_bytes": place.needed_bytes,
                "memory_bytes": machine.memory_bytes,
                "compute_tokens_per_s": round(1 / place.compute_s, 1),
                "down_mbit_per_s": machine.down_mbit_per_s,
                "up_mbit_per_s": machine.up_mbit_per_s,
                "needed_down_mbit_per_s": round(down, 1),
                "needed_up_mbit_per_s": round(up, 1),
            }
        )
    return {
        "tokens_per_s": round(pipeline.tokens_per_s, 1),
        "compute_tokens_per_s": round(pipeline.compute_tokens_per_s, 1),
        "slowest": {"machine": pipeline.slowest.machine.name, "part": pipeline.slowest.pace[1]},
        "places": places,
    }


def _print(recipe: Recipe, record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table(title=f"{recipe.base_model} on these machines", title_justify="left")
    table.add_column("machine", no_wrap=True)
    for column in ("layers", "GiB", "of", "tokens/s", "Mbit/s", "of"):
        table.add_column(column, justify="right")
    for pipeline in record["pipelines"]:
        for place in pipeline["places"]:
            table.add_row(*_cells(place))
    console.print(table)
    console.print(
        f"About {record['tokens_per_s_estimate']:,.0f} tokens/s together. In the table: tokens/s of each card on its "
        "layers; Mbit/s that the link needs, in its busier direction, so that the cards set the pace; * has the "
        "data, and embedding and head."
    )
    for sentence in record["advice"]:
        console.print(sentence)


def _cells(place: dict[str, Any]) -> tuple[str, ...]:
    start, stop = place["layers"]
    held = f"{start}-{stop - 1}" if stop > start else "none"
    directions = ("down", "up")
    busier = max(directions, key=lambda way: place[f"needed_{way}_mbit_per_s"] / place[f"{way}_mbit_per_s"])
    return (
        place["machine"] + (" *" if place["drives"] else ""),
        held,
        f"{place['needed_bytes'] / 2**30:.1f}",
        f"{place['memory_bytes'] / 2**30:g}",
        f"{place['compute_tokens_per_s']:,.0f}",
        f"{place[f'needed_{busier}_mbit_per_s']:,.0f}",
        f"{place[f'{busier}_mbit_per_s']:,.0f}",
    )
