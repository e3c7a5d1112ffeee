"""`potluck join` without an address: which swarms are on the local network, and which of them is meant."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from node.core.errors import ConfigError, NoPeerReachable

if TYPE_CHECKING:
    from node.network.lan import LanSwarm

_NOTHING_FOUND = (
    "Is the other machine in the same network (not in a guest Wi-Fi), and `potluck start` running there without "
    "--no-lan? A firewall must let UDP 5353 through here and there. An address always works: "
    "`potluck join /ip4/…/tcp/4040/p2p/Qm…`, as `potluck status` there prints it. `potluck doctor` examines this "
    "machine."
)


def choose_nearby(*, yes: bool) -> str:
    """Look around, let the person choose, and return the address of a node of the chosen swarm.

    Args:
        yes: Take the only one without a question.

    Raises:
        NoPeerReachable: no swarm names itself on the local network, or the chosen one does not answer.
        ConfigError: there is a choice to make and nobody at a terminal to make it.
    """
    from node.network.interfaces import lan_interfaces, local_interfaces
    from node.network.lan import LOOK_S, find_swarms, first_that_answers

    click.echo(f"Looking for swarms on the local network for {LOOK_S:.0f} seconds.", err=True)
    interfaces = lan_interfaces(local_interfaces())
    if not interfaces:
        raise NoPeerReachable("This machine is in no local network.", hint=_NOTHING_FOUND)
    try:
        swarms = asyncio.run(find_swarms(interfaces))
    except OSError as error:
        raise NoPeerReachable(f"Cannot look for swarms here: {error.strerror}.", hint=_NOTHING_FOUND) from error
    if not swarms:
        raise NoPeerReachable("No swarm names itself on the local network.", hint=_NOTHING_FOUND)
    swarm = _choose(swarms, yes=yes)
    address = asyncio.run(first_that_answers(swarm.addresses))
    if address is None:
        raise NoPeerReachable(
            f"None of its nodes answers: {', '.join(swarm.addresses[:4])}.",
            hint="Open their TCP port in the firewall of that machine: `potluck doctor` there says how.",
        )
    return address


def _choose(swarms: list[LanSwarm], *, yes: bool) -> LanSwarm:
    if yes and len(swarms) == 1:
        click.echo(describe(swarms[0]), err=True)
        return swarms[0]
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        several = f"There are {len(swarms)} swarms" if len(swarms) > 1 else "There is a swarm"
        lines = "\n".join(f"  potluck join {swarm.addresses[0]}    # {describe(swarm)}" for swarm in swarms)
        raise ConfigError(
            f"{several} on the local network:\n{lines}",
            hint="Give one of these lines"
            + ("." if len(swarms) > 1 else ", or --yes to join it.")
            + " (There is no terminal to ask at.)",
        )
    for number, swarm in enumerate(swarms, 1):
        click.echo(f"  {number}  {describe(swarm)}", err=True)
    number = click.prompt("Which one to join", type=click.IntRange(1, len(swarms)), default=1, err=True)
    return swarms[number - 1]


def describe(swarm: LanSwarm) -> str:
    """Return a swarm in one line."""
    from node.core.versions import PROTOCOL

    peers = "1 peer" if swarm.num_peers == 1 else f"{swarm.num_peers} peers"
    other = "" if swarm.protocol == PROTOCOL else f", of another version of Potluck (protocol {swarm.protocol})"
    name = f"{swarm.run_name}: " if swarm.run_name else ""
    return f"{name}{swarm.base_model}, {peers}, run {swarm.fingerprint}, at {swarm.addresses[0]}{other}"
