"""`potluck init`: write a commented recipe."""

from __future__ import annotations

import json
from pathlib import Path

import click

from node.config.template import TEMPLATE
from node.core.errors import ConfigError


@click.command("init")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default=Path("recipe.yaml"))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def command(file: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Write a commented recipe to FILE (recipe.yaml)."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(TEMPLATE)
    except FileExistsError as error:
        raise ConfigError(f"{file} exists already", hint=f"potluck init {file} --force overwrites it") from error
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    next_command = f"potluck start {file} --data mine.jsonl"
    if as_json:
        click.echo(json.dumps({"recipe": str(file), "next": next_command}))
    elif not quiet:
        click.echo(f"Wrote {file}. Choose a model in it, then train on your data:\n\n{next_command}")
