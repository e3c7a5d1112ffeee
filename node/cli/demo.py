"""`potluck demo`: see it work, on one machine, in a few minutes, with nothing to prepare."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import is_terminal, model_cache, quiet_option


@click.command("demo")
@click.option(
    "--pipeline",
    is_flag=True,
    help="Three nodes, each with a third of the model's layers, instead of two with all of them.",
)
@click.option("--minutes", type=click.FloatRange(0.2, 600), default=3.0, show_default=True, help="How long to train.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("potluck-demo"),
    show_default=True,
    help="Folder for the nodes' homes, their data and the adapter.",
)
@quiet_option
def command(pipeline: bool, minutes: float, output: Path, quiet: bool) -> None:
    """See it work: a few nodes on this machine train a small model together.

    Two real nodes, each with data of its own, find each other over loopback and train one adapter for
    SmolLM2-135M-Instruct. One has Python's language reference, the other questions and answers made of the standard
    library's docstrings. Needs no GPU and, once the model is there, no network.

    With --pipeline the model is cut in three, and no node may hold more than a third: one has data and the model, one
    lends its memory and has no data, and one has data but fetches its part of the model from the others.
    """
    from rich.console import Console

    from node.demo.show import Show

    console = Console()
    with Show(console, live=is_terminal() and not quiet, quiet=quiet) as show:
        if pipeline:
            from node.demo.pipeline import run_pipeline_demo as run
        else:
            from node.demo.run import run_demo as run
        run(output.absolute(), minutes=minutes, cache=model_cache(), screen=show)
