"""`potluck stop`: let the node under a home save, leave and end."""

from __future__ import annotations

import time
from pathlib import Path

import click

from node.cli.common import home_option, quiet_option
from node.control.client import ControlClient, running_pid
from node.core.errors import NotRunning

_PATIENCE_S = 60.0


@click.command("stop")
@home_option
@quiet_option
def command(home: Path, quiet: bool) -> None:
    """Let the running node save, leave and end.

    The same as Ctrl-C in the node's own terminal. Returns when the node has ended.
    """
    with ControlClient(home) as node:
        node.stop()
    deadline = time.monotonic() + _PATIENCE_S
    while running_pid(home) is not None:
        if time.monotonic() > deadline:
            raise NotRunning(
                f"The node under {home} is still busy after {_PATIENCE_S:.0f} s.",
                hint=f"It may be saving to a slow disk. Its process id is {running_pid(home)}.",
            )
        time.sleep(0.1)
    if not quiet:
        click.echo("The node has saved and left.")
