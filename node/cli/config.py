"""`potluck config`: look at a recipe as Potluck reads it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from node.config.load import load_recipe, schema, show


@click.group("config")
def command() -> None:
    """Look at a recipe as Potluck reads it."""


@command.command("show")
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set one key, for example --set lora_r=8.")
@click.option("--json", "as_json", is_flag=True, help="Print the recipe, its notes and origins as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Only check: print nothing but errors.")
def show_command(recipe: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Print RECIPE with every value and where it came from."""
    loaded = load_recipe(recipe, overrides)
    if as_json:
        record = {"recipe": loaded.recipe.model_dump(mode="json"), "notes": loaded.notes, "origins": loaded.origins}
        click.echo(json.dumps(record))
    elif not quiet:
        click.echo(show(loaded), nl=False)
        for note in loaded.notes:
            click.echo(f"# note: {note}")


@command.command("schema")
def schema_command() -> None:
    """Print the JSON schema of a recipe."""
    click.echo(json.dumps(schema(), indent=2))
