"""How a demo looks: a live picture while it trains, plain lines where there is no terminal, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from node.demo.plot import NodeOutcome, Outcome, Picture, Scores
from node.observe.status import human_bytes

_PLAIN_EVERY_S = 15.0


class Show:
    """Draws a demo; use it as a context manager."""

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

    def draw(self, picture: Picture) -> None:
        """Show the nodes at work."""
        if self._live is not None:
            if not self._is_drawing:
                self._live.start()
                self._is_drawing = True
            self._live.update(picture.panel())
        elif not self._quiet and time.monotonic() - self._last_plain > _PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            self._console.print(picture.line(), highlight=False, markup=False, soft_wrap=True)

    def results(self, outcome: Outcome) -> None:
        """Show the end."""
        self._end_drawing()
        self._console.print(_table(outcome))
        self._console.print(Text.assemble(("\nAsked: ", "dim"), outcome.question))
        self._console.print(Text.assemble(("\nBase model:\n", "dim"), outcome.base_answer))
        self._console.print(Text.assemble(("\nWith the adapter:\n", "dim"), outcome.tuned_answer))
        self._console.print(Text(f"\nThe adapter is in {outcome.adapter_folder} (an ordinary PEFT folder)."))
        self._console.print(Text("The same on real PCs, one command on each:", style="bold"))
        for command in outcome.commands:
            self._console.print(Text(f"  {command}"), soft_wrap=True)
        self._console.print(Text(outcome.remark, style="dim"), soft_wrap=True)

    def _end_drawing(self) -> None:
        if self._live is not None and self._is_drawing:
            self._live.stop()
            self._is_drawing = False


def _table(outcome: Outcome) -> Table:
    table = Table(title=f"After {outcome.steps} steps together", title_justify="left")
    table.add_column("")
    for node in outcome.nodes:
        table.add_column(Text(node.name), justify="right")
    rows: tuple[tuple[str, Callable[[NodeOutcome], str]], ...] = (
        ("its own data", lambda node: node.data),
        ("layers held", lambda node: node.layers),
        ("base model from", lambda node: node.base_model),
        ("tokens seen", lambda node: f"{node.tokens:,}"),
        ("rounds", lambda node: str(node.rounds)),
        ("bytes sent", lambda node: human_bytes(node.bytes_sent)),
        ("held-out loss, base model", _score(lambda scores: f"{scores.base_loss:.3f}")),
        ("held-out loss, adapter", _score(lambda scores: f"{scores.loss:.3f}")),
        ("perplexity, base model", _score(lambda scores: f"{scores.base_perplexity:.1f}")),
        ("perplexity, adapter", _score(lambda scores: f"{scores.perplexity:.1f}")),
    )
    for name, value in rows:
        cells = [value(node) for node in outcome.nodes]
        if any(cells):
            table.add_row(name, *cells)
    return table


def _score(value: Callable[[Scores], str]) -> Callable[[NodeOutcome], str]:
    return lambda node: value(node.scores) if node.scores is not None else "–"
