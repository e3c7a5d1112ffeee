"""Membership over the DHT, helped by a coordinator while there is one.

The DHT decides who is alive. What the coordinator adds: peers that this node has not met are dialled at once, records
are fresher, and who was evicted is left out. A peer that only the coordinator knows takes part once it has answered:
otherwise a wrong word, or a peer behind a router, would hold up every round.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

from node.core.types import Peer, PeerId, PeerState, SwarmView
from node.core.versions import Speaker
from node.network.coordinator_link import CoordinatorLink
from node.network.dht import DhtMembership

Figures = tuple[float | None, int]
"""The latest held-out loss in nats per token, and the bytes sent."""
_DIAL_AGAIN_S = 5.0
_DIALLED_AT_ONCE = 8


class CoordinatedMembership:
    """The form of the port `Membership` that a coordinator helps."""

    def __init__(self, dht: DhtMembership, link: CoordinatorLink, figures: Callable[[], Figures]) -> None:
        """Set up.

        Args:
            dht: What it is without the coordinator; started, and closed with this.
            link: To the coordinator; started, and closed with this.
            figures: Of this node, for the coordinator's page.
        """
        self._dht = dht
        self._link = link
        self._figures = figures
        self._dialled_at: dict[PeerId, float] = {}
        self._dialling: asyncio.Task[list[PeerId]] | None = None

    @property
    def left_out(self) -> dict[PeerId, Speaker]:
        """Peers of this run that speak another protocol, as of the last `view`."""
        return self._dht.left_out

    async def announce(self, me: Peer) -> bool:
        """Tell the coordinator in the background, and the DHT; False if nobody, not even this node, took it."""
        loss, sent = self._figures()
        self._link.announce(me, held_out_loss=loss, bytes_sent=sent)
        return await self._dht.announce(me)

    async def view(self) -> SwarmView:
        """Return the peers of the DHT that are alive, with the fresher one of the two records of each."""
        view = await self._dht.view()
        self._dial({peer.peer_id for peer in view.peers})
        return SwarmView(
            view.me, tuple(self._fresher(peer) for peer in view.peers if peer.peer_id not in self._link.evicted)
        )

    async def meet(self, addresses: Iterable[str], *, timeout_s: float = 5.0) -> list[PeerId]:
        """Dial `addresses` at the same time; return who answered."""
        return await self._dht.meet(addresses, timeout_s=timeout_s)

    def count_out(self, peer_id: PeerId) -> None:
        """Take a peer for dead until it announces itself again."""
        self._link.members.pop(peer_id, None)
        self._dht.count_out(peer_id)

    async def leave(self) -> None:
        """Tell the others that this node goes, so that nobody waits for it."""
        await self._dht.leave()

    async def close(self) -> None:
        """Stop taking part; the transport's daemon is closed by its owner."""
        if self._dialling is not None:
            self._dialling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dialling
        await self._link.close()
        await self._dht.close()

    def _fresher(self, peer: Peer) -> Peer:
        other = self._link.members.get(peer.peer_id)
        if other is None or other.state is PeerState.DRAINING or other.expires_at_s <= peer.expires_at_s:
            return peer
        return other

    def _dial(self, here: set[PeerId]) -> None:
        """Dial, beside everything else, whom the coordinator knows and the DHT does not."""
        now = time.monotonic()
        if self._dialling is not None and not self._dialling.done():
            return
        alive = self._link.members
        self._dialled_at = {peer_id: at for peer_id, at in self._dialled_at.items() if peer_id in alive}
        lost = [
            peer_id
            for peer_id in alive
            if peer_id not in here and now - self._dialled_at.get(peer_id, -_DIAL_AGAIN_S) >= _DIAL_AGAIN_S
        ][:_DIALLED_AT_ONCE]
        if lost:
            self._dialled_at.update(dict.fromkeys(lost, now))
            addresses = [address for peer_id in lost for address in alive[peer_id].addresses[:4]]
            self._dialling = asyncio.create_task(self._dht.meet(addresses, timeout_s=3.0), name="dial")
