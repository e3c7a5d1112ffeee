"""Knocking at a peer's port, so that it learns whether others can reach it.

Only at the address that the peer itself comes from, as this node's transport sees it: nobody can have a third machine
knocked at. What comes through a relay has no such address.
"""

from __future__ import annotations

import asyncio
import re

from hivemind.p2p import P2P, PeerID

from node.core.types import PeerId
from node.network.addresses import host_of
from node.network.processes import PEER_FAILED

KNOCK_S = 3.0
_DIRECT = re.compile(r"/ip[46]/[0-9a-fA-F.:]+/(tcp|udp)/\d{1,5}(/[a-z0-9-]+)*")


async def address_of(p2p: P2P, peer_id: PeerId) -> str:
    """Return the IP address from which a connected peer comes, or '' if it comes through a relay or is gone."""
    try:
        peers = await p2p.list_peers()
    except PEER_FAILED:
        return ""
    wanted = PeerID.from_base58(peer_id)
    texts = [str(address) for peer in peers if peer.peer_id == wanted for address in peer.addrs]
    return next((host_of(text) for text in texts if _DIRECT.fullmatch(text)), "")


async def is_open(host: str, port: int) -> bool:
    """Return whether somebody listens at a TCP port, as far as this machine can tell within `KNOCK_S` seconds."""
    try:
        async with asyncio.timeout(KNOCK_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
