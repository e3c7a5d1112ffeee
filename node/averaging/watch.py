"""Notice within a second that somebody whom a round waits for has died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from node.core.types import PeerId
from node.network.rounds import PeerLost, RoundTransport

_PING_EVERY_S = 0.5


class Watch:
    """Asks peers again and again whether they are there."""

    def __init__(
        self,
        transport: RoundTransport,
        *,
        spawn: Callable[[set[asyncio.Task[None]], Awaitable[None]], None],
        heard: Callable[[PeerId], None],
        gone: Callable[[PeerId], None],
    ) -> None:
        """Set up.

        Args:
            transport: To ask with.
            spawn: Starts a task of a round.
            heard: Told who answered.
            gone: Told who refused the connection. Who does not answer at all may be slow: nobody is told.
        """
        self._transport = transport
        self._spawn = spawn
        self._heard = heard
        self._gone = gone

    async def run(self, waits_for: Callable[[], Collection[PeerId] | None], tasks: set[asyncio.Task[None]]) -> None:
        """Ask all that `waits_for` returns, until it returns None."""
        while (peers := waits_for()) is not None:
            for peer in peers:
                self._spawn(tasks, self._ping(peer))
            await asyncio.sleep(_PING_EVERY_S)

    async def _ping(self, peer: PeerId) -> None:
        try:
            await self._transport.ping(peer)
        except PeerLost as error:
            if error.is_refused:
                self._gone(peer)
        else:
            self._heard(peer)
