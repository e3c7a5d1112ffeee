"""The node's life, state by state: one method performs each state's effect and returns the signal that ended it.

Tasks are made here alone. What runs beside the training (heartbeat, rounds) only reads and writes through the
parts that `assembly` built; the model itself is touched on the engine's thread and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from node.assembly import Trainer, load_spec, load_trainer
from node.averaging.gradient import GradientStrategy, LoopWork, Rule
from node.board import Board
from node.config.local import LocalSettings
from node.core.errors import NodeError, PeerBusy, PeerError, ProtocolViolation, SwarmError
from node.core.events import AdapterSynced, EventBus, Fault, Listening, StateChanged
from node.core.lifecycle import LIVE, Signal, State, next_state
from node.core.progress import peer_ahead
from node.core.types import Peer, PeerState, Progress, Shard, Standing, SwarmView
from node.enlist import Enlisted, Request, found, join
from node.host.devices import pick_device
from node.host.home import Home
from node.listening import listen_addresses, remember_port
from node.network.dht import RECORD_LIFETIME_S, DhtMembership
from node.network.door import Door, StageState, fetch_state
from node.network.processes import RunningP2P, start_p2p
from node.rounds import Rounds
from node.swarm import Heartbeat
from node.training.engine import Engine
from node.training.state import decode, encoded_size_limit
from node.trust.identity import Identity
from node.trust.seal import SealedRun
from node.upkeep import Upkeep
from node.v1 import control_pb2
from node.weights import ensure_weights, serving_weights

_SYNC_RETRY_S = 1.0
_MAX_BACKLOG_STEPS = 4
"""A node whose rounds do not commit stops adding to its gradient after this many steps' worth of tokens."""


class Daemon:
    """One node, from start to end."""

    def __init__(
        self,
        *,
        home: Home,
        settings: LocalSettings,
        request: Request,
        events: EventBus,
        say: Callable[[str], None],
    ) -> None:
        self._home = home
        self._settings = settings
        self._request = request
        self._events = events
        self._say = say
        self._identity = Identity.load_or_create(home.identity_path)
        self._engine = Engine(num_threads=settings.threads)
        self._board = Board(name=settings.name, home=home.path)
        events.subscribe(self._board)
        self._stop = asyncio.Event()
        self._nudge = asyncio.Event()
        self._life = State.STARTING
        self._cleanup = contextlib.AsyncExitStack()
        self._addresses: tuple[str, ...] = ()
        self._running: RunningP2P | None = None
        self._enlisted: Enlisted | None = None
        self._trainer: Trainer | None = None
        self._strategy: GradientStrategy | None = None
        self._heartbeat: Heartbeat | None = None
        self._rounds: Rounds | None = None
        self._upkeep: Upkeep | None = None
        self._is_finished = False
        self._background: list[asyncio.Task[None]] = []

    # --- the lifecycle ---------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Live until the run is finished or somebody asks to stop; return whether the run is finished.

        Raises:
            NodeError: the node could not start, or cannot go on.
        """
        effects: dict[State, Callable[[], Awaitable[Signal]]] = {
            State.STARTING: self._start,
            State.JOINING: self._join,
            State.LOADING: self._load,
            State.SYNCING: self._sync,
            State.TRAINING: self._train,
            State.DRAINING: self._drain,
        }
        try:
            while self._life is not State.STOPPED:
                signal = await self._unless_stopped(effects[self._life])
                self._move(signal)
        except BaseException:
            if self._life in (*LIVE, State.DRAINING):
                self._move(Signal.FATAL)
            raise
        finally:
            await self._close()
        return self._is_finished

    def request_stop(self) -> None:
        """Begin to leave: save, tell the others, end."""
        self._stop.set()
        self._nudge.set()

    async def _unless_stopped(self, effect: Callable[[], Awaitable[Signal]]) -> Signal:
        """Perform a state's effect, cut short by a request to stop."""
        if self._life is State.DRAINING:
            return await effect()
        if self._stop.is_set():
            return Signal.STOP_REQUESTED
        work = asyncio.ensure_future(effect())
        stop = asyncio.ensure_future(self._stop.wait())
        watched = {work, stop, *self._background}
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if work in done:
            return work.result()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        for task in done & set(self._background):
            task.result()  # a heartbeat that ended has failed: let it be seen
        return Signal.STOP_REQUESTED

    def _move(self, signal: Signal) -> None:
        before, self._life = self._life, next_state(self._life, signal)
        if before is not self._life:
            self._events.emit(StateChanged(before.value, self._life.value))

    async def _start(self) -> Signal:
        """Listen."""
        listen = listen_addresses(self._settings, self._home)
        self._running = await start_p2p(
            self._home.path / "p2p",
            identity_path=self._identity.path,
            listen=listen,
            announce=self._settings.announce,
        )
        self._cleanup.push_async_callback(self._running.close)
        self._addresses = await self._running.addresses()
        remember_port(self._home, self._addresses)
        return Signal.STARTED

    async def _join(self) -> Signal:
        """Found or join the run, and open the door for others."""
        assert self._running is not None
        if self._request.address is None:
            self._enlisted = await found(self._request, self._home, self._identity, self._say)
        else:
            self._enlisted = await join(self._request, self._home, self._running, self._say)
        door = Door(self)
        await door.open(self._running.p2p)
        await self._cleanup.enter_async_context(serving_weights(self._enlisted.base, self._running))
        membership = DhtMembership(self._running, self._identity, self._enlisted.fingerprint)
        await membership.start()
        self._cleanup.push_async_callback(membership.close)
        self._cleanup.push_async_callback(self._leave, membership)
        self._heartbeat = Heartbeat(
            membership,
            describe=self._describe,
            folder=self._enlisted.folder,
            addresses=self._enlisted.known_addresses,
            events=self._events,
        )
        self._events.emit(Listening(self._identity.peer_id, self._addresses))
        if self._enlisted.known_addresses:
            await membership.meet(dict.fromkeys(self._enlisted.known_addresses))
        self._background.append(asyncio.create_task(self._heartbeat.run(), name="heartbeat"))
        return Signal.ASSIGNED

    async def _load(self) -> Signal:
        """Load the model, the adapter and the latest checkpoint."""
        assert self._enlisted is not None
        assert self._running is not None
        assert self._heartbeat is not None
        spec = load_spec(self._enlisted.recipe, pick_device(self._settings.device))
        enlisted, heartbeat = self._enlisted, self._heartbeat
        folder = await ensure_weights(
            enlisted.base, self._running, lambda: enlisted.neighbours(heartbeat.view), spec, self._say
        )
        self._enlisted = enlisted.with_model_folder(folder)
        trainer = await load_trainer(
            self._enlisted, self._settings, self._engine, self._events, peer_id=self._identity.peer_id
        )
        if trainer.checkpoint is not None:
            self._board.restore(dict(trainer.checkpoint.counters))
        self._trainer = trainer
        self._strategy = GradientStrategy(
            engine=self._engine,
            adapters=(trainer.adapter,),
            work=LoopWork(trainer.loop, trainer.adapter),
            rule=Rule(trainer.optimizer, trainer.schedule),
            standing=trainer.standing,
            num_stages=1,
            events=self._events,
        )
        self._rounds = Rounds(
            strategy=self._strategy,
            num_stages=1,
            running=self._running,
            heartbeat=self._heartbeat,
            enlisted=self._enlisted,
            lineage=trainer.lineage,
            events=self._events,
            progress=self._progress,
        )
        self._upkeep = Upkeep(
            trainer=trainer,
            strategy=self._strategy,
            rounds=self._rounds,
            board=self._board,
            engine=self._engine,
            events=self._events,
        )
        await self._rounds.open()
        self._cleanup.push_async_callback(self._rounds.close)
        return Signal.LOADED

    async def _sync(self) -> Signal:
        """Follow the swarm's lineage if it is ahead of this node's."""
        assert self._heartbeat is not None
        assert self._rounds is not None
        while True:
            view = await self._heartbeat.beat()
            ahead = peer_ahead(view, self._progress())
            if ahead is None:
                self._rounds.end_sync()
                return Signal.SYNCED
            try:
                await self._fetch_from(ahead)
            except PeerBusy:
                await asyncio.sleep(_SYNC_RETRY_S)
            except (PeerError, SwarmError, NodeError) as error:
                self._events.emit(Fault(error.message, "Trying again, with another peer if there is one."))
                await asyncio.sleep(_SYNC_RETRY_S)

    async def _fetch_from(self, peer: Peer) -> None:
        assert self._running is not None
        assert self._enlisted is not None
        assert self._trainer is not None
        assert self._rounds is not None
        mine = self._progress()
        layout = self._trainer.adapter.layout
        fetched = await fetch_state(
            self._running.p2p,
            peer.peer_id,
            fingerprint=self._enlisted.fingerprint,
            stage=0,
            max_bytes=encoded_size_limit(layout),
        )
        state = await asyncio.to_thread(decode, fetched.data, layout)
        if state.version != fetched.version:
            raise ProtocolViolation("A peer sent a state of another version than it said.", peer_id=peer.peer_id)
        standing = Standing(state.version, fetched.base_hash, state.committed_tokens)
        await self._rounds.adopt({0: state}, standing, fetched.lineage)
        reason = "another lineage had more tokens" if mine.committed_tokens else "joined the swarm"
        self._events.emit(AdapterSynced(peer.peer_id, state.version, len(fetched.data), reason))

    async def _train(self) -> Signal:
        """Train until the run is finished or this node fell behind."""
        assert self._trainer is not None
        assert self._rounds is not None
        assert self._upkeep is not None
        assert self._enlisted is not None
        max_steps = self._enlisted.recipe.max_steps or 1
        rounds = asyncio.create_task(self._rounds.run(self._nudge), name="rounds")
        try:
            while self._progress().version < max_steps:
                if rounds.done():
                    return rounds.result()
                if self._trainer.adapter.tokens >= _MAX_BACKLOG_STEPS * self._target_tokens():
                    await asyncio.sleep(0.2)  # rounds do not commit: more gradient would only be staler
                    continue
                await self._trainer.loop.train_one()
                await self._rounds.step_if_alone()
                self._nudge.set()
                await self._upkeep.between_microbatches()
            self._is_finished = True
            return Signal.STOP_REQUESTED
        finally:
            rounds.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await rounds

    async def _drain(self) -> Signal:
        """Let a round end, score, save."""
        if self._rounds is not None and self._upkeep is not None:
            await self._rounds.settle()
            await self._upkeep.save_now()
            if self._is_finished:
                await self._upkeep.evaluate()
        return Signal.DRAINED

    async def _close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._cleanup.aclose()
        await self._engine.close()

    async def _leave(self, membership: DhtMembership) -> None:
        """Say goodbye, but never let a dead network hold up the end."""
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(membership.leave(), RECORD_LIFETIME_S / 10)

    async def save_checkpoint(self) -> int:
        """Save now and return the version that is on disk.

        Raises:
            NodeError: nothing is loaded yet, or the disk is full or read-only.
        """
        if self._upkeep is None:
            raise NodeError("The node is still loading: there is nothing to save yet.")
        return await self._upkeep.save_now()

    # --- what others see -------------------------------------------------------------------------------------

    @property
    def sealed_run(self) -> SealedRun:
        """The run, as its founder signed it."""
        assert self._enlisted is not None
        return self._enlisted.sealed

    @property
    def state(self) -> PeerState:
        """What this node does, in the words of the announcements."""
        names = {state.value for state in PeerState}
        return PeerState(self._life.value) if self._life.value in names else PeerState.JOINING

    async def export_state(self, stage: int) -> StageState:
        """Return a stage's adapter and moments, and where they stand, for a newcomer.

        Raises:
            PeerBusy: this node is itself not ready.
        """
        if self._strategy is None or self._rounds is None or self._life is not State.TRAINING or stage != 0:
            raise PeerBusy(f"I am {self._life.value}", peer_id=self._identity.peer_id, retry_after_s=2)
        await self._strategy.settled()
        lineage = self._rounds.lineage
        exported = await self._strategy.export(stage)
        return StageState(exported.data, lineage, exported.standing.version, exported.standing.base_hash)

    def status(self) -> control_pb2.GetStatusResponse:
        """Return the swarm as this node sees it."""
        view = self._heartbeat.view if self._heartbeat else SwarmView(self._identity.peer_id, ())
        mine = self._progress() if self._strategy else None
        return self._board.status(
            state=self._life.value,
            view=view,
            mine=mine,
            recipe=self._enlisted.recipe if self._enlisted else None,
            fingerprint=self._enlisted.fingerprint if self._enlisted else "",
            addresses=self._addresses,
            tokens_seen=self._trainer.loop.tokens_seen if self._trainer else 0,
            towards_next=self._rounds.tokens_towards_next() if self._rounds else 0,
        )

    def _target_tokens(self) -> int:
        assert self._enlisted is not None
        return self._enlisted.recipe.potluck.averaging.target_batch_tokens

    def _progress(self) -> Progress:
        """Return this node's progress, as it is now."""
        assert self._strategy is not None
        assert self._trainer is not None
        standing = self._strategy.standing
        return Progress(
            version=standing.version,
            base_hash=standing.base_hash,
            committed_tokens=standing.committed_tokens,
            tokens=self._trainer.adapter.tokens,
            tokens_per_s=self._trainer.loop.tokens_per_s,
            at_s=time.time(),
            hashes=standing.hashes,
        )

    def _describe(self) -> Peer:
        """Return this node as it announces itself."""
        return Peer(
            peer_id=self._identity.peer_id,
            name=self._settings.name,
            addresses=self._addresses[:8],
            shard=Shard(0, 1),
            state=self.state,
            loss=self._trainer.loop.loss if self._trainer else None,
            tokens_given=self._upkeep.tokens_given if self._upkeep else 0,
            progress=self._progress() if self._strategy else None,
            expires_at_s=time.time() + RECORD_LIFETIME_S,
            session=self._strategy.session if self._strategy else "",
        )
