"""Swarms on the local network, by multicast DNS: each node tells what is trained and where, and a joiner looks.

What is told is in docs/threat-model.md: run, model, number of peers, peer id, addresses. What is heard was said by
anybody in the network: it is bounded and made printable here, and proves nothing; a joiner checks the run's signature
at the node's door, as with an address that was typed in.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from zeroconf import Error, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from node.core.events import EventBus, Fault
from node.core.text import brief, printable
from node.core.types import PeerId
from node.core.versions import PROTOCOL
from node.network.addresses import host_of, is_peer_id, tcp_port_of
from node.network.interfaces import Interface, lan_interfaces, local_interfaces, neighbours

SERVICE = "_potluck._tcp.local."
LOOK_S = 3.0
MAX_SERVICES = 64
_ASK_MS = 2000
_KNOCK_S = 1.0
_MAX_HOSTS = 8
_MAX_TEXT = 80
_MAX_PEERS = 100_000
_TXT_BYTES = 200
"""Of one value; with its key it must stay below the 255 of DNS."""
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_UPDATE_S = 10.0
LAN_FAILED = (OSError, Error, TimeoutError, RuntimeError, ValueError)
"""What zeroconf raises when a network cannot be told anything."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What one node tells the local network."""

    peer_id: PeerId
    run_name: str
    base_model: str
    """As people call it; never a path on this machine (`public_name`)."""
    fingerprint: str
    num_peers: int
    addresses: tuple[str, ...]
    """Multiaddrs of the local network that end in `/p2p/<peer id>`."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class LanSwarm:
    """A swarm as its nodes on the local network describe it."""

    run_name: str
    base_model: str
    fingerprint: str
    """The first 12 characters."""
    protocol: int
    num_peers: int
    """The highest number that any of its nodes gives."""
    addresses: tuple[str, ...]
    """Of all its nodes here; any will do."""


def public_name(base_model: str) -> str:
    """Return what strangers may read of a recipe's `base_model`: a hub name whole, of a path the last part."""
    parts = base_model.replace("\\", "/").rstrip("/").split("/")
    is_path = base_model.startswith(("/", "~", ".")) or len(parts) != 2 or ":" in base_model
    return parts[-1] if is_path else base_model


def properties_of(notice: Notice) -> dict[str, str]:
    """Return the TXT record of a notice: key and value, cut to what fits."""
    fields = {
        "protocol": str(notice.protocol),
        "run": notice.run_name,
        "model": public_name(notice.base_model),
        "fingerprint": notice.fingerprint[:12],
        "peers": str(notice.num_peers),
        "id": notice.peer_id,
    }
    return {key: value.encode()[:_TXT_BYTES].decode(errors="ignore") for key, value in fields.items()}


def notice_of(
    properties: Mapping[bytes, bytes | None], hosts: Sequence[str], port: int | None, near: Sequence[Interface]
) -> Notice | None:
    """Return what a service on the network says, or None if no node of Potluck's says such a thing.

    Args:
        properties: Its TXT record, untrusted.
        hosts: Its IP addresses, untrusted.
        port: Its TCP port, untrusted.
        near: Those that were listened on: a neighbour has an address in one of their networks.
    """
    said = {
        key: (properties.get(key.encode()) or b"").decode(errors="replace")
        for key in ("protocol", "run", "model", "fingerprint", "peers", "id")
    }
    is_number = all(re.fullmatch(r"[0-9]{1,6}", said[key]) for key in ("protocol", "peers"))
    if not is_number or not is_peer_id(said["id"]) or not _FINGERPRINT.fullmatch(said["fingerprint"]):
        return None
    if port is None or not 0 < port < 65536:
        return None
    reachable = neighbours(hosts[:MAX_SERVICES], near)
    if not reachable:
        return None
    return Notice(
        peer_id=PeerId(said["id"]),
        run_name=printable(said["run"])[:_MAX_TEXT],
        base_model=printable(said["model"])[:_MAX_TEXT],
        fingerprint=said["fingerprint"],
        num_peers=min(int(said["peers"]), _MAX_PEERS),
        addresses=tuple(f"/ip4/{host}/tcp/{port}/p2p/{said['id']}" for host in reachable[:_MAX_HOSTS]),
        protocol=int(said["protocol"]),
    )


def swarms_of(notices: Iterable[Notice]) -> list[LanSwarm]:
    """Return the swarms that several nodes' notices describe, the largest first.

    Who says something else of a run than others do stands in a line of his own: nothing here is proven.
    """
    groups: dict[tuple[str, str, str, int], list[Notice]] = {}
    for notice in notices:
        groups.setdefault((notice.fingerprint, notice.run_name, notice.base_model, notice.protocol), []).append(notice)
    swarms = [
        LanSwarm(
            run_name=run_name,
            base_model=base_model,
            fingerprint=fingerprint,
            protocol=protocol,
            num_peers=max(notice.num_peers for notice in members),
            addresses=tuple(dict.fromkeys(address for notice in members for address in notice.addresses)),
        )
        for (fingerprint, run_name, base_model, protocol), members in groups.items()
    ]
    return sorted(swarms, key=lambda swarm: (-swarm.num_peers, swarm.fingerprint, swarm.run_name))


async def find_swarms(interfaces: Sequence[Interface], *, look_s: float = LOOK_S) -> list[LanSwarm]:
    """Listen on the local network for `look_s` seconds and return the swarms that were named.

    Args:
        interfaces: Those to look on (`lan_interfaces`).
        look_s: For how long; answers that come in meanwhile are followed up for 2 s more at most.

    Raises:
        OSError: none of the interfaces can be used for multicast DNS.
    """
    if not interfaces:
        return []
    names: set[str] = set()

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:  # noqa: ARG001
        if state_change is ServiceStateChange.Removed:
            names.discard(name)
        elif len(names) < MAX_SERVICES:
            names.add(name)

    network = AsyncZeroconf(interfaces=[interface.ip for interface in interfaces], ip_version=IPVersion.V4Only)
    try:
        browser = AsyncServiceBrowser(network.zeroconf, SERVICE, handlers=[heard])
        await asyncio.sleep(look_s)
        await browser.async_cancel()
        found = await asyncio.gather(*(_ask(network, name, interfaces) for name in sorted(names)))
    finally:
        await network.async_close()
    return swarms_of(notice for notice in found if notice is not None)


async def _ask(network: AsyncZeroconf, name: str, near: Sequence[Interface]) -> Notice | None:
    try:
        info = AsyncServiceInfo(SERVICE, name)
        if not await info.async_request(network.zeroconf, _ASK_MS):
            return None
    except LAN_FAILED:  # a name that is none, for instance
        return None
    return notice_of(info.properties, info.parsed_addresses(IPVersion.V4Only), info.port, near)


async def first_that_answers(addresses: Sequence[str]) -> str | None:
    """Return the first of the multiaddrs whose TCP port somebody listens on, or None."""

    async def knock(address: str) -> bool:
        with suppress(OSError, TimeoutError):
            opening = asyncio.open_connection(host_of(address), tcp_port_of(address))
            async with asyncio.timeout(_KNOCK_S):
                _, writer = await opening
            writer.close()
            return True
        return False

    answers = await asyncio.gather(*(knock(address) for address in addresses[:MAX_SERVICES]))
    return next((address for address, is_there in zip(addresses, answers, strict=False) if is_there), None)


class LanNotice:
    """This node's notice on the local network, for as long as it is there."""

    def __init__(self, interfaces: Sequence[Interface]) -> None:
        """Set up.

        Args:
            interfaces: Those to tell (`lan_interfaces`).
        """
        self.interfaces = tuple(interfaces)
        self._network: AsyncZeroconf | None = None
        self._told: Notice | None = None

    async def tell(self, notice: Notice) -> None:
        """Tell it, if it is news; others keep it until it changes or this node goes.

        Raises:
            OSError: the network cannot be told anything; what else it raises is in `LAN_FAILED`.
        """
        info = _service_of(notice)
        if info is None or not self.interfaces or notice == self._told:
            return
        if self._network is None:
            self._network = AsyncZeroconf(
                interfaces=[interface.ip for interface in self.interfaces], ip_version=IPVersion.V4Only
            )
        if self._told is None:
            await (await self._network.async_register_service(info))
        else:
            await (await self._network.async_update_service(info))
        self._told = notice

    async def close(self) -> None:
        """Take it back."""
        network, self._network, self._told = self._network, None, None
        if network is not None:
            with suppress(*LAN_FAILED):
                async with asyncio.timeout(_KNOCK_S):
                    await network.async_unregister_all_services()
            await network.async_close()


def _service_of(notice: Notice) -> AsyncServiceInfo | None:
    """Return the DNS records of a notice, or None if no neighbour could dial this node."""
    port = next((tcp_port_of(address) for address in notice.addresses), None)
    hosts = [host_of(address) for address in notice.addresses if tcp_port_of(address) == port]
    if not hosts or not port:
        return None
    return AsyncServiceInfo(
        SERVICE,
        f"{notice.peer_id}.{SERVICE}",
        port=port,
        properties=properties_of(notice),
        server=f"potluck-{notice.peer_id[-12:].lower()}.local.",
        parsed_addresses=hosts[:_MAX_HOSTS],
    )


async def tell_neighbours(describe: Callable[[Sequence[Interface]], Notice], events: EventBus) -> None:
    """Tell the local network what `describe` returns, whenever it changes, until cancelled.

    Args:
        describe: Returns this node's notice, given the interfaces that neighbours are on.
        events: Told once if that fails; a node trains without it.
    """
    own, is_told = LanNotice(()), False
    try:
        while True:
            try:
                interfaces = lan_interfaces(await asyncio.to_thread(local_interfaces))
                if interfaces != own.interfaces:  # a cable, another Wi-Fi
                    await own.close()
                    own = LanNotice(interfaces)
                await own.tell(describe(interfaces))
            except LAN_FAILED as error:
                if not is_told:
                    is_told = True
                    hint = "Others can still join by the address. `--no-lan` or `lan = false` in config.toml ends this."
                    events.emit(Fault(f"The local network cannot be told of this swarm: {brief(error)}.", hint))
            await asyncio.sleep(_UPDATE_S)
    finally:
        await own.close()
