"""`potluck bootstrap`: a public meeting point for swarms."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import click
from platformdirs import user_data_path

from node.cli.common import is_terminal


@click.command("bootstrap")
@click.option(
    "--listen",
    multiple=True,
    metavar="MULTIADDR",
    help="Listen here. Default: /ip4/0.0.0.0/tcp/4040.",
)
@click.option("--announce", multiple=True, metavar="MULTIADDR", help="Tell others to dial this instead.")
@click.option(
    "--relay",
    is_flag=True,
    help="Pass on the traffic of nodes behind routers, encrypted as it is: of anybody who knows the address.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: user_data_path("potluck-bootstrap"),
    show_default="the platform's data folder",
    help="Folder of its key, so that its address stays.",
)
def command(listen: tuple[str, ...], announce: tuple[str, ...], relay: bool, home: Path) -> None:
    """Be a public meeting point for swarms, on a machine that everybody can dial.

    It needs no GPU, no model and no data, and takes part in no run: it keeps the announcements of nodes that know it,
    so that they find each other whoever else is gone. With --relay, nodes behind a router are reached through it until
    they have a way of their own.

    \b
    potluck bootstrap --relay
    potluck start recipe.yaml --data mine.jsonl --bootstrap /ip4/…/tcp/4040/p2p/Qm…
    """
    from node.host.home import Home

    place = Home(home)
    place.acquire()
    try:
        asyncio.run(_serve(place, listen or ("/ip4/0.0.0.0/tcp/4040",), announce, relays=relay))
    finally:
        place.release()


async def _serve(place: Any, listen: tuple[str, ...], announce: tuple[str, ...], *, relays: bool) -> None:
    from node.bootstrap import meet_here
    from node.core.text import printable

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)

    def ready(addresses: tuple[str, ...]) -> None:
        click.echo("Nodes meet here with:\n")
        for address in addresses:
            click.echo(f"--bootstrap {address}")
        click.echo()
        if is_terminal():
            from node.observe.qr import qr_code

            click.echo(qr_code(addresses[0], columns=shutil.get_terminal_size().columns))

    def say(text: str) -> None:
        click.echo(printable(text))

    await meet_here(place, listen, announce, relays=relays, ready=ready, say=say, ended=ended)
    click.echo("Ended.")
