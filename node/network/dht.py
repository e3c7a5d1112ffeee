"""Membership over hivemind's DHT, in the daemon's own event loop.

Every node stores one signed record under the run's key (its own peer id as subkey) and reads all of them. There
is no server: any live peer is a way in. The forked `hivemind.DHT` is not used because its command pipe wedges on
large values; `DHTNode` in this loop has half the latency and needs no second process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterable, Sequence

from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.utils import get_dht_time

from node.core.errors import ConfigError, NoPeerReachable
from node.core.types import Peer, PeerId, PeerState, SwarmView
from node.core.versions import Speaker
from node.network.addresses import is_peer_id
from node.network.dht_bounds import RecordSerializer, RequestBounds
from node.network.processes import PEER_FAILED, RunningP2P
from node.network.records import PeerRecordValidator, decode_peer, encode_peer, other_version
from node.trust.identity import Identity

RECORD_LIFETIME_S = 20.0
"""A peer that vanished without a word is counted as alive for at most this long."""
_DHT_REPLY_S = 3.0
_MAX_DIALS = 16
"""New peers that are dialled at a time: records name any addresses."""


class DhtMembership:
    """Announce this node, and see the others; the DHT form of the port `Membership`."""

    def __init__(self, running: RunningP2P, identity: Identity, fingerprint: str) -> None:
        self._running = running
        self._identity = identity
        self._fingerprint = fingerprint
        self._key = f"potluck/{fingerprint}/peers"
        self._node: DHTNode | None = None
        self._me: Peer | None = None
        self._last_at_s = 0.0
        self._dead: dict[PeerId, float] = {}
        self._dialled: set[PeerId] = set()
        self.left_out: dict[PeerId, Speaker] = {}
        """Peers of this run that speak another protocol, as of the last `view`."""

    async def start(self) -> None:
        """Create this node's part of the DHT; peers are met afterwards, by `meet`."""
        self._node = await DHTNode.create(
            p2p=self._running.p2p,
            record_validator=PeerRecordValidator(self._key, lifetime_s=RECORD_LIFETIME_S),
            authorizer=RequestBounds(),
            wait_timeout=_DHT_REPLY_S,
            cache_refresh_before_expiry=0,
        )
        self._node.protocol.serializer = RecordSerializer

    async def meet(self, addresses: Iterable[str], *, timeout_s: float = 5.0) -> list[PeerId]:
        """Dial `addresses` at the same time and bring whoever answers into the DHT; return who answered."""

        async def one(address: str) -> PeerId | None:
            try:
                peer_id = await self._running.connect(address, timeout_s=timeout_s)
            except (NoPeerReachable, ConfigError):
                return None
            return peer_id if await self.greet(peer_id) else None

        answers = await asyncio.gather(*(one(address) for address in addresses))
        return sorted({peer_id for peer_id in answers if peer_id is not None})

    async def greet(self, peer_id: PeerId) -> bool:
        """Ping a connected peer's DHT, which puts each into the other's routing table."""
        try:
            answer = await self._dht.protocol.call_ping(PeerID.from_base58(peer_id))
        except PEER_FAILED:
            return False
        return answer is not None

    async def announce(self, me: Peer) -> bool:
        """Store this node's record; False if nobody, not even this node, took it."""
        self._me = me
        # a record must be newer than the one before it, or the DHT keeps the old one
        self._last_at_s = max(time.time(), self._last_at_s + 1e-3)
        value = encode_peer(me, fingerprint=self._fingerprint, at_s=self._last_at_s, identity=self._identity)
        expires = get_dht_time() + RECORD_LIFETIME_S
        return bool(await self._dht.store(self._key, value, expires, subkey=me.peer_id))

    async def view(self) -> SwarmView:
        """Return the peers that are alive as far as the DHT knows, this node included."""
        found = await self._dht.get(self._key, latest=True)
        peers: dict[PeerId, Peer] = {}
        self.left_out = {}
        if found is not None and isinstance(found.value, dict):
            for subkey, stored in found.value.items():
                if not isinstance(subkey, str) or not is_peer_id(subkey) or subkey == self._identity.peer_id:
                    continue
                lifetime = min(stored.expiration_time - get_dht_time(), 2 * RECORD_LIFETIME_S)
                peer = decode_peer(
                    stored.value, fingerprint=self._fingerprint, expires_at_s=time.time() + max(lifetime, 0)
                )
                if peer is not None and peer.peer_id == subkey and not self._is_dead(peer, stored.expiration_time):
                    peers[peer.peer_id] = peer
                elif (theirs := other_version(stored.value, fingerprint=self._fingerprint)) is not None:
                    self.left_out[PeerId(subkey)] = theirs
        if self._me is not None:
            peers[self._me.peer_id] = self._me
        await self._dial_new(peers.values())
        ordered = tuple(peers[peer_id] for peer_id in sorted(peers))
        return SwarmView(self._identity.peer_id, ordered)

    def count_out(self, peer_id: PeerId) -> None:
        """Take a peer for dead until it announces itself again: it refused a connection or left."""
        self._dead[peer_id] = get_dht_time() + RECORD_LIFETIME_S

    async def leave(self) -> None:
        """Tell the others that this node goes, so that nobody waits for it."""
        if self._me is not None:
            await self.announce(dataclasses.replace(self._me, state=PeerState.DRAINING))

    async def close(self) -> None:
        """Stop taking part in the DHT; the transport's daemon is closed by its owner."""
        if self._node is not None:
            await self._node.shutdown()
            self._node = None

    def _is_dead(self, peer: Peer, expiration_time: float) -> bool:
        """A record written after the moment a peer was counted out brings it back."""
        until = self._dead.get(peer.peer_id)
        if until is None:
            return peer.state is PeerState.DRAINING
        if expiration_time > until:
            del self._dead[peer.peer_id]
            return peer.state is PeerState.DRAINING
        return True

    async def _dial_new(self, peers: Iterable[Peer]) -> None:
        """Connect to peers that were not here before, so that a round never waits for a search."""
        here = [peer for peer in peers if peer.peer_id != self._running.peer_id]
        self._dialled &= {peer.peer_id for peer in here}  # who was lost and is found may have been forgotten by libp2p
        new: Sequence[Peer] = [peer for peer in here if peer.peer_id not in self._dialled][:_MAX_DIALS]
        for peer in new:
            self._dialled.add(peer.peer_id)
        addresses = [address for peer in new for address in peer.addresses[:4]]
        if addresses:
            await self.meet(addresses, timeout_s=3.0)

    @property
    def _dht(self) -> DHTNode:
        assert self._node is not None, "start() comes first"
        return self._node
