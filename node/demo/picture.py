"""The nodes at work, drawn: a table for nodes that hold the same, and who holds what for those that do not."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from node.demo.process import NodeProcess
from node.observe.panel import smoothed, sparkline
from node.observe.status import human_bytes, human_seconds

_BAR_WIDTH = 15
_COLOURS = ("green", "yellow", "magenta")


@dataclass(frozen=True)
class Replicas:
    """Nodes that each hold the whole model."""

    nodes: tuple[NodeProcess, ...]
    seconds_left: float | None

    def panel(self) -> RenderableType:
        """Return what a terminal shows."""
        table = _table("node", "loss", "", "tokens/s", "tokens", "rounds", "sent")
        for node in self.nodes:
            table.add_row(*_training(node, 24), human_bytes(node.bytes_sent))
        return Group(_head(self.nodes, self.seconds_left), table)

    def line(self) -> str:
        """Return it in one line."""
        return "  |  ".join([_head(self.nodes, self.seconds_left).plain, *(_line(node) for node in self.nodes)])


@dataclass(frozen=True)
class Pipeline:
    """Nodes that hold different layers of one model."""

    nodes: tuple[NodeProcess, ...]
    seconds_left: float | None

    def panel(self) -> RenderableType:
        """Return what a terminal shows."""
        holders = _table("node", "layers", "first to last", "state", "its data", "base model", gap=1)
        training = _table("node", "loss", "", "tokens/s", "tokens", "rounds", "hidden states")
        for place, node in enumerate(self.nodes):
            bar = Text(_bar(node), style=_COLOURS[place % len(_COLOURS)])
            layers = node.layers.removeprefix("layers ") or "–"
            holders.add_row(node.name, layers, bar, node.state, data_of(node), model_of(node))
            training.add_row(*_training(node, 16), human_bytes(node.hidden_bytes))
        parts: list[RenderableType] = [_head(self.nodes, self.seconds_left), Text(""), holders, Text(""), training]
        return Group(*parts, Text(""), Text(self._meanwhile(), style="dim"))

    def line(self) -> str:
        """Return it in one line."""
        parts = [f"{_line(node)}, {node.layers or node.state}" for node in self.nodes]
        return "  |  ".join([_head(self.nodes, self.seconds_left).plain, *parts])

    def _meanwhile(self) -> str:
        """Return what a newcomer should know about what is going on."""
        missing = [node for node in self.nodes if node.missing]
        if missing:
            return f"{missing[0].name} waits. {missing[0].missing}"
        loading = [node for node in self.nodes if node.state != "training"]
        if loading:
            return f"{loading[0].name} is {loading[0].state}."
        return (
            "Texts never leave their owners, who hold embedding and head. Hidden states pass\n"
            "through the layers of all nodes, and their gradients come back the same way."
        )


def data_of(node: NodeProcess) -> str:
    """Return what a node trains on, for people."""
    return node.data.removesuffix(".jsonl") or "none"


def model_of(node: NodeProcess) -> str:
    """Return where a node has its part of the base model from, for people."""
    return f"{human_bytes(node.fetched_bytes)} fetched" if node.has_empty_cache else "own file"


def _head(nodes: tuple[NodeProcess, ...], seconds_left: float | None) -> Text:
    step = max((node.version for node in nodes), default=0)
    left = f"{human_seconds(max(0.0, seconds_left))} left" if seconds_left is not None else "getting ready"
    return Text.assemble(("potluck demo", "bold"), f"  {len(nodes)} peers  step {step}  {left}")


def _table(*columns: str, gap: int = 2) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, gap, 0, 0))
    for column in columns:
        is_number = column in {"loss", "tokens/s", "tokens", "rounds", "sent", "hidden states"}
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    return table


def _training(node: NodeProcess, curve_width: int) -> tuple[str | Text, ...]:
    curve = smoothed(node.losses)
    return (
        node.name,
        f"{curve[-1]:.3f}" if curve else "–",
        Text(sparkline(curve, curve_width), style="cyan"),
        f"{node.tokens_per_s:.0f}",
        str(node.tokens),
        str(node.rounds),
    )


def _line(node: NodeProcess) -> str:
    curve = smoothed(node.losses)
    if not node.data:
        return f"{node.name}: lends, {node.rounds} rounds"
    loss = f"loss {curve[-1]:.3f}" if curve else node.state
    return f"{node.name}: {loss}, {node.tokens_per_s:.0f} tokens/s, {node.rounds} rounds"


def _bar(node: NodeProcess) -> str:
    """Return the model from its first layer to its last, with what the node holds filled in."""
    edges = [_BAR_WIDTH * stage // node.num_stages for stage in (node.shard.first_stage, node.shard.stop_stage)]
    return "·" * edges[0] + "█" * (edges[1] - edges[0]) + "·" * (_BAR_WIDTH - edges[1])
