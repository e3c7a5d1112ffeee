"""What the person at a node's terminal sees: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from node.core.events import (
    AdapterSynced,
    CheckpointSaved,
    Evaluated,
    Event,
    Fault,
    Holding,
    MicrobatchDone,
    MicrobatchRetried,
    PeerLost,
    PeerSeen,
    RoundFinished,
    StagesFound,
    StagesMissing,
    StateChanged,
    Stepped,
    WorkLost,
)
from node.core.text import printable
from node.core.types import RoundStatus
from node.observe.status import human_layers, human_peers, human_seconds, perplexity, shown
from node.v1 import control_pb2

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 40
_SHOWN_NEWS = 6
_MAX_LINE = 1000

StatusSource = Callable[[], control_pb2.GetStatusResponse]


def sparkline(values: list[float], width: int = _CURVE_POINTS) -> str:
    """Return the values as a row of block characters, the latest `width` of them."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] for value in shown)


def headline(event: Event) -> str | None:
    """Return what an event means in one line for people, or None if it is not news.

    Names and reasons in it may be others': nothing is in it that could control a terminal, and it is not long.
    """
    line = _line(event)
    return printable(line)[:_MAX_LINE] if line is not None else None


def _line(event: Event) -> str | None:
    match event:
        case StateChanged(_, after, reason):
            return f"{after}{': ' + reason if reason else ''}"
        case PeerSeen(_, name):
            return f"{name} is here"
        case PeerLost(_, reason):
            return reason
        case Holding(first, stop, num_stages, layers) if num_stages > 1:
            held = (
                f"stages {first}-{stop - 1}" if stop - first > 1 else f"stage {first}" if stop > first else "no stage"
            )
            return f"this node holds {held} of {num_stages} ({layers})"
        case StagesMissing(message, hint):
            return f"{message} {hint}".strip()
        case StagesFound():
            return "all layers are here; training goes on"
        case MicrobatchRetried(_, reason):
            return reason
        case AdapterSynced(peer_id, version, size, reason):
            return f"fetched step {version} from …{peer_id[-6:]} ({size / 1e6:.1f} MB): {reason}"
        case Evaluated(version, loss, labels):
            return f"held-out loss {loss:.3f} (perplexity {perplexity(loss):.1f}) at step {version}, {labels} tokens"
        case RoundFinished(result) if result.status is RoundStatus.DROPPED:
            return f"round for step {result.version + 1} dropped, nothing lost: {result.reason}"
        case WorkLost(tokens):
            return f"{tokens} tokens of this node were in rounds that the swarm did not keep"
        case CheckpointSaved(version, seconds, size) if seconds > 2:
            return f"saved step {version} ({size / 1e6:.0f} MB in {seconds:.1f} s)"
        case Fault(what, hint):
            return f"{what} {hint}".strip()
        case _:
            return None


class PlainProgress:
    """One line a step and one a piece of news, for pipes and logs."""

    def __init__(self, status: StatusSource, say: Callable[[str], None]) -> None:
        self._status = status
        self._say = say

    def __call__(self, event: Event) -> None:
        """Print what is worth a line."""
        if isinstance(event, Stepped):
            self._say(self._step(event))
        elif (line := headline(event)) is not None:
            self._say(line)

    def _step(self, event: Stepped) -> str:
        status = self._status()
        parts = [f"step {event.version}/{status.max_steps}"]
        if status.HasField("loss"):
            parts.append(f"loss {status.loss:.3f}")
        parts += [f"{status.tokens_per_s:.0f} tokens/s", human_peers(len(status.peers))]
        if status.rounds and status.rounds[-1].members > 1:
            parts.append(f"round {status.rounds[-1].seconds:.2f} s")
        if status.HasField("seconds_left"):
            parts.append(f"{human_seconds(status.seconds_left)} left")
        return "  ".join(parts)


class LiveProgress:
    """A panel that redraws itself; news scroll above it. Use it as a context manager."""

    def __init__(self, status: StatusSource, console: Console) -> None:
        self._status = status
        self._losses: deque[float] = deque(maxlen=400)
        self._news: deque[str] = deque(maxlen=_SHOWN_NEWS)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in an event; drawing happens on its own clock."""
        if isinstance(event, MicrobatchDone):
            self._losses.append(event.loss)
        elif (line := headline(event)) is not None:
            self._news.append(f"{time.strftime('%H:%M:%S')}  {line}")

    def _render(self) -> RenderableType:
        status = self._status()
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column()
        if status.max_steps:
            done = f"{status.version}/{status.max_steps}"
            rows.add_row("steps", Group(ProgressBar(total=status.max_steps, completed=status.version, width=40)))
            left = human_seconds(status.seconds_left) if status.HasField("seconds_left") else "–"
            rows.add_row("", Text(f"{done}, {left} left"))
        loss = f"{status.loss:.3f}" if status.HasField("loss") else "–"
        rows.add_row("loss", Text.assemble((loss, "bold"), "  ", (sparkline(smoothed(self._losses)), "cyan")))
        if status.HasField("held_out_loss"):
            rows.add_row("held-out", Text(f"{status.held_out_loss:.3f}"))
        share = 100 * status.tokens_towards_next / status.target_batch_tokens if status.target_batch_tokens else 0
        rows.add_row("next round", Text(f"{min(share, 100):.0f} %"))
        rows.add_row("speed", Text(f"{status.tokens_per_s:.0f} tokens/s, {human_peers(len(status.peers))}"))
        for peer in status.peers:
            mark = "this node" if peer.is_me else f"…{peer.peer_id[-6:]}"
            layers = f"  {human_layers(peer)}" if status.num_stages > 1 else ""
            rows.add_row(
                "", Text(f"{shown(peer.name)} ({mark})  {peer.state}{layers}  {peer.tokens_per_s:.0f} tokens/s")
            )
        news = [Text(line, style="dim") for line in self._news]
        return Group(Text(f"potluck · {status.state}", style="bold"), rows, *news)


def smoothed(losses: deque[float]) -> list[float]:
    """Return the exponential moving average of the losses."""
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else 0.8 * smooth[-1] + 0.2 * loss)
    return smooth
