"""Addresses as people and peers write them: what they hold, and which of them others can dial."""

from __future__ import annotations

import ipaddress
import re
import socket

from coordinator.address import CoordinatorAddress
from node.core.errors import ConfigError
from node.core.types import PeerId

MAX_ADDRESS_CHARS = 300
_PEER_ID = re.compile(r"(Qm[1-9A-HJ-NP-Za-km-z]{44}|12D3Koo[1-9A-HJ-NP-Za-km-z]{40,50})")
_DOCKER_NETWORK = ipaddress.ip_network("172.17.0.0/16")


def is_peer_id(text: str) -> bool:
    """Return whether `text` is a libp2p peer id in base58."""
    return _PEER_ID.fullmatch(text) is not None


def split_peer_id(address: str) -> tuple[str, PeerId]:
    """Split `/ip4/…/tcp/…/p2p/<id>` into the part that is dialled and the peer id.

    Raises:
        ConfigError: the address is not of that form.
    """
    text = address.strip()
    transport, marker, peer_id = text.rpartition("/p2p/")
    if len(text) > MAX_ADDRESS_CHARS or not marker or not is_peer_id(peer_id) or not transport.startswith("/"):
        shown = text if len(text) <= 80 else text[:77] + "…"
        raise ConfigError(
            f"{shown!r} is not a node's address.",
            hint="It looks like /ip4/192.168.1.20/tcp/4040/p2p/QmYyQSo1c1Ym7orWxLYvCrM2…; "
            "`potluck status` on a node of the swarm prints it.",
        )
    return transport, PeerId(peer_id)


def parse_coordinator(address: str) -> CoordinatorAddress:
    """Read a coordinator's address.

    Raises:
        ConfigError: it is none.
    """
    try:
        return CoordinatorAddress.parse(address)
    except ValueError as error:
        raise ConfigError(
            f"{address!r} is not a coordinator's address: {error}.",
            hint="Copy the whole line that `potluck coordinator serve` printed.",
        ) from error


def host_of(address: str) -> str:
    """Return the IP address or the DNS name in a multiaddr, or '' if there is none."""
    found = re.match(r"/(?:ip4|ip6|dns|dns4|dns6)/([^/]+)", address)
    return found.group(1) if found else ""


def is_reachable_from_outside(address: str) -> bool:
    """Return whether another machine can dial this address: not loopback, not link-local, not Docker's bridge."""
    try:
        ip = ipaddress.ip_address(host_of(address))
    except ValueError:
        return bool(host_of(address))
    if ip.is_loopback or ip.is_link_local or ip.is_unspecified:
        return False
    return not (ip.version == 4 and ip in _DOCKER_NETWORK)


def tcp_port_of(address: str) -> int | None:
    """Return the TCP port in a multiaddr, or None if there is none."""
    found = re.search(r"/tcp/(\d{1,5})(?:/|$)", address)
    return int(found.group(1)) if found else None


def refuse_taken_port(address: str) -> None:
    """Raise if another program on this machine already listens on the address's TCP port.

    Raises:
        ConfigError: the port is taken, or the host is not one of this machine's.
    """
    port = tcp_port_of(address)
    if not port:
        return
    try:
        ip = ipaddress.ip_address(host_of(address))
    except ValueError:
        return
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(ip), port))
            probe.listen(1)
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {address}: {error.strerror}.",
                hint="Another node or program has that port: choose one with --listen /ip4/0.0.0.0/tcp/4041.",
            ) from error
