"""Where this node listens: what its owner says, or the port that it had last time, so that its address stays."""

from __future__ import annotations

from node.config.local import LocalSettings
from node.core.errors import ConfigError
from node.host.home import Home
from node.network.addresses import refuse_taken_port, tcp_port_of

DEFAULT_PORT = 4040
_ANY_PORT = "/ip4/0.0.0.0/tcp/0"


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


def remember_port(home: Home, addresses: tuple[str, ...]) -> None:
    """Keep the port that this node got."""
    port = next((port for address in addresses if (port := tcp_port_of(address))), None)
    if port:
        home.remember_port(port)


def _free(address: str, port: int) -> str | None:
    candidate = address.replace("/tcp/0", f"/tcp/{port}")
    try:
        refuse_taken_port(candidate)
    except ConfigError:
        return None
    return candidate
