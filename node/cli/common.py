"""What several verbs share: the options for the home and the output, and how the home is laid out."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from platformdirs import user_cache_path, user_data_path

from node.core.text import escaped

F = TypeVar("F", bound=Callable[..., Any])

home_option: Callable[[F], F] = click.option(
    "--home",
    envvar="POTLUCK_HOME",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: user_data_path("potluck"),
    show_default="the platform's data folder",
    show_envvar=True,
    help="Folder for this node's identity, checkpoints and logs; one per node.",
)
json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
quiet_option: Callable[[F], F] = click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")


@contextlib.contextmanager
def many_imports() -> Iterator[None]:
    """Collect no garbage meanwhile, and never what is there afterwards: a second is spent on modules that all stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def model_cache() -> Path:
    """Return the folder in which converted models are kept."""
    return user_cache_path("potluck") / "models"


def print_json(value: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(escaped(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def is_terminal() -> bool:
    """Return whether a person is looking at the output."""
    return sys.stdout.isatty()
