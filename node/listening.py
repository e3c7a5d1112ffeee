"""Where this node listens: what its owner says, or the port that it had last time, so that its address stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from node.config.local import LocalSettings
from node.config.recipe import Recipe
from node.core.errors import ConfigError
from node.core.events import EventBus, Fault
from node.core.types import SwarmView
from node.host.home import Home
from node.network.addresses import host_of, refuse_taken_port, tcp_port_of
from node.network.interfaces import Interface, listened_on, neighbours
from node.network.lan import Notice, tell_neighbours
from node.network.processes import RunningP2P

DEFAULT_PORT = 4040
_ANY_PORT = "/ip4/0.0.0.0/tcp/0"
_RELAY_S = 5.0


def listen_addresses(settings: LocalSettings, home: Home) -> tuple[str, ...]:
    """Return the multiaddrs to listen on; port 0 becomes the last port of this home, or the usual one, if free."""
    wanted = []
    for address in settings.listen:
        if tcp_port_of(address) != 0:
            wanted.append(address)
            continue
        candidates = [home.remembered_port(), DEFAULT_PORT if address == _ANY_PORT else None]
        wanted.append(next((a for port in candidates if port and (a := _free(address, port))), address))
    return tuple(wanted)


async def own_addresses(running: RunningP2P, settings: LocalSettings, events: EventBus) -> tuple[str, ...]:
    """Return where this node can be dialled, once the meeting points that it knows had time to lend an address."""
    if settings.bootstrap and not await running.until_relayed(timeout_s=_RELAY_S):
        events.emit(
            Fault(
                f"No bootstrap node relays for this one: {', '.join(settings.bootstrap)}.",
                "Is `potluck bootstrap --relay` running there, at a public address? Without a relay others reach this "
                "node only through an open port; it reaches them all the same.",
            )
        )
    return await running.addresses()


def remember_port(home: Home, addresses: tuple[str, ...]) -> None:
    """Keep the port that this node got."""
    port = next((port for a in addresses if "/p2p-circuit" not in a and (port := tcp_port_of(a))), None)
    if port:
        home.remember_port(port)


def lan_notice(
    recipe: Recipe,
    fingerprint: str,
    settings: LocalSettings,
    port: int | None,
    view: SwarmView,
    interfaces: Sequence[Interface],
) -> Notice:
    """Return what the local network is told of the run that this node takes part in.

    Args:
        recipe: The run's.
        fingerprint: The run's.
        settings: What to listen on and what to announce; of the latter, what neighbours can dial goes first.
        port: What a TCP port of 0 became, if it did.
        view: The swarm as this node sees it.
        interfaces: Those that neighbours are on.
    """
    said = ((host_of(a), tcp_port_of(a)) for a in settings.announce if a.startswith("/ip4/"))
    near = [(host, at) for host, at in said if at and neighbours([host], interfaces)]
    found = near or listened_on(settings.listen, interfaces, port=port)
    return Notice(
        peer_id=view.me,
        run_name=recipe.potluck.name or "",
        base_model=recipe.base_model,
        fingerprint=fingerprint,
        num_peers=len(view.peers),
        addresses=tuple(f"/ip4/{host}/tcp/{at}/p2p/{view.me}" for host, at in found),
    )


async def tell_lan(
    recipe: Recipe,
    fingerprint: str,
    settings: LocalSettings,
    home: Home,
    events: EventBus,
    view: Callable[[], SwarmView],
) -> None:
    """Tell the local network of the run that this node takes part in, until cancelled."""

    def describe(interfaces: Sequence[Interface]) -> Notice:
        return lan_notice(recipe, fingerprint, settings, home.remembered_port(), view(), interfaces)

    await tell_neighbours(describe, events)


def _free(address: str, port: int) -> str | None:
    candidate = address.replace("/tcp/0", f"/tcp/{port}")
    try:
        refuse_taken_port(candidate)
    except ConfigError:
        return None
    return candidate
