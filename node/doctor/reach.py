"""Whether others can reach this node, and what stands in the way: port, router, firewall, WSL."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from node.core.errors import ConfigError
from node.doctor.finding import Finding, fail, ok, warn
from node.network.addresses import host_of, refuse_taken_port, tcp_port_of
from node.network.interfaces import Interface, lan_interfaces

_WSL_NETWORK = ipaddress.ip_network("172.16.0.0/12")
_MIRRORED_INTERFACE = "loopback0"
"""Only WSL's mirrored mode makes it."""


def port(listen: Sequence[str], *, has_running_node: bool) -> Finding:
    """Say whether the node's ports are free.

    Args:
        listen: Multiaddrs to listen on; a TCP port of 0 means any that is free.
        has_running_node: Whether a node runs under this home, which then has them.
    """
    where = ", ".join(listen)
    if has_running_node:
        return ok("port", f"{where}, taken by the node that runs here")
    for address in listen:
        try:
            refuse_taken_port(address)
        except ConfigError as error:
            return fail("port", error.message, error.hint)
    if any(tcp_port_of(address) == 0 for address in listen):
        return ok("port", f"{where}: TCP 4040 is taken, so any free one")
    return ok("port", f"{where} is free")


def wsl(version: str, interfaces: Sequence[Interface]) -> Finding | None:
    """Say whether Windows' WSL hides this node behind an address of its own; None outside WSL.

    Args:
        version: What `/proc/version` says.
        interfaces: This machine's.
    """
    if "microsoft" not in version.lower():
        return None
    eth0 = [interface for interface in interfaces if interface.name == "eth0"]
    is_inside = any(ipaddress.ip_address(i.ip) in _WSL_NETWORK for i in eth0 if ":" not in i.ip)
    if is_inside and all(interface.name != _MIRRORED_INTERFACE for interface in interfaces):
        return warn(
            "wsl",
            f"WSL is in NAT mode: {eth0[0].ip} exists on this PC alone, nobody else can dial it.",
            "write networkingMode=mirrored under [wsl2] in %UserProfile%\\.wslconfig, then wsl --shutdown",
        )
    return ok("wsl", "WSL with mirrored networking")


def addresses(listen: Sequence[str], announce: Sequence[str], interfaces: Sequence[Interface]) -> Finding:
    """Say where others would find this node, as far as this machine alone can know."""
    if announce:
        return ok("addresses", f"others are told {', '.join(announce)}")
    hosts = [host_of(address) for address in listen]
    if hosts and all(_is_loopback(host) for host in hosts):
        return warn(
            "addresses", "It listens on loopback: only this machine reaches it.", "--listen /ip4/0.0.0.0/tcp/4040"
        )
    here = lan_interfaces(interfaces)
    if not here:
        return warn("addresses", "This machine is in no network.", "connect it, and look at `ip address`")
    public = [interface.ip for interface in here if ipaddress.ip_address(interface.ip).is_global]
    if public:
        return ok("addresses", f"on the Internet at {', '.join(public)}, if no firewall stands before it")
    found = ", ".join(f"{interface.ip} ({interface.name})" for interface in here)
    return ok(
        "addresses",
        f"on the local network at {found}; behind a router for the Internet",
        "for peers on the Internet see docs/internet.md: forward the port and --announce, or --bootstrap",
    )


def from_outside(port_number: int, *, is_open: bool | None, seen_at: str, own: Sequence[str]) -> Finding:
    """Say what a peer's knock at this node's port came to.

    Args:
        port_number: The TCP port.
        is_open: Whether the peer reached it; None if it did not try.
        seen_at: This machine's IP address as the peer sees it.
        own: This machine's own IP addresses.
    """
    if is_open is None:
        return warn(
            "reachable",
            "Not known: the peer did not knock. It is an older Potluck, busy, or hears this node through a relay.",
            "try again, or with the address of another node",
        )
    if is_open:
        return ok("reachable", f"the peer reached {seen_at}, TCP {port_number}")
    if seen_at in own:
        return warn(
            "reachable",
            f"The peer cannot reach {seen_at}, TCP {port_number}: a firewall stands between.",
            f"sudo ufw allow {port_number}/tcp, or sudo firewall-cmd --add-port={port_number}/tcp",
        )
    return warn(
        "reachable",
        f"The peer sees this node at {seen_at} and cannot reach TCP {port_number}: a router stands between.",
        f"forward TCP {port_number} in the router and give --announce /ip4/{seen_at}/tcp/{port_number}, or --bootstrap",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
