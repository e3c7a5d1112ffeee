"""`potluck start`: found a swarm, or take up the one that the same recipe made here before."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from node.cli.running import node_options, run_node


@click.command("start")
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe.")
@node_options
def command(recipe: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Found a swarm that trains RECIPE, and train.

    Prints one line that lets others join. Works alone from the first moment; others may come and go. Ctrl-C saves
    and leaves; the same command goes on where it stopped.

    \b
    potluck init recipe.yaml
    potluck start recipe.yaml --data mine.jsonl
    """
    from node.config.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    if not options["quiet"] and options["log_format"] == "text":
        for note in loaded.notes:
            click.echo(f"note: {note}")
    run_node(
        recipe=loaded.recipe,
        address=None,
        resume_command="potluck " + shlex.join(sys.argv[1:]),
        **options,
    )
