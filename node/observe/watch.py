"""`potluck status --watch`: ask a running node each second, and show it until it ends or the person leaves."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.live import Live

from node.core.errors import NotRunning
from node.host.gpus import Gpus
from node.observe.panel import panel, step_line
from node.observe.status import human_peers, shown
from node.v1 import control_pb2

INTERVAL_S = 1.0
_KEPT_LOSSES = 400


class Watched(Protocol):
    """A node that can be asked."""

    def status(self) -> control_pb2.GetStatusResponse:
        """Return the swarm as the node sees it.

        Raises:
            NotRunning: it has ended.
        """


def statuses(node: Watched, wants_more: Callable[[], bool]) -> Iterator[control_pb2.GetStatusResponse]:
    """Yield the node's status again and again until it has ended, or no more is wanted.

    Args:
        node: The node; if it does not answer the first time, that is an error.
        wants_more: Waits till it is time to ask again; False to leave.

    Raises:
        NotRunning: it never answered.
    """
    yield node.status()
    while wants_more():
        try:
            status = node.status()
        except NotRunning:
            return
        yield status


def watch_plain(node: Watched, say: Callable[[str], None], wants_more: Callable[[], bool]) -> None:
    """Print a line for each step and each change of state or peers.

    Raises:
        NotRunning: the node never answered.
    """
    before = None
    for status in statuses(node, wants_more):
        now = (status.version, status.state, len(status.peers))
        if before is None or now[1:] != before[1:]:
            say(f"{shown(status.state, 32)}, {human_peers(len(status.peers))}")
        if before is None or now[0] != before[0]:
            say(step_line(status, status.version))
        before = now
    say("The node has ended.")


def watch_live(node: Watched, console: Console) -> bool:
    """Show a panel that is redrawn each second; return whether the node has ended, rather than that `q` was pressed.

    Raises:
        NotRunning: the node never answered.
    """
    losses: list[float] = []
    version, gpus, has_left = -1, Gpus(), False

    def wants_more() -> bool:
        nonlocal has_left
        has_left = not waits_without_q()
        return not has_left

    with _keys(), Live(console=console, auto_refresh=False) as live:
        for status in statuses(node, wants_more):
            if status.HasField("loss") and status.version != version:
                version = status.version
                losses = [*losses, status.loss][-_KEPT_LOSSES:]
            live.update(panel(status, losses, gpus.read()), refresh=True)
    return not has_left


def waits_without_q(seconds: float = INTERVAL_S) -> bool:
    """Wait; return False at once if the person presses `q`."""
    until = time.monotonic() + seconds
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return True
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
            return False
    return True


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Let single keys through without Enter, and without showing them."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
