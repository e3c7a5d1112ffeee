"""`potluck status`: the swarm as the node under a home sees it, once or for as long as one looks."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.common import home_option, is_terminal, json_option, print_json, quiet_option
from node.control.client import ControlClient
from node.core.text import escaped, printable

if TYPE_CHECKING:
    from node.v1 import control_pb2


@click.command("status")
@home_option
@click.option("-w", "--watch", is_flag=True, help="Go on showing it until the node ends; q or Ctrl-C leaves.")
@json_option
@quiet_option
def command(home: Path, watch: bool, as_json: bool, quiet: bool) -> None:
    """Show the swarm: peers, their state, tokens/s, rounds, loss, what this node gave.

    \b
    potluck status                   # once
    potluck status --watch           # a panel on a terminal, a line a step elsewhere
    potluck status --watch --json    # a line of JSON each second, for scripts
    """
    with ControlClient(home) as node:
        if watch:
            # who has looked enough has not interrupted anything
            with contextlib.suppress(KeyboardInterrupt):
                _watch(node, as_json=as_json, quiet=quiet)
            return
        status = node.status()
    if as_json:
        print_json(_plain(status))
        return
    if quiet:
        click.echo(_brief(status))
        return
    from rich.console import Console

    from node.observe.status import render_status

    Console().print(render_status(status))


def _watch(node: ControlClient, *, as_json: bool, quiet: bool) -> None:
    from rich.console import Console

    from node.observe.watch import INTERVAL_S, statuses, watch_live, watch_plain

    def wait() -> bool:
        time.sleep(INTERVAL_S)
        return True

    if as_json:
        for status in statuses(node, wait):
            sys.stdout.write(escaped(json.dumps(_plain(status), ensure_ascii=False)) + "\n")
            sys.stdout.flush()
    elif quiet:
        for status in statuses(node, wait):
            click.echo(_brief(status))
    elif is_terminal():
        if watch_live(node, Console()):
            click.echo("The node has ended.")
    else:
        watch_plain(node, click.echo, wait)


def _plain(status: control_pb2.GetStatusResponse) -> object:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _brief(status: control_pb2.GetStatusResponse) -> str:
    return printable(f"{status.state} step {status.version}/{status.max_steps} {len(status.peers)} peers")
