"""`potluck eval`: held-out loss and perplexity of the base model and of the adapter."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import home_option, json_option, many_imports, print_json, quiet_option


@click.command("eval")
@home_option
@click.option(
    "--data",
    "data",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Score these files whole instead of the run's held-out split; may be given several times.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
@quiet_option
def command(home: Path, data: tuple[Path, ...], device: str, as_json: bool, quiet: bool) -> None:
    """Held-out loss and perplexity of the base model and of the adapter.

    Scores the examples that the run held out from this node's own data. Nothing leaves this machine.
    """
    import asyncio

    with many_imports():
        from node.evaluation import evaluate_result
        from node.observe.status import perplexity
        from node.result import open_result

    result = open_result(home, data=data)
    base, tuned = asyncio.run(evaluate_result(result, home, device=device, whole=bool(data)))
    if as_json:
        print_json(
            {
                "step": result.version,
                "labels": tuned.labels,
                "base": {"loss": base.loss, "perplexity": perplexity(base.loss)},
                "adapter": {"loss": tuned.loss, "perplexity": perplexity(tuned.loss)},
            }
        )
        return
    if quiet:
        click.echo(f"{base.loss:.4f} {tuned.loss:.4f}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.name}, step {result.version}, {tuned.labels} held-out tokens", title_justify="left")
    for column in ("", "loss", "perplexity"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("base model", f"{base.loss:.3f}", f"{perplexity(base.loss):.2f}")
    table.add_row("with the adapter", f"{tuned.loss:.3f}", f"{perplexity(tuned.loss):.2f}")
    Console().print(table)
