"""Run the round's machine (`core/round_state.py`) over a real network, a real engine and a real clock.

The machine says what it wants done; this file does it and tells what came of it. One averager serves one stage; all
of it runs on the event loop, and heavy arithmetic goes to a worker thread.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Collection

from node.averaging.exchange import Exchange, sum_of
from node.averaging.patience import Patience
from node.averaging.strategy import AveragerSettings, Hook, Strategy, no_hook
from node.core.errors import NodeError
from node.core.events import EventBus, Fault, RoundFinished, RoundStarted
from node.core.round_ledger import Ledger
from node.core.round_messages import Message, Share
from node.core.round_state import (
    Applied,
    Apply,
    ApplyFailed,
    Broken,
    Ended,
    Event,
    FellBehind,
    Lead,
    Lost,
    PartIn,
    Phase,
    Publish,
    Received,
    Reduce,
    Reduced,
    RoundPlan,
    RoundState,
    Saw,
    Scatter,
    Seal,
    SealDone,
    Send,
    SpanIn,
    Synced,
    SyncFailed,
    SyncStarted,
    Tick,
)
from node.core.round_step import step, wake_at_s
from node.core.types import PeerId, RoundResult, RoundStatus
from node.network.rounds import Bulk, PeerLost, RoundTransport
from node.training.adapter import SealedGradient
from node.training.state import AdapterState

_PING_EVERY_S = 0.5
_OPEN_WAIT_S = 60.0


class Averager:
    """All rounds of one stage on one replica."""

    def __init__(
        self,
        strategy: Strategy,
        transport: RoundTransport,
        settings: AveragerSettings,
        *,
        me: PeerId,
        lineage: tuple[str, ...] = (),
        events: EventBus,
        hook: Hook = no_hook,
    ) -> None:
        self._strategy = strategy
        self._transport = transport
        self._settings = settings
        self._me = me
        self._events = events
        self._hook = hook
        self._ledger: Ledger[SealedGradient] = Ledger(lineage=lineage)
        self._state = RoundState(
            me=me,
            standing=strategy.standing,
            settings=settings.text,
            num_values=settings.num_values,
            base_round=lineage[-1] if lineage else "",
        )
        self._exchanges: dict[str, Exchange] = {}
        self._events_in: deque[Event] = deque()
        self._is_stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._patience = Patience()
        self._fell_behind: asyncio.Event = asyncio.Event()
        self.partners: frozenset[PeerId] = frozenset()
        """Members of the round that made the present bits: as far as this node, whether they announced it or not."""
        self.stepped_at_s = time.time()
        self.dead: set[PeerId] = set()
        """Peers that refused a connection since somebody last looked."""
        self.tokens_given = 0

    # --- what the daemon sees --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to answer calls."""
        await self._transport.open(self)

    async def close(self) -> None:
        """End whatever is under way."""
        await self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *(task for exchange in self._exchanges.values() for task in exchange.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_idle(self) -> bool:
        """Whether no round is under way."""
        return self._state.phase is Phase.IDLE

    @property
    def lineage(self) -> tuple[str, ...]:
        """The latest rounds behind the present bits, oldest first."""
        return self._ledger.lineage

    @property
    def pending_tokens(self) -> int:
        """Tokens that were sealed and are not yet in a committed round."""
        return sum(entry.tokens for entry in self._ledger.pending)

    def left_out(self) -> frozenset[PeerId]:
        """Return the peers that held up a round lately."""
        return self._patience.left_out(time.monotonic())

    def saw(self, alive: Collection[PeerId]) -> None:
        """Note which replicas may step and are alive, for the quorum."""
        self._feed(Saw(frozenset(alive)))

    def lead(self, members: Collection[PeerId], alive: Collection[PeerId], *, budget_s: float) -> None:
        """Call a round; how it ends comes as an event."""
        plan = RoundPlan(
            stage=self._settings.stage,
            members=frozenset(members),
            alive=frozenset(alive),
            budget_s=budget_s,
            answer_s=budget_s / 2,
        )
        self._feed(Lead(f"{self._me[-12:]}.{self._state.standing.version}.{secrets.token_hex(6)}", plan))

    async def until_fallen_behind(self) -> None:
        """Return when a peer turned out to be further, so that its state has to be fetched."""
        await self._fell_behind.wait()

    def begin_sync(self) -> None:
        """Take part in no round until `adopt` or `give_up_sync`."""
        self._feed(SyncStarted())

    async def adopt(self, state: AdapterState, lineage: tuple[str, ...]) -> int:
        """Go to another lineage's state; return how many of this node's tokens are in neither.

        Raises:
            CheckpointError: the state cannot be one of this stage.
        """
        await self.until_idle()
        standing = await self._strategy.adopt(state)
        self._ledger, lost = self._ledger.moved(lineage)
        self.partners = frozenset()
        self._fell_behind.clear()
        self._feed(Synced(standing, lineage[-1] if lineage else ""))
        return lost

    def give_up_sync(self) -> None:
        """Go on from what is here."""
        self._fell_behind.clear()
        self._feed(SyncFailed())

    async def until_idle(self) -> None:
        """Return when no round is under way; a round ends by its deadline."""
        while not self.is_idle:
            self._changed.clear()
            await self._changed.wait()

    # --- the machine -----------------------------------------------------------------------------------------

    def received(self, sender: PeerId, message: Message) -> None:
        """Take in a word of the round from an authenticated peer."""
        self._feed(Received(sender, message))

    def _feed(self, event: Event) -> None:
        self._events_in.append(event)
        if self._is_stepping:
            return
        self._is_stepping = True
        try:
            while self._events_in:
                before = self._state.round
                self._state, effects = step(self._state, self._events_in.popleft(), time.monotonic())
                after = self._state.round
                if after is not None and (before is None or before.id != after.id):
                    self._begin(after.id)
                for effect in effects:
                    self._perform(effect)
        finally:
            self._is_stepping = False
        self._changed.set()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if (wake := wake_at_s(self._state)) is not None:
            delay = max(0.0, wake - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._feed, Tick())

    def _begin(self, round: str) -> None:
        if round not in self._exchanges:
            exchange = Exchange(self._me, self._settings.codec, time.monotonic())
            self._exchanges[round] = exchange
            self._spawn(exchange.tasks, self._watch(exchange, round))

    def _perform(self, effect: object) -> None:
        match effect:
            case Send(to, message):
                self._spawn(self._tasks, self._send(to, message))
            case Seal(round):
                self._spawn(self._tasks, self._seal(round))
            case Scatter(round, shares):
                self._scatter(round, shares)
            case Reduce(round):
                self._spawn(self._exchanges[round].tasks, self._reduce(round))
            case Publish():
                pass  # the streams that wait for the result were told when it was made
            case Apply(round, _):
                self._spawn(self._tasks, self._apply(round))
            case Ended():
                self._end(effect)
            case FellBehind():
                self._fell_behind.set()

    def _spawn(self, tasks: set[asyncio.Task[None]], work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._report)

    def _report(self, task: asyncio.Task[None]) -> None:
        """An error that nobody foresaw must be seen; the round itself ends by its deadline."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.emit(Fault(f"A bug in an averaging round: {error!r}.", "Please report it."))

    # --- the effects -----------------------------------------------------------------------------------------

    async def _send(self, to: PeerId, message: Message) -> None:
        await self._hook(f"before {type(message).__name__}")
        try:
            await self._transport.send(to, message)
        except PeerLost as error:
            if error.is_refused:
                self.dead.add(to)
            self._feed(Lost(to, refused=error.is_refused))

    async def _seal(self, round: str) -> None:
        sealed = await self._strategy.seal()
        if sealed.tokens:
            self._ledger = self._ledger.sealed(sealed, sealed.tokens)
        pending = [entry.sum for entry in self._ledger.pending]
        exchange = self._exchanges.get(round)
        if exchange is not None:
            # a gradient of zeros if there is nothing: the spans of the others are computed all the same
            exchange.gradient = await asyncio.to_thread(sum_of, pending) if pending else sealed.gradient
        weight, tokens = sum(s.weight for s in pending), sum(s.tokens for s in pending)
        self._feed(SealDone(round, weight, tokens))

    def _scatter(self, round: str, shares: tuple[Share, ...]) -> None:
        exchange = self._exchanges[round]
        self._ledger = self._ledger.carried(round)
        for id in [id for id in self._exchanges if id != round]:
            self._forget(id)
        exchange.shares = shares
        exchange.result = asyncio.get_running_loop().create_future()
        exchange.opened.set()
        members = tuple(share.peer_id for share in shares)
        self._events.emit(RoundStarted(self._settings.stage, self._state.standing.version, members))
        for share in shares:
            if share.peer_id != self._me:
                self._spawn(exchange.tasks, self._exchange_with(round, exchange, share))

    async def _exchange_with(self, round: str, exchange: Exchange, share: Share) -> None:
        await self._hook("while sending")
        try:
            part = await asyncio.to_thread(exchange.part_for, share)
            exchange.bytes_sent += len(part)
            budget_s = max(1.0, (self._state.round.deadline_s if self._state.round else 0.0) - time.monotonic())
            size = exchange.span_bytes(share)
            bulk = await self._transport.exchange(share.peer_id, round, part, result_bytes=size, timeout_s=budget_s)
            await self._hook("while gathering")
            await asyncio.to_thread(exchange.take_span, share, bulk)
        except PeerLost as error:
            if error.is_refused:
                self.dead.add(share.peer_id)
            suspect = share.peer_id if error.is_to_blame else None
            self._feed(Broken(round, suspect, f"the exchange with …{share.peer_id[-6:]} failed: {error}"))
            return
        self._feed(SpanIn(round, share.peer_id, f"{bulk.digest.hex()}:{bulk.norm_sq!r}"))

    async def expect_part(self, round: str, sender: PeerId) -> int:
        """Wait until the round is open here, and return the bytes of the part that `sender` has to send."""
        exchange = self._exchanges.get(round)
        if exchange is None:
            raise PeerLost("I am not in that round")
        await asyncio.wait_for(exchange.opened.wait(), _OPEN_WAIT_S)
        if exchange.ended or exchange.share_of(sender) is None or sender in exchange.parts:
            raise PeerLost("you are not in that round, or it is over")
        return exchange.span_bytes(exchange.mine)

    async def take_part(self, round: str, sender: PeerId, part: Bulk) -> Bulk:
        """Take in a part, wait for the reduced span, and return it."""
        exchange = self._exchanges.get(round)
        if exchange is None or exchange.ended or exchange.result is None or sender in exchange.parts:
            raise PeerLost("the round is over")
        try:
            await asyncio.to_thread(exchange.take_part, sender, part.data)
        except PeerLost as error:
            self._feed(Broken(round, sender, f"…{sender[-6:]}: {error}"))
            raise
        self._feed(PartIn(round, sender))
        result = await asyncio.shield(exchange.result)
        exchange.bytes_sent += len(result.data)
        return result

    async def _reduce(self, round: str) -> None:
        exchange = self._exchanges[round]
        await self._hook("while reducing")
        try:
            result = await asyncio.to_thread(exchange.reduce)
        except PeerLost as error:
            self._feed(Broken(round, None, str(error)))
            return
        if exchange.result is not None and not exchange.result.done():
            exchange.result.set_result(result)
        self._feed(Reduced(round, f"{result.digest.hex()}:{result.norm_sq!r}"))

    async def _apply(self, round: str) -> None:
        exchange = self._exchanges[round]
        try:
            standing = await self._strategy.apply(await asyncio.to_thread(exchange.mean))
        except Exception as error:  # the machine must not wait for a step that will not come; a bug is raised again
            self._feed(ApplyFailed(round, str(error) or type(error).__name__))
            if not isinstance(error, NodeError):
                raise
            return
        self.tokens_given += exchange.mine.tokens
        self._ledger = self._ledger.committed(round, shared=len(exchange.shares) > 1)
        self.partners = frozenset(share.peer_id for share in exchange.shares) - {self._me}
        self.stepped_at_s = time.time()
        self._feed(Applied(round, standing))

    async def _watch(self, exchange: Exchange, round: str) -> None:
        """Notice within a second that somebody whom this round waits for has died."""
        while (current := self._state.round) is not None and current.id == round:
            others = current.members | current.called if current.leader == self._me else {current.leader}
            for peer in others - {self._me} - current.dead - current.failed:
                self._spawn(exchange.tasks, self._ping(peer))
            await asyncio.sleep(_PING_EVERY_S)

    async def _ping(self, peer: PeerId) -> None:
        try:
            await self._transport.ping(peer)
        except PeerLost as error:
            if error.is_refused:
                self.dead.add(peer)
                self._feed(Lost(peer, refused=True))

    def _end(self, ended: Ended) -> None:
        exchange = self._exchanges.get(ended.round)
        seconds = time.monotonic() - exchange.started_at if exchange is not None else 0.0
        self._patience.lost_with(ended.culprits - {self._me}, time.monotonic())
        self.dead |= ended.dead
        version = self._state.standing.version - (ended.status is not RoundStatus.DROPPED)
        members = tuple(sorted(ended.members))
        sent = exchange.bytes_sent if exchange is not None else 0
        result = RoundResult(
            self._settings.stage, version, ended.status, members, ended.tokens, seconds, sent, ended.reason
        )
        if exchange is not None:
            exchange.ended = True
            exchange.opened.set()
            # a committed result may still be on its way to others, and a doubtful one may yet be honoured
            if ended.status is RoundStatus.DROPPED and not ended.is_in_doubt:
                self._forget(ended.round)
        self._events.emit(RoundFinished(result))

    def _forget(self, round: str) -> None:
        if exchange := self._exchanges.pop(round, None):
            exchange.close()
