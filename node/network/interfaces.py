"""This machine's network interfaces, and which of the addresses that it listens on others can dial.

Containers' bridges stand on every second developer's machine with the same addresses: whoever dialled 172.17.0.1 would
reach his own. So an address is judged by the interface that carries it, not by its range alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ifaddr

from node.network.addresses import host_of, is_reachable_from_outside, tcp_port_of

_MAX_INTERFACES = 256
_CONTAINERS = re.compile(
    r"(docker|podman|cni|cbr|flannel\.?|cali|veth|virbr|vnet|lxcbr|lxdbr|lxc|kube-|nerdctl|vboxnet|vmnet|br-[0-9a-f]{12}$"
    r"|docker_gwbridge).*|vEthernet \((WSL|Default Switch|nat).*"
)
"""Bridges and cables of containers and virtual machines: their addresses exist on this machine alone."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One address of one network interface."""

    name: str
    """As the system calls it: `eth0`, `wlan0`, `docker0`."""
    ip: str
    prefix_bits: int
    """Length of its network's prefix: 24 of `192.168.1.20/24`."""

    @property
    def is_containers(self) -> bool:
        """Whether it belongs to containers or virtual machines on this machine."""
        return _CONTAINERS.fullmatch(self.name) is not None

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The network that it is in."""
        return ipaddress.ip_network(f"{self.ip}/{self.prefix_bits}", strict=False)


def local_interfaces() -> tuple[Interface, ...]:
    """Return this machine's interfaces, one entry for each of their addresses."""
    found = []
    for adapter in ifaddr.get_adapters():
        for address in adapter.ips:
            ip = address.ip if isinstance(address.ip, str) else address.ip[0]
            found.append(Interface(str(adapter.nice_name), ip, address.network_prefix))
    return tuple(found[:_MAX_INTERFACES])


def announced(addresses: Iterable[str], interfaces: Sequence[Interface]) -> tuple[str, ...]:
    """Return those of this node's multiaddrs that others can dial, best first.

    Addresses of containers' bridges and link-local IPv6 ones (which mean nothing without the interface's name) are
    never among them. An IPv4 address that a machine gave itself for want of a router, or one in Docker's usual range,
    is there only if there is nothing better; loopback only if there is nothing else at all.

    Args:
        addresses: Multiaddrs as the transport lists them, loopback and bridges included.
        interfaces: This machine's.
    """
    containers = {interface.ip for interface in interfaces if interface.is_containers}
    own = {interface.ip for interface in interfaces} - containers
    ranked: dict[str, tuple[int, bool, str]] = {}
    for address in dict.fromkeys(addresses):
        rank = _rank(address, containers, own)
        if rank is not None:
            ranked[address] = (rank, "/tcp/" not in address, address)
    best = min((rank for rank, _, _ in ranked.values()), default=0)
    return tuple(sorted((a for a, key in ranked.items() if key[0] == best), key=ranked.__getitem__))


def _rank(address: str, containers: set[str], own: set[str]) -> int | None:
    """Return 0 for an address that others can dial, more for worse ones, None for one that nobody can."""
    host = host_of(address)
    if host in containers:
        return None
    if is_reachable_from_outside(address):
        return 0
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    if ip.is_loopback:
        return 2
    if ip.version == 6 or ip.is_unspecified:
        return None
    return 1 if host in own else None


def lan_interfaces(interfaces: Iterable[Interface]) -> tuple[Interface, ...]:
    """Return those with an IPv4 address on which neighbours may be: no loopback, no containers' bridge."""
    return tuple(
        interface
        for interface in interfaces
        if not interface.is_containers
        and (ip := ipaddress.ip_address(interface.ip)).version == 4
        and not ip.is_loopback
        and not ip.is_unspecified
    )


def neighbours(hosts: Iterable[str], interfaces: Sequence[Interface]) -> list[str]:
    """Return those of the IP addresses that are in a network which one of the interfaces is in."""
    networks = [interface.network for interface in interfaces]
    return [host for host in hosts if any(ipaddress.ip_address(host) in network for network in networks)]


def listened_on(listen: Iterable[str], interfaces: Sequence[Interface], *, port: int | None) -> list[tuple[str, int]]:
    """Return hosts and ports at which neighbours find a node that listens on `listen`.

    Args:
        listen: IPv4 and other multiaddrs, of which 0.0.0.0 stands for all interfaces.
        interfaces: Those that neighbours may be on (`lan_interfaces`).
        port: What a TCP port of 0 became; None if it is not known.
    """
    found = []
    for address in listen:
        host, at = host_of(address), tcp_port_of(address) or port
        if at and address.startswith("/ip4/") and "/tcp/" in address:
            here = [interface.ip for interface in interfaces if host in (interface.ip, "0.0.0.0")]  # noqa: S104
            found += [(ip, at) for ip in here]
    return list(dict.fromkeys(found))
