"""The port through which a node announces itself and sees the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from node.core.types import Peer, PeerId, SwarmView
from node.core.versions import Speaker


class Membership(Protocol):
    """Who is in the run: by the DHT alone (`dht.py`), or helped by a coordinator (`coordinated.py`)."""

    @property
    def left_out(self) -> dict[PeerId, Speaker]:
        """Peers of this run that speak another protocol, as of the last `view`."""

    async def announce(self, me: Peer) -> bool:
        """Tell the others of this node; False if nobody, not even this node, took it."""

    async def view(self) -> SwarmView:
        """Return the peers that are alive as far as is known, this node included."""

    async def meet(self, addresses: Iterable[str], *, timeout_s: float = 5.0) -> list[PeerId]:
        """Dial `addresses` at the same time; return who answered."""

    def count_out(self, peer_id: PeerId) -> None:
        """Take a peer for dead until it announces itself again."""

    async def leave(self) -> None:
        """Tell the others that this node goes, so that nobody waits for it."""

    async def close(self) -> None:
        """Stop taking part."""
