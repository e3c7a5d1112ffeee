"""How the demo looks: a live table while it trains, plain lines where there is no terminal, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from node.demo.process import NodeProcess
from node.demo.run import NodeOutcome, Outcome
from node.observe.progress import smoothed, sparkline
from node.observe.status import human_bytes, human_seconds

_PLAIN_EVERY_S = 15.0
_NEW_ADDRESS = "/ip4/<first PC>/tcp/4040/p2p/<its id>"


class Show:
    """Draws the demo; use it as a context manager."""

    def __init__(self, console: Console, *, live: bool, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._live = Live(console=console, refresh_per_second=4, transient=True) if live else None
        self._is_drawing = False
        self._last_plain = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_drawing()

    def say(self, line: str) -> None:
        """Show one line."""
        self._end_drawing()
        if not self._quiet:
            self._console.print(Text(line), soft_wrap=True)

    def training(self, nodes: list[NodeProcess], seconds_left: float) -> None:
        """Show the nodes at work."""
        if self._live is not None:
            if not self._is_drawing:
                self._live.start()
                self._is_drawing = True
            self._live.update(_panel(nodes, seconds_left))
        elif not self._quiet and time.monotonic() - self._last_plain > _PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            self._console.print(_plain(nodes, seconds_left), highlight=False, soft_wrap=True)

    def results(self, outcome: Outcome) -> None:
        """Show the end."""
        self._end_drawing()
        self._console.print(_table(outcome))
        self._console.print(Text.assemble(("\nAsked: ", "dim"), outcome.question))
        self._console.print(Text.assemble(("\nBase model:\n", "dim"), outcome.base_answer))
        self._console.print(Text.assemble(("\nWith the adapter:\n", "dim"), outcome.tuned_answer))
        self._console.print(Text(f"\nThe adapter is in {outcome.adapter_folder} (an ordinary PEFT folder)."))
        self._console.print(Text("The same on two real PCs:", style="bold"))
        self._console.print(Text(f"  potluck start {outcome.recipe} --data mine.jsonl"), soft_wrap=True)
        self._console.print(Text(f"  potluck join {_NEW_ADDRESS} --data theirs.jsonl"), soft_wrap=True)
        self._console.print(
            Text("The second PC needs the same model file; name it there with --base-model.", style="dim")
        )

    def _end_drawing(self) -> None:
        if self._live is not None and self._is_drawing:
            self._live.stop()
            self._is_drawing = False


def _panel(nodes: list[NodeProcess], seconds_left: float) -> RenderableType:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("node", "loss", "", "tokens/s", "tokens", "rounds", "sent"):
        table.add_column(column, justify="left" if column in {"node", ""} else "right", no_wrap=True)
    for node in nodes:
        curve = smoothed(node.losses)
        loss = f"{curve[-1]:.3f}" if curve else "–"
        table.add_row(
            node.name,
            loss,
            Text(sparkline(curve, 24), style="cyan"),
            f"{node.tokens_per_s:.0f}",
            str(node.tokens),
            str(node.rounds),
            human_bytes(node.bytes_sent),
        )
    step = max(node.version for node in nodes)
    head = Text.assemble(
        ("potluck demo", "bold"), f"  {len(nodes)} peers  step {step}  {human_seconds(seconds_left)} left"
    )
    return Group(head, table)


def _plain(nodes: list[NodeProcess], seconds_left: float) -> str:
    step = max(node.version for node in nodes)
    parts = [f"step {step}  {len(nodes)} peers  {human_seconds(seconds_left)} left"]
    for node in nodes:
        curve = smoothed(node.losses)
        loss = f"loss {curve[-1]:.3f}" if curve else "starting"
        parts.append(f"{node.name}: {loss}, {node.tokens_per_s:.0f} tokens/s, {node.rounds} rounds")
    return "  |  ".join(parts)


def _table(outcome: Outcome) -> Table:
    table = Table(title=f"After {outcome.steps} steps together", title_justify="left")
    table.add_column("")
    for node in outcome.nodes:
        table.add_column(Text(node.name), justify="right")
    rows: tuple[tuple[str, Callable[[NodeOutcome], str]], ...] = (
        ("its own data", lambda node: node.data),
        ("tokens seen", lambda node: f"{node.tokens:,}"),
        ("rounds", lambda node: str(node.rounds)),
        ("bytes sent", lambda node: human_bytes(node.bytes_sent)),
        ("held-out loss, base model", lambda node: f"{node.base['loss']:.3f}"),
        ("held-out loss, with the adapter", lambda node: f"{node.adapter['loss']:.3f}"),
        ("perplexity, base model", lambda node: f"{node.base['perplexity']:.1f}"),
        ("perplexity, with the adapter", lambda node: f"{node.adapter['perplexity']:.1f}"),
    )
    for name, value in rows:
        table.add_row(name, *(value(node) for node in outcome.nodes))
    return table
