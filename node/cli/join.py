"""`potluck join`: take part in a swarm, given the address of any of its nodes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from node.cli.running import node_options, run_node


@click.command("join")
@click.argument("address")
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take `datasets` from this recipe; refuse to join if the rest is not the swarm's.",
)
@node_options
def command(address: str, recipe_path: Path | None, **options: Any) -> None:
    """Join the swarm of the node at ADDRESS, and train along on your own data.

    ADDRESS is what `potluck start` or `potluck status` printed on any node of the swarm. The recipe and the state of
    the training come from the swarm; the data is yours and stays here.

    \b
    potluck join /ip4/192.168.1.20/tcp/4040/p2p/Qm… --data theirs.jsonl
    potluck join /ip4/192.168.1.20/tcp/4040/p2p/Qm… --lend
    """
    recipe = None
    if recipe_path is not None:
        from node.config.load import load_recipe

        recipe = load_recipe(recipe_path).recipe
    run_node(recipe=recipe, address=address, resume_command="potluck " + shlex.join(sys.argv[1:]), **options)
