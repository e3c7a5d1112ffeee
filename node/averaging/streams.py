"""The streams of a round: parts to whoever reduces them, results back, and the same for those who come here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from node.averaging.exchange import Exchange
from node.averaging.strategy import Hook
from node.core.round_messages import Share
from node.core.round_state import Broken, Event, PartIn, Reduced, SpanIn
from node.core.types import PeerId
from node.network.rounds import Bulk, Parts, PeerLost, RoundTransport

_OPEN_WAIT_S = 60.0
_AFTER_DEADLINE_S = 1.0


class Streams:
    """The exchanges of this node's rounds. What comes of them is told as events of the machine."""

    def __init__(
        self,
        transport: RoundTransport,
        *,
        feed: Callable[[Event], None],
        spawn: Callable[[set[asyncio.Task[None]], Awaitable[None]], None],
        refused: Callable[[PeerId], None],
        hook: Hook,
    ) -> None:
        """Set up.

        Args:
            transport: Carries the bulk.
            feed: Takes an event to the machine.
            spawn: Starts a task of a round.
            refused: Told who refused a connection.
            hook: For tests.
        """
        self._transport = transport
        self._feed = feed
        self._spawn = spawn
        self._refused = refused
        self._hook = hook
        self.exchanges: dict[str, Exchange] = {}

    def open(self, round: str, shares: tuple[Share, ...]) -> Exchange:
        """Let the others' parts in; the exchanges of other rounds are over."""
        for id in [id for id in self.exchanges if id != round]:
            self.forget(id)
        exchange = self.exchanges[round]
        exchange.shares, exchange.opened_at = shares, time.monotonic()
        exchange.result = asyncio.get_running_loop().create_future()
        exchange.opened.set()
        return exchange

    def scatter(self, round: str, exchange: Exchange, *, deadline_s: float) -> None:
        """Send every other holder of this node's stages its parts, and fetch the results."""
        for share in exchange.near:
            self._spawn(exchange.tasks, self._exchange_with(round, exchange, share, deadline_s))

    async def _exchange_with(self, round: str, exchange: Exchange, share: Share, deadline_s: float) -> None:
        await self._hook("while sending")
        try:
            parts = await asyncio.to_thread(exchange.parts_for, share)
            exchange.bytes_sent += sum(len(part) for part in parts.parts)
            # the machine's own deadline comes first, since it knows for whom the round waits
            budget_s = max(0.0, deadline_s - time.monotonic()) + _AFTER_DEADLINE_S
            bulks = await self._transport.exchange(
                share.peer_id,
                round,
                parts,
                result_bytes=exchange.result_sizes(share),
                timeout_s=budget_s,
                moved=lambda: self.moved(round, share.peer_id),
            )
            await self._hook("while gathering")
            results = await asyncio.to_thread(exchange.take_spans, share, bulks)
        except PeerLost as error:
            if error.is_refused:
                self._refused(share.peer_id)
            suspect = share.peer_id if error.is_to_blame else None
            self._feed(Broken(round, suspect, f"the exchange with …{share.peer_id[-6:]} failed: {error}"))
            return
        except Exception as error:  # a bug here must not let the others wait for the deadline
            self._feed(Broken(round, None, f"a bug in this node: {error!r}"))
            raise
        self._feed(SpanIn(round, share.peer_id, results))

    async def expect_parts(self, round: str, sender: PeerId) -> tuple[int, ...]:
        """Wait until the round is open here, and return the bytes of each part that `sender` has to send."""
        exchange = self.exchanges.get(round)
        if exchange is None:
            raise PeerLost("I am not in that round")
        async with asyncio.timeout(_OPEN_WAIT_S):
            await exchange.opened.wait()
        if not exchange.shares:
            raise PeerLost("that round is over")
        return exchange.part_sizes(sender)

    def moved(self, round: str, peer: PeerId) -> None:
        """Note that a chunk came or went: the peer is slow at most."""
        if (exchange := self.exchanges.get(round)) is not None:
            exchange.moved_at[peer] = time.monotonic()

    async def take_parts(self, round: str, sender: PeerId, parts: Parts) -> tuple[Bulk, ...]:
        """Take in a member's parts, wait for the reduced spans, and return those that it has to know."""
        exchange = self.exchanges.get(round)
        share = exchange.share_of(sender) if exchange is not None else None
        if exchange is None or share is None or exchange.ended or exchange.result is None or sender in exchange.parts:
            raise PeerLost("the round is over")
        try:
            await asyncio.to_thread(exchange.take_parts, share, parts)
        except PeerLost as error:
            self._feed(Broken(round, sender, f"…{sender[-6:]}: {error}"))
            raise
        self._feed(PartIn(round, sender))
        results = await asyncio.shield(exchange.result)
        bulks = tuple(results[stage] for stage in sorted(results) if share.shard.holds(stage))
        exchange.bytes_sent += sum(len(bulk.data) for bulk in bulks)
        return bulks

    async def reduce(self, round: str) -> None:
        """Reduce this node's spans, and let those who wait for them have them."""
        exchange = self.exchanges[round]
        await self._hook("while reducing")
        try:
            reduced, results = await asyncio.to_thread(exchange.reduce)
        except PeerLost as error:
            self._feed(Broken(round, None, str(error)))
            return
        except (
            Exception
        ) as error:  # as in `_exchange_with`: the others must not wait for the deadline; it is raised again
            self._feed(Broken(round, None, f"a bug in this node: {error!r}"))
            raise
        if exchange.result is not None and not exchange.result.done():
            exchange.result.set_result(reduced)
        self._feed(Reduced(round, results))

    def forget(self, round: str) -> None:
        """Let go of a round's tensors, and cut its streams."""
        if exchange := self.exchanges.pop(round, None):
            exchange.close()
