"""`potluck join`: take part in a swarm, given the address of any of its nodes or found on the local network."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from node.cli.running import node_options, run_node


@click.command("join")
@click.argument("address", required=False)
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take `datasets` from this recipe; refuse to join if the rest is not the swarm's.",
)
@click.option("-y", "--yes", is_flag=True, help="Without ADDRESS: join the only swarm there is, with no question.")
@node_options
def command(address: str | None, recipe_path: Path | None, yes: bool, **options: Any) -> None:
    """Join the swarm of the node at ADDRESS, and train along on your own data.

    ADDRESS is what `potluck start` or `potluck status` printed on any node of the swarm, or its coordinator's. Without
    it, the swarms on the local network are listed to choose from. The recipe and the state of the training come from
    the swarm; the data is yours and stays here.

    \b
    potluck join --data theirs.jsonl
    potluck join /ip4/192.168.1.20/tcp/4040/p2p/Qm… --data theirs.jsonl
    potluck join /ip4/192.168.1.20/tcp/4040/p2p/Qm… --lend
    """
    if address is not None:
        _refuse_what_is_none(address)
    recipe = None
    if recipe_path is not None:
        from node.config.load import load_recipe

        recipe = load_recipe(recipe_path).recipe
    arguments = sys.argv[1:]
    if address is None:
        from node.cli.nearby import choose_nearby

        address = choose_nearby(yes=yes)
        arguments = ["join", address, *(a for a in arguments[1:] if a not in ("-y", "--yes"))]
    run_node(recipe=recipe, address=address, resume_command="potluck " + shlex.join(arguments), **options)


def _refuse_what_is_none(address: str) -> None:
    """Say at once that an address is none, and not after the seconds that loading what trains takes."""
    from coordinator.address import is_coordinator_address
    from node.network.addresses import parse_coordinator, split_peer_id

    (parse_coordinator if is_coordinator_address(address) else split_peer_id)(address)
