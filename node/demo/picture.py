"""The nodes at work, drawn: a table for nodes that hold the same, and who holds what for those that do not."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from node.demo.process import NodeProcess
from node.observe.progress import smoothed, sparkline
from node.observe.status import human_bytes, human_seconds

_CURVE_WIDTH = 24
_BAR_WIDTH = 30
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
            table.add_row(*_training(node), human_bytes(node.bytes_sent))
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
        holders = _table("node", "holds of the model", "", "state", "its data", "base model from")
        training = _table("node", "loss", "", "tokens/s", "tokens", "rounds", "hidden states")
        for place, node in enumerate(self.nodes):
            bar = Text(_bar(node), style=_COLOURS[place % len(_COLOURS)])
            holders.add_row(node.name, bar, node.layers or "–", node.state, _data(node), base_model(node))
            training.add_row(*_training(node), f"{human_bytes(node.hidden_bytes)} sent")
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
            "Texts stay with their owners, who hold the embedding and the head; hidden states go through all layers, "
            "and their gradients back."
        )


def base_model(node: NodeProcess) -> str:
    """Return where a node has its part of the base model from."""
    return f"the others: {human_bytes(node.fetched_bytes)}" if node.has_empty_cache else "its disk"


def _head(nodes: tuple[NodeProcess, ...], seconds_left: float | None) -> Text:
    step = max((node.version for node in nodes), default=0)
    left = f"{human_seconds(max(0.0, seconds_left))} left" if seconds_left is not None else "getting ready"
    return Text.assemble(("potluck demo", "bold"), f"  {len(nodes)} peers  step {step}  {left}")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        is_number = column in {"loss", "tokens/s", "tokens", "rounds", "sent", "hidden states"}
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    return table


def _training(node: NodeProcess) -> tuple[str | Text, ...]:
    curve = smoothed(node.losses)
    return (
        node.name,
        f"{curve[-1]:.3f}" if curve else "–",
        Text(sparkline(curve, _CURVE_WIDTH), style="cyan"),
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


def _data(node: NodeProcess) -> str:
    return node.data or "none: it lends"
