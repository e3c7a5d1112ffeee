"""`potluck doctor`: what keeps this machine from training or from being reached, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.common import home_option, json_option, model_cache, print_json

if TYPE_CHECKING:
    from node.doctor.finding import Finding

_EXIT_CANNOT_TRAIN = 1
_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red"}


@click.command("doctor")
@click.argument("recipe", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--address",
    metavar="MULTIADDR",
    help="A node of the swarm to join: compares versions and clocks, and lets it knock at this machine's port.",
)
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where the node is going to listen.")
@home_option
@json_option
def command(
    recipe: Path | None,
    address: str | None,
    device: str | None,
    listen: tuple[str, ...],
    home: Path,
    as_json: bool,
) -> None:
    """Examine this machine: one line each, and for each line that is not ok what to do.

    Looks at Python, libraries, device, 4-bit kernels, GPU and driver, memory, disk, ports and addresses; with RECIPE at
    its base model; with --address at that swarm: versions, clock, whether its node reaches this one. Changes nothing.

    Ends with code 1 if a line says FAIL: training cannot start. A warning leaves the code 0.

    \b
    potluck doctor
    potluck doctor recipe.yaml
    potluck doctor --address /ip4/192.168.1.20/tcp/4040/p2p/Qm…
    """
    from node.doctor import packages
    from node.doctor.finding import Level, as_record, can_train

    findings: list[Finding] = []

    def add(finding: Finding) -> bool:
        findings.append(finding)
        if not as_json:
            _print(finding)
        return finding.level is not Level.FAIL

    add(packages.python())
    if add(packages.libraries()):
        from node.config.load import load_recipe
        from node.config.local import load_local
        from node.doctor.examine import examine

        settings = load_local(None, device=device, listen=listen)
        wanted = load_recipe(recipe).recipe if recipe is not None else None
        for finding in examine(home, settings, wanted, address, model_cache()):
            add(finding)
    is_able = can_train(findings)
    if as_json:
        print_json({"can_train": is_able, "findings": [as_record(finding) for finding in findings]})
    elif not is_able:
        click.echo("Training cannot start here until what says FAIL is repaired.")
    if not is_able:
        click.get_current_context().exit(_EXIT_CANNOT_TRAIN)


def _print(finding: Finding) -> None:
    from node.core.text import printable

    level = click.style(f"{finding.level.value:<5}", fg=_COLOURS[finding.level.value])
    click.echo(f"{level} {finding.name:<13} {printable(finding.text)}")
    if finding.fix:
        click.echo(f"{'':<19} → {printable(finding.fix)}")
