"""The heartbeat: announce this node, see the others, remember them, and dial them again when they are lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from node.core.errors import OutOfDisk
from node.core.events import EventBus, Fault, PeerLost, PeerSeen
from node.core.types import Peer, PeerId, SwarmView
from node.host.home import RunFolder
from node.network.dht import DhtMembership

_REMEMBER_EVERY_S = 30.0
_REDIAL_EVERY_S = 10.0


class Heartbeat:
    """Keeps `view` fresh; everything else reads it and asks nobody."""

    def __init__(
        self,
        membership: DhtMembership,
        *,
        describe: Callable[[], Peer],
        folder: RunFolder,
        addresses: Sequence[str],
        events: EventBus,
    ) -> None:
        """Set up.

        Args:
            membership: Where this node announces itself.
            describe: Returns this node as it is now.
            folder: Where the peers met are remembered.
            addresses: Peers to dial while this node sees nobody.
            events: Told who came and who went.
        """
        self._membership = membership
        self._describe = describe
        self._folder = folder
        self._addresses = tuple(addresses)
        self._events = events
        self._names: dict[PeerId, str] = {}
        self._remembered_at = 0.0
        self._remembered: set[PeerId] = set()
        self._redialled_at = time.monotonic()
        self._busy = asyncio.Lock()
        me = describe()
        self.view = SwarmView(me.peer_id, (me,))

    async def beat(self) -> SwarmView:
        """Announce and look around once."""
        async with self._busy:
            await self._membership.announce(self._describe())
            self.view = await self._membership.view()
            self._tell_changes()
            await self._look_after_peers()
            return self.view

    async def run(self, *, every_s: float = 1.0) -> None:
        """Beat until cancelled."""
        while True:
            started = time.monotonic()
            await self.beat()
            await asyncio.sleep(max(0.05, every_s - (time.monotonic() - started)))

    def count_out(self, peer_id: PeerId) -> None:
        """Take a peer for dead until it announces itself again."""
        self._membership.count_out(peer_id)
        self.view = SwarmView(self.view.me, tuple(peer for peer in self.view.peers if peer.peer_id != peer_id))
        self._tell_changes()

    def _tell_changes(self) -> None:
        now = {peer.peer_id: peer.name for peer in self.view.peers if peer.peer_id != self.view.me}
        for peer_id in now.keys() - self._names.keys():
            self._events.emit(PeerSeen(peer_id, now[peer_id]))
        for peer_id in self._names.keys() - now.keys():
            self._events.emit(PeerLost(peer_id, f"{self._names[peer_id]} left, or has not been heard of"))
        self._names = now

    async def _look_after_peers(self) -> None:
        now = time.monotonic()
        others = [peer for peer in self.view.peers if peer.peer_id != self.view.me]
        ids = {peer.peer_id for peer in others}
        # somebody new at once: this node may stop, and all others be gone when it comes back
        if others and (ids - self._remembered or now - self._remembered_at > _REMEMBER_EVERY_S):
            self._remembered_at, self._remembered = now, ids
            met = [(peer.peer_id, peer.addresses) for peer in others]
            try:
                await asyncio.to_thread(self._folder.remember_peers, met)
            except OutOfDisk as error:  # a worse start later is no reason to end now
                self._events.emit(Fault(error.message, error.hint))
        if not others and now - self._redialled_at > _REDIAL_EVERY_S:
            self._redialled_at = now
            known = [address for peer in self._folder.known_peers() for address in peer.addresses[:3]]
            addresses = dict.fromkeys([*self._addresses, *known])
            if addresses:
                await self._membership.meet(addresses, timeout_s=3.0)
