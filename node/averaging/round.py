"""Run the round's machine (`core/round_state.py`) over a real network, a real engine and a real clock.

The machine says what it wants done; this file does it and tells what came of it. All of it runs on the event loop, and
heavy arithmetic goes to a worker thread.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Collection, Mapping

from node.averaging.exchange import Exchange, refuse_sums, sum_of
from node.averaging.patience import Patience
from node.averaging.strategy import AveragerSettings, Hook, SealedStages, Strategy, no_hook
from node.averaging.streams import Streams
from node.averaging.watch import Watch
from node.core.errors import NodeError
from node.core.events import EventBus, Fault, RoundFinished, RoundStarted
from node.core.round_ledger import Ledger
from node.core.round_messages import Message, Results, Share
from node.core.round_state import (
    Applied,
    Apply,
    ApplyFailed,
    Broken,
    Discard,
    Ended,
    Event,
    FellBehind,
    Lead,
    Lost,
    Phase,
    Prepare,
    PrepareDone,
    Publish,
    Received,
    Reduce,
    RoundPlan,
    RoundState,
    Saw,
    Scatter,
    SealDone,
    Send,
    Synced,
    SyncFailed,
    SyncStarted,
    Tick,
)
from node.core.round_step import step, wake_at_s
from node.core.types import PeerId, RoundResult, RoundStatus, Shard, Standing
from node.network.rounds import PeerLost, RoundTransport
from node.training.state import AdapterState


class Averager:
    """All rounds of a run on one node."""

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
        self._ledger: Ledger[SealedStages] = Ledger(lineage=lineage)
        self._state = RoundState(
            me=me,
            standing=strategy.standing,
            settings=settings.text,
            num_stages=settings.num_stages,
            shard=strategy.shard,
            sizes=tuple(sorted(strategy.sizes.items())),
            base_round=lineage[-1] if lineage else "",
        )
        self._prepared: set[str] = set()
        """Rounds that this node came to a rest for and that have not ended."""
        self._discarding: asyncio.Task[None] | None = None
        self._num_discarded = 0
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
        self._streams = Streams(transport, feed=self._feed, spawn=self._spawn, refused=self.dead.add, hook=hook)
        self._watch = Watch(transport, spawn=self._spawn, heard=self._patience.heard, gone=self._gone)
        self.tokens_given = 0

    # --- what the daemon sees --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to answer calls."""
        await self._transport.open(self.received, self._streams)

    async def close(self) -> None:
        """End whatever is under way."""
        await self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *(task for exchange in self._streams.exchanges.values() for task in exchange.tasks)]
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
        """Tokens that were sealed and are not yet in a committed round; 0 where the driver's book counts them."""
        return sum(entry.tokens for entry in self._ledger.pending)

    def left_out(self) -> frozenset[PeerId]:
        """Return the peers that held up a round lately."""
        return self._patience.left_out()

    def saw(self, alive: Mapping[PeerId, Shard]) -> None:
        """Note which peers may step and are alive, and what they hold, for the quorum."""
        self._feed(Saw(dict(alive)))

    def lead(self, members: Collection[PeerId], alive: Mapping[PeerId, Shard], *, budget_s: float) -> None:
        """Call a round of at most `budget_s`, of less once these peers' times are known; its end comes as an event."""
        budget = self._patience.budget(set(members) - {self._me}, ceiling_s=budget_s)
        plan = RoundPlan(frozenset(members), dict(alive), budget.budget_s, answer_s=budget.answer_s)
        self._feed(Lead(f"{self._me[-12:]}.{self._state.standing.version}.{secrets.token_hex(6)}", plan))

    async def until_fallen_behind(self) -> None:
        """Return when a peer turned out to be further, so that its state has to be fetched."""
        await self._fell_behind.wait()

    def begin_sync(self) -> None:
        """Take part in no round until `adopt` or `give_up_sync`."""
        self._feed(SyncStarted())

    async def adopt(self, states: Mapping[int, AdapterState], standing: Standing, lineage: tuple[str, ...]) -> int:
        """Go to another lineage's state; return how many of this node's tokens are in neither.

        Args:
            states: Of stages that this node holds; the bits of others stay.
            standing: Of the peer that sent them; its hashes do not matter.
            lineage: The latest rounds behind it, oldest first.

        Raises:
            CheckpointError: a state cannot be one of its stage.
        """
        await self.until_idle()
        reached = await self._strategy.adopt(states, standing)
        if self._settings.num_stages == 1:
            self._ledger, lost = self._ledger.moved(lineage)
        else:
            self._num_discarded += 1
            self._ledger, lost = Ledger(lineage=lineage), 0  # the drivers do it again: their books tell what
        self.partners = frozenset()
        self._fell_behind.clear()
        self._feed(Synced(reached, lineage[-1] if lineage else ""))
        return lost

    async def reset(self) -> None:
        """Discard this node's sums as soon as no round is under way, since some may be counted elsewhere too."""
        await self.until_idle()
        self._discard()
        assert self._discarding is not None
        await asyncio.wait({self._discarding})

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
        if round not in self._streams.exchanges:
            exchange = Exchange(self._me, self._settings.codec, time.monotonic())
            self._streams.exchanges[round] = exchange
            self._spawn(exchange.tasks, self._watch.run(lambda: self._waits_for(round), exchange.tasks))

    def _perform(self, effect: object) -> None:
        match effect:
            case Send(to, message):
                self._spawn(self._tasks, self._send(to, message))
            case Prepare(round):
                self._prepared.add(round)
                self._spawn(self._tasks, self._prepare(round))
            case Scatter(round, shares):
                self._scatter(round, shares)
            case Reduce(round):
                self._spawn(self._streams.exchanges[round].tasks, self._streams.reduce(round))
            case Publish():
                pass  # the streams that wait for the result were told when it was made
            case Apply(round, _, results):
                self._streams.exchanges[round].committed_at = time.monotonic()
                self._spawn(self._tasks, self._apply(round, results))
            case Discard():
                self._discard()
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

    async def _prepare(self, round: str) -> None:
        if self._discarding is not None:
            await asyncio.wait({self._discarding})  # the session that is told must be that of the sums to come
        prepared = await self._strategy.prepare()
        weight, tokens = prepared.weight, prepared.tokens
        if prepared.sealed is not None:
            await self._keep(prepared.sealed)
            pending = [entry.sum for entry in self._ledger.pending]
            weight, tokens = sum(s.weight for s in pending), sum(s.tokens for s in pending)
            if (exchange := self._streams.exchanges.get(round)) is not None:
                exchange.sums = await asyncio.to_thread(sum_of, pending, self._strategy.sizes)
        if not self._prepared:  # the round ended meanwhile, and no other began
            self._strategy.ended((), committed=False)
        self._feed(PrepareDone(round, weight, tokens, self._strategy.session, prepared.doubts))

    async def _keep(self, sealed: SealedStages) -> str:
        """Enter sums that were just sealed; return why they cannot be, and are let go, or ''."""
        if reason := await asyncio.to_thread(refuse_sums, sealed):
            self._events.emit(
                Fault(f"{reason}. {sealed.tokens} tokens are left out.", "Is the learning rate too high?")
            )
        elif not sealed.is_empty:
            self._ledger = self._ledger.sealed(sealed, sealed.tokens)
        return reason

    def _scatter(self, round: str, shares: tuple[Share, ...]) -> None:
        exchange = self._streams.open(round, shares)
        self._events.emit(RoundStarted(self._state.standing.version, tuple(share.peer_id for share in shares)))
        deadline_s = self._state.round.deadline_s if self._state.round else 0.0
        if exchange.sums is not None:
            self._scatter_sealed(round, exchange, deadline_s)
        else:
            self._spawn(self._tasks, self._seal_and_scatter(round, exchange, deadline_s))

    async def _seal_and_scatter(self, round: str, exchange: Exchange, deadline_s: float) -> None:
        before = self._num_discarded
        try:
            sealed = await self._strategy.seal()
        except NodeError as error:
            self._feed(Broken(round, None, error.message))
            return
        # else the round is over, and these are of a session that is over too
        if before == self._num_discarded and (reason := await self._keep(sealed)):
            self._discard()  # other stages hold the same microbatches: the drivers do them again
            self._feed(Broken(round, None, reason))
            return
        pending = [entry.sum for entry in self._ledger.pending]
        sums = await asyncio.to_thread(sum_of, pending, self._strategy.sizes)
        if not exchange.ended:
            exchange.sums = sums
            self._scatter_sealed(round, exchange, deadline_s)

    def _scatter_sealed(self, round: str, exchange: Exchange, deadline_s: float) -> None:
        self._ledger = self._ledger.carried(round)
        self._feed(SealDone(round))
        self._streams.scatter(round, exchange, deadline_s=deadline_s)

    async def _apply(self, round: str, results: Results) -> None:
        exchange = self._streams.exchanges[round]
        base_hash = self._state.standing.base_hash
        try:
            mean = await asyncio.to_thread(exchange.mean, round, results, base_hash=base_hash)
            standing = await self._strategy.apply(mean)
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

    def _discard(self) -> None:
        self._num_discarded += 1
        self._ledger = Ledger(lineage=self._ledger.lineage)
        self._discarding = asyncio.ensure_future(self._strategy.reset())
        self._tasks.add(self._discarding)
        self._discarding.add_done_callback(self._tasks.discard)
        self._discarding.add_done_callback(self._report)

    def _waits_for(self, round: str) -> frozenset[PeerId] | None:
        """Return whom this node's round waits for, or None when that round is over."""
        if (current := self._state.round) is None or current.id != round:
            return None
        others = current.members | current.called if current.leader == self._me else frozenset({current.leader})
        return others - {self._me} - current.dead - current.failed

    def _gone(self, peer: PeerId) -> None:
        self.dead.add(peer)
        self._feed(Lost(peer, refused=True))

    def _end(self, ended: Ended) -> None:
        exchange = self._streams.exchanges.get(ended.round)
        seconds = time.monotonic() - exchange.started_at if exchange is not None else 0.0
        if exchange is not None:
            self._patience.ended(ended, exchange, me=self._me)
        self.dead |= ended.dead
        version = self._state.standing.version - (ended.status is not RoundStatus.DROPPED)
        members = tuple(sorted(ended.members))
        sent = exchange.bytes_sent if exchange is not None else 0
        result = RoundResult(version, ended.status, members, ended.tokens, seconds, sent, ended.reason)
        if exchange is not None:
            exchange.ended = True
            exchange.opened.set()
            # a committed result may still be on its way to others, and a doubtful one may yet be honoured
            if ended.status is RoundStatus.DROPPED and not ended.is_in_doubt:
                self._streams.forget(ended.round)
        was_prepared = ended.round in self._prepared
        self._prepared.discard(ended.round)
        if was_prepared or ended.status is not RoundStatus.DROPPED:  # a doubtful round may be committed after its end
            self._strategy.ended(ended.shares, committed=ended.status is not RoundStatus.DROPPED)
        self._events.emit(RoundFinished(result))
