"""`potluck plan`: what a recipe needs here, by arithmetic."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.common import home_option, json_option, model_cache, print_json, quiet_option
from node.cli.plan_peers import plan_peers, task_of

if TYPE_CHECKING:
    from rich.console import Console

    from node.config.recipe import Recipe
    from node.host.devices import Device
    from node.host.memory import AdapterShape, MemoryPlan, Workload
    from node.host.shapes import ModelShape

_LINKS_MBIT = (20, 100, 1000)
_ON_DEVICE = (
    ("weights", "frozen layers"),
    ("embedding_head", "embedding and head"),
    ("adapter", "adapter"),
    ("optimizer", "optimizer"),
    ("accumulators", "gradient sum"),
    ("activations", "activations"),
    ("workspace", "temporaries"),
    ("logits", "logits"),
    ("allocator", "allocator"),
    ("context", "compute libraries"),
)
_BESIDE = (("process", "the program"), ("averaging", "a round's buffers"))


@click.command("plan")
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--nodes",
    type=click.IntRange(1, 1000),
    multiple=True,
    default=(2, 4, 8),
    show_default=True,
    help="Nodes that train together; may be given several times.",
)
@click.option(
    "--peers",
    metavar="MACHINES",
    help="Plan for these machines instead, e.g. `8GB@100Mbit,12GB,2x24GB`; the first has the data. `swarm`: for those "
    "of the swarm that the node under --home is in, as measured.",
)
@home_option
@json_option
@quiet_option
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    device: str,
    nodes: tuple[int, ...],
    peers: str | None,
    home: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what RECIPE needs on this machine: memory per device, bytes per round.

    With --peers: who of several machines would hold which layers, how fast that is, and what sets the pace.

    Loads no weights. Of a model on the hub only the configuration is fetched. Ends with code 6 if it does not fit.
    """
    from node.config.load import load_recipe
    from node.core.errors import OutOfDeviceMemory
    from node.host.devices import describe, pick_device
    from node.host.memory import AdapterShape, Workload, plan_memory
    from node.host.shapes import ModelShape
    from node.host.speed import tokens_per_s
    from node.model.config_only import base_model_config
    from node.specs import load_spec

    wanted = load_recipe(recipe, overrides).recipe
    here = describe(pick_device(device))
    spec = load_spec(wanted, here.name)
    config = base_model_config(wanted.base_model, cache=model_cache(), revision=wanted.revision_of_model)
    shape = ModelShape.of(config)
    adapter = AdapterShape(spec.lora.r, spec.lora.targets, spec.lora.use_dora)
    work = Workload(
        tokens=wanted.micro_batch_size * wanted.sequence_len,
        quantization=spec.quantization,
        compute=spec.compute,
        gradient_checkpointing=wanted.gradient_checkpointing,
        on_gpu=here.name.startswith("cuda"),
    )
    if peers is not None:
        plan_peers(peers, wanted, task_of(wanted, shape, adapter, work), home=home, as_json=as_json, quiet=quiet)
        return
    plan = plan_memory(shape, adapter, work)
    speed = tokens_per_s(
        shape,
        adapter,
        tokens=work.tokens,
        device=here.name,
        compute=work.compute,
        gradient_checkpointing=work.gradient_checkpointing,
    )
    record = _memory_record(plan, here)
    record["model"] = {"family": shape.family, "parameters": shape.numel, "trainable": plan.adapter // 4}
    record["suggestion"] = "" if record["fits"] else _suggest(wanted, shape, adapter, work, here)
    record["tokens_per_s_estimate"] = round(speed, 1)
    record["rounds"] = _rounds(plan.adapter // 4, nodes, wanted, speed)
    record["link_suggestion"] = _suggest_for_link(record["rounds"], wanted, speed)
    if as_json:
        print_json(record)
    elif quiet:
        click.echo("fits" if record["fits"] else "does not fit")
    else:
        _print(wanted, record)
    if not record["fits"]:
        short = next(place for place in record["devices"] if not place["fits"])
        raise OutOfDeviceMemory(
            f"The run needs about {short['needed_bytes'] / 2**30:.1f} GiB and a margin on {short['name']}, "
            f"and {short['free_bytes'] / 2**30:.1f} GiB is free.",
            hint=record["suggestion"],
        )


def _memory_record(plan: MemoryPlan, device: Device) -> dict[str, Any]:
    """Return needs and means of the device and of main memory, and whether the ones fit into the others."""
    from node.host.devices import describe
    from node.host.memory import fits

    main = describe("cpu")
    needs_by_name = asdict(plan)
    device_needs = {name: needs_by_name[name] for name, _ in _ON_DEVICE}
    host_needs = {name: needs_by_name[name] for name, _ in _BESIDE}
    has_own_memory = device.name.startswith("cuda")
    parts = [(device, device_needs), (main, host_needs)] if has_own_memory else [(device, device_needs | host_needs)]
    devices = [
        {
            "name": where.name,
            "label": where.label,
            "free_bytes": where.free_bytes,
            "total_bytes": where.total_bytes,
            "needed_bytes": sum(needs.values()),
            "fits": fits(sum(needs.values()), where.free_bytes),
            "needs": needs,
        }
        for where, needs in parts
    ]
    return {"devices": devices, "fits": all(d["fits"] for d in devices)}


def _suggest(recipe: Recipe, shape: ModelShape, adapter: AdapterShape, work: Workload, device: Device) -> str:
    """Return the mildest change of the recipe that fits, or say that none does."""
    from node.host.memory import plan_memory

    smaller = replace(work, tokens=recipe.sequence_len)
    changes = {
        "micro_batch_size: 1": smaller,
        "gradient_checkpointing: true": replace(work, gradient_checkpointing=True),
        "micro_batch_size: 1 and gradient_checkpointing: true": replace(smaller, gradient_checkpointing=True),
        "adapter: qlora, micro_batch_size: 1 and gradient_checkpointing: true": replace(
            smaller, gradient_checkpointing=True, quantization="nf4"
        ),
    }
    for change, changed in changes.items():
        if changed != work and _memory_record(plan_memory(shape, adapter, changed), device)["fits"]:
            return f"It fits with {change}."
    return "No setting of batch or checkpointing makes it fit: take a smaller model, or free memory."


def _rounds(trainable: int, counts: tuple[int, ...], recipe: Recipe, speed: float) -> list[dict[str, Any]]:
    """Return what a round costs for each number of nodes, beside the computing between two rounds."""
    from node.host.memory import round_traffic

    averaging = recipe.potluck.averaging
    rounds = []
    for count in counts:
        traffic = round_traffic(trainable, count, averaging.compression)
        seconds = {str(mbit): round(traffic.seconds(mbit), 2) for mbit in _LINKS_MBIT}
        step_s = averaging.target_batch_tokens / (count * speed)
        rounds.append(
            {
                "nodes": count,
                "payload_bytes": traffic.payload_bytes,
                "upload_bytes_per_node": traffic.upload_bytes,
                "seconds_at_mbit_per_s": seconds,
                "step_s_estimate": round(step_s, 2),
                "slow_at_mbit_per_s": [mbit for mbit in _LINKS_MBIT if traffic.seconds(mbit) > step_s],
            }
        )
    return rounds


def _suggest_for_link(rounds: list[dict[str, Any]], recipe: Recipe, speed: float) -> str:
    """Return what makes rounds cheaper where sending takes longer than computing, or '' where it does not."""
    slow = [(max(row["slow_at_mbit_per_s"]), row) for row in rounds if row["slow_at_mbit_per_s"]]
    if not slow:
        return ""
    mbit, row = slow[0]
    seconds = row["seconds_at_mbit_per_s"][str(mbit)]
    advice = []
    if recipe.potluck.averaging.compression == "none":
        advice.append("`potluck.averaging.compression: bf16` halves the bytes")
        seconds /= 2
    tokens = -(-round(seconds * row["nodes"] * speed) // 1024) * 1024
    if tokens > recipe.potluck.averaging.target_batch_tokens:
        advice.append(f"`potluck.averaging.target_batch_tokens: {tokens}` makes the steps fewer and larger")
    return f"With {row['nodes']} nodes at {mbit} Mbit/s sending takes longer than computing: " + "; ".join(advice) + "."


def _print(recipe: Recipe, record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    model = record["model"]
    console.print(
        f"{recipe.base_model}: {model['parameters'] / 1e6:,.0f} M parameters, "
        f"{model['trainable'] / 1e6:,.2f} M of them in the adapter are trained."
    )
    labels = dict(_ON_DEVICE) | dict(_BESIDE)
    for device in record["devices"]:
        table = Table(title=f"{device['name']}: {device['label']}", title_justify="left")
        table.add_column("")
        table.add_column("MiB", justify="right")
        for name, needed in device["needs"].items():
            if needed:
                table.add_row(labels[name], f"{needed / 2**20:,.0f}")
        table.add_section()
        table.add_row("needed", f"{device['needed_bytes'] / 2**20:,.0f}")
        table.add_row("free now", f"{device['free_bytes'] / 2**20:,.0f}")
        console.print(table)
        console.print("It fits." if device["fits"] else "It does not fit.", style="" if device["fits"] else "bold red")
    _print_rounds(console, recipe, record)


def _print_rounds(console: Console, recipe: Recipe, record: dict[str, Any]) -> None:
    from rich.table import Table

    averaging = recipe.potluck.averaging
    payload = record["rounds"][0]["payload_bytes"] / 1e6
    table = Table(title=f"A round averages {payload:,.1f} MB; * takes longer than the computing", title_justify="left")
    table.add_column("nodes", justify="right")
    table.add_column("MB sent by each", justify="right")
    for mbit in _LINKS_MBIT:
        table.add_column(f"s at {mbit} Mbit/s", justify="right")
    table.add_column("s computing", justify="right")
    for row in record["rounds"]:
        cells = [
            f"{'*' if mbit in row['slow_at_mbit_per_s'] else ''}{row['seconds_at_mbit_per_s'][str(mbit)]:,.1f}"
            for mbit in _LINKS_MBIT
        ]
        sent = f"{row['upload_bytes_per_node'] / 1e6:,.1f}"
        table.add_row(str(row["nodes"]), sent, *cells, f"{row['step_s_estimate']:,.1f}")
    console.print(table)
    console.print(
        f"Computing: {averaging.target_batch_tokens} tokens behind a step, if every node makes about "
        f"{record['tokens_per_s_estimate']:,.0f} tokens/s as this one probably will."
    )
    if record["link_suggestion"]:
        console.print(record["link_suggestion"])
