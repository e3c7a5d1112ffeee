"""The heartbeat: announce this node, see the others, remember them, and dial them again when they are lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from node.core.errors import OutOfDisk
from node.core.events import EventBus, Fault, PeerLost, PeerSeen
from node.core.types import Peer, PeerId, SwarmView, marks
from node.core.versions import member_refused
from node.host.home import KnownPeer, RunFolder
from node.network.addresses import split_peer_id
from node.network.membership import Membership
from node.trust.identity import short

ANNOUNCE_EVERY_S = 6.0
"""While nothing changes: a record lives long enough for two of them to be lost."""
_REMEMBER_EVERY_S = 30.0
_REDIAL_EVERY_S = 5.0
_REDIALLED_AT_ONCE = 8
_MAX_TOLD = 256
"""Peers of other protocols that are told of."""


class Heartbeat:
    """Keeps `view` fresh; everything else reads it and asks nobody."""

    def __init__(
        self,
        membership: Membership,
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
            addresses: Peers to dial while this node does not see them, beside those that it has met.
            events: Told who came and who went.
        """
        self._membership = membership
        self._describe = describe
        self._folder = folder
        self._addresses = tuple(addresses)
        self._events = events
        self._names: dict[PeerId, str] = {}
        self._left_out: set[PeerId] = set()
        self._remembered_at = 0.0
        self._remembered: set[PeerId] = set()
        self._announced: tuple[object, ...] = ()
        self._announce_at = 0.0
        self._busy = asyncio.Lock()
        me = describe()
        self.view = SwarmView(me.peer_id, (me,))

    async def beat(self) -> SwarmView:
        """Announce and look around once."""
        async with self._busy:
            await self._announce()
            self.view = await self._membership.view()
            self._tell_changes()
            await self._look_after_peers()
            return self.view

    async def _announce(self) -> None:
        """Announce this node, if anything has changed that others wait for, or the last time was long ago."""
        me, now = self._describe(), time.monotonic()
        if marks(me) != self._announced or now >= self._announce_at:
            is_taken = await self._membership.announce(me)
            self._announced, self._announce_at = marks(me), now + (ANNOUNCE_EVERY_S if is_taken else 0.0)

    async def run(self, *, every_s: float = 1.0) -> None:
        """Beat until cancelled, and meanwhile look for those who were lost."""
        await asyncio.gather(self._beat_on(every_s), self._redial())

    async def _beat_on(self, every_s: float) -> None:
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
        for peer_id in self._membership.left_out.keys() - self._left_out:
            if len(self._left_out) < _MAX_TOLD:
                self._left_out.add(peer_id)
                self._events.emit(Fault(*member_refused(short(peer_id), self._membership.left_out[peer_id])))

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

    async def _redial(self) -> None:
        """Dial lost peers again and again, whoever else is there.

        A DHT forgets who does not answer. Halves of a swarm that a dead line has parted would each go on without ever
        looking for the other.
        """
        while True:
            await asyncio.sleep(_REDIAL_EVERY_S)
            known = await asyncio.to_thread(self._folder.known_peers)
            addresses = lost_addresses(known, self._addresses, self.view)
            if addresses:
                await self._membership.meet(addresses, timeout_s=3.0)


def lost_addresses(known: Sequence[KnownPeer], addresses: Sequence[str], view: SwarmView) -> tuple[str, ...]:
    """Return what to dial to find lost peers again: a few of those met before that are not in the view.

    Args:
        known: Peers met before, latest first.
        addresses: Others, such as the one that this node joined through.
        view: Who is here.
    """
    here = {peer.peer_id for peer in view.peers}
    lost = [peer for peer in known if peer.peer_id not in here]
    # those lost last, since they may have gone together; and of the others not always the same
    latest, others = lost[: _REDIALLED_AT_ONCE // 2], lost[_REDIALLED_AT_ONCE // 2 :]
    chosen = [*latest, *random.sample(others, min(len(others), _REDIALLED_AT_ONCE // 2))]
    given = [address for address in addresses if split_peer_id(address)[1] not in here]
    return tuple(dict.fromkeys([*given[:2], *(a for peer in chosen for a in peer.addresses[:3])]))
