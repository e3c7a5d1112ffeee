"""`potluck status`: the swarm as the node under a home sees it."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import home_option, json_option, print_json, quiet_option
from node.control.client import ControlClient


@click.command("status")
@home_option
@json_option
@quiet_option
def command(home: Path, as_json: bool, quiet: bool) -> None:
    """Show the swarm: peers, their state, tokens/s, rounds, loss, what this node gave."""
    with ControlClient(home) as node:
        status = node.status()
    if as_json:
        from google.protobuf.json_format import MessageToDict

        print_json(MessageToDict(status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        return
    if quiet:
        click.echo(f"{status.state} step {status.version}/{status.max_steps} {len(status.peers)} peers")
        return
    from rich.console import Console

    from node.observe.status import render_status

    Console().print(render_status(status))
