"""`potluck export`: the adapter as files that other programs read."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.common import home_option, json_option, many_imports, print_json, quiet_option


@click.group("export")
def command() -> None:
    """Write the adapter as files that other programs read.

    Works while the node runs and after it.
    """


@command.command("peft")
@home_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)
@click.option("--force", is_flag=True, help="Move aside what is there, even if Potluck did not write it.")
@json_option
@quiet_option
def peft(home: Path, output: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Write an ordinary PEFT adapter folder with a model card.

    \b
    Use it with transformers and peft:
        PeftModel.from_pretrained(base_model, "OUTPUT")
    """
    with many_imports():
        from node.export.peft import write_adapter
        from node.result import open_result
        from node.specs import lora_spec

    result = open_result(home)
    size = write_adapter(
        output,
        result.tensors,
        lora_spec(result.recipe),
        base_model=result.recipe.base_model,
        card=result.card(),
        force=force,
    )
    if as_json:
        print_json({"output": str(output), "step": result.version, "bytes": size})
    elif not quiet:
        click.echo(f"Wrote step {result.version} to {output} ({size / 1e6:.1f} MB).")
        click.echo(f'Use it:  PeftModel.from_pretrained(base_model, "{output}")')
