"""Membership over hivemind's DHT, in the daemon's own event loop.

Every node stores one signed record under the run's key (its own peer id as subkey) and reads all of them. There
is no server: any live peer is a way in. A search asks every peer for every record, so that its cost grows with the
square of the swarm (139 kB/s a node, with eight that search once a second). So a node sends its record straight to
the peers that keep the key, reads what it keeps itself, and searches now and then for what did not reach it.

The forked `hivemind.DHT` is not used because its command pipe wedges on large values; `DHTNode` in this loop has half
the latency and needs no second process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterable, Sequence

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.utils import get_dht_time

from node.core.errors import ConfigError, NoPeerReachable
from node.core.types import Peer, PeerId, PeerState, SwarmView
from node.core.versions import Speaker
from node.network.addresses import is_peer_id
from node.network.dht_bounds import RecordSerializer, RequestBounds
from node.network.processes import PEER_FAILED, RunningP2P
from node.network.records import PeerRecordValidator, decode_peer, encode_peer, other_version, records_key
from node.trust.identity import Identity

RECORD_LIFETIME_S = 20.0
"""A peer that vanished without a word is counted as alive for at most this long."""
DHT_REPLY_S = 3.0
_PUSH_S = 1.0
"""A peer that does not take a record within so long is not waited for; it may still take it."""
_KEEPERS = 16
"""Peers that a record is sent to, the nearest to the run's key: all of them, in a swarm that is not larger."""
_FIRST_SEARCH_S, _LAST_SEARCH_S = 4.0, 60.0
"""Between two searches: twice as long each time, until one finds what nobody had sent."""
_MAX_DIALS = 16
"""New peers that are dialled at a time: records name any addresses."""


class DhtMembership:
    """Announce this node, and see the others; the DHT form of the port `Membership`."""

    def __init__(self, running: RunningP2P, identity: Identity, fingerprint: str) -> None:
        self._running = running
        self._identity = identity
        self._fingerprint = fingerprint
        self._key = records_key(fingerprint)
        self._key_id = DHTID.generate(source=self._key)
        self._node: DHTNode | None = None
        self._me: Peer | None = None
        self._last_at_s = 0.0
        self._search_at, self._search_every_s = 0.0, _FIRST_SEARCH_S
        self._pushes: set[asyncio.Task[bool]] = set()
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
            wait_timeout=DHT_REPLY_S,
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
        self._search_at, self._search_every_s = 0.0, _FIRST_SEARCH_S  # it may know others
        return answer is not None

    async def announce(self, me: Peer) -> bool:
        """Store this node's record here and at the peers that keep them; False if nobody took it."""
        self._me = me
        # a record must be newer than the one before it, or the DHT keeps the old one
        self._last_at_s = max(time.time(), self._last_at_s + 1e-3)
        value = encode_peer(me, fingerprint=self._fingerprint, at_s=self._last_at_s, identity=self._identity)
        expires = get_dht_time() + RECORD_LIFETIME_S
        data = RecordSerializer.dumps(value)
        is_taken = self._keep(me.peer_id, data, expires)
        keepers = self._dht.protocol.routing_table.get_nearest_neighbors(self._key_id, _KEEPERS)
        pushes = {asyncio.create_task(self._push(keeper, data, expires)) for _, keeper in keepers}
        self._pushes |= pushes
        if pushes:
            done, _ = await asyncio.wait(pushes, timeout=_PUSH_S)
            is_taken |= any(push.result() for push in done)
        self._pushes = {push for push in self._pushes if not push.done()}
        return is_taken

    def _keep(self, subkey: str, data: bytes, expires: float) -> bool:
        """Store a record in this node's part of the DHT, if it is in order and newer than the one there."""
        key = self._key_id.to_bytes()
        record = DHTRecord(key, RecordSerializer.dumps(subkey), data, expires)
        is_valid = self._dht.protocol.record_validator.validate(record)
        return is_valid and bool(self._dht.protocol.storage.store(self._key_id, data, expires, subkey=subkey))

    async def _push(self, keeper: PeerID, data: bytes, expires: float) -> bool:
        answer = await self._dht.protocol.call_store(
            keeper, keys=[self._key_id], values=[data], expiration_time=[expires], subkeys=[self._identity.peer_id]
        )
        return bool(answer and answer[0])

    async def _search(self) -> None:
        """Ask the swarm for all records, and keep those that nobody has sent here."""
        if time.monotonic() < self._search_at:
            return
        found = await self._dht.get(self._key, latest=True)
        is_new = False
        if found is not None and isinstance(found.value, dict):
            mine = self._kept()
            for subkey, stored in found.value.items():
                if isinstance(subkey, str) and isinstance(stored.value, bytes) and subkey != self._identity.peer_id:
                    is_new |= subkey not in mine
                    self._keep(subkey, RecordSerializer.dumps(stored.value), stored.expiration_time)
        self._search_every_s = _FIRST_SEARCH_S if is_new else min(_LAST_SEARCH_S, 2 * self._search_every_s)
        self._search_at = time.monotonic() + self._search_every_s

    def _kept(self) -> dict[str, tuple[object, float]]:
        """Return the records kept here, values decoded, with the times (of the DHT) at which they expire."""
        kept = self._dht.protocol.storage.get(self._key_id)
        if kept is None or not isinstance(kept.value, DictionaryDHTValue):
            return {}
        with kept.value.freeze():
            items = [(str(subkey), item) for subkey, item in kept.value.items()]
        now = get_dht_time()
        return {
            subkey: (RecordSerializer.loads(item.value), item.expiration_time)
            for subkey, item in items
            if item.expiration_time > now
        }

    async def view(self) -> SwarmView:
        """Return the peers that are alive as far as the DHT knows, this node included."""
        await self._search()
        peers: dict[PeerId, Peer] = {}
        self.left_out = {}
        for subkey, (value, expires) in self._kept().items():
            if not is_peer_id(subkey) or subkey == self._identity.peer_id:
                continue
            lifetime = min(expires - get_dht_time(), 2 * RECORD_LIFETIME_S)
            peer = decode_peer(value, fingerprint=self._fingerprint, expires_at_s=time.time() + max(lifetime, 0))
            if peer is not None and peer.peer_id == subkey and not self._is_dead(peer, expires):
                peers[peer.peer_id] = peer
            elif (theirs := other_version(value, fingerprint=self._fingerprint)) is not None:
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
        for push in self._pushes:
            push.cancel()
        await asyncio.gather(*self._pushes, return_exceptions=True)
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
