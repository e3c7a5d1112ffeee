"""What the person at a node's terminal sees: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from node.core.events import (
    AdapterSynced,
    CheckpointSaved,
    CoordinatorFound,
    CoordinatorLost,
    Evaluated,
    Event,
    Fault,
    Holding,
    MicrobatchDone,
    MicrobatchRetried,
    OperatorSaid,
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
from node.host.gpus import Gpus
from node.observe.panel import panel, step_line
from node.observe.status import perplexity
from node.v1 import control_pb2

_SHOWN_NEWS = 6
_MAX_LINE = 1000

StatusSource = Callable[[], control_pb2.GetStatusResponse]


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
        case CoordinatorFound(target):
            return f"the coordinator at {target} is there"
        case CoordinatorLost(target, reason):
            return f"the coordinator at {target} is not there, which training does without: {reason}"
        case OperatorSaid(what):
            return f"the swarm's operator has {what} the run"
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
            self._say(step_line(self._status(), event.version))
        elif (line := headline(event)) is not None:
            self._say(line)


class LiveProgress:
    """A panel that redraws itself; news scroll above it. Use it as a context manager."""

    def __init__(self, status: StatusSource, console: Console) -> None:
        self._status = status
        self._losses: deque[float] = deque(maxlen=400)
        self._news: deque[str] = deque(maxlen=_SHOWN_NEWS)
        self._gpus = Gpus()
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
        news = [Text(line, style="dim") for line in self._news]
        return Group(panel(self._status(), list(self._losses), self._gpus.read()), *news)
