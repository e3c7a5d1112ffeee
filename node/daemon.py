"""The node's life, state by state: one method performs each state's effect and returns the signal that ended it.

Tasks are made here alone. What runs beside the training (heartbeat, rounds) only reads and writes through the
parts that `assembly` built; the model itself is touched on the engine's thread and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from node.assembly import load_trainer
from node.board import Board
from node.choosing import choose
from node.config.local import LocalSettings
from node.coordination import Coordination, coordinator_address
from node.core.errors import NodeError, PeerBusy
from node.core.events import EventBus, Fault, Holding, Listening, StateChanged
from node.core.lifecycle import LIVE, Signal, State, next_state
from node.core.orders import Orders
from node.core.types import NO_SHARD, Peer, PeerState, Shard, SwarmView
from node.enlist import Enlisted, Request, found, join
from node.gathering import Gathered, gather
from node.host.devices import pick_device
from node.host.home import Home
from node.listening import listen_addresses, own_addresses, remember_port, tell_lan
from node.loaded import Host, Loaded
from node.network.dht import RECORD_LIFETIME_S, DhtMembership
from node.network.door import Door, StageState
from node.network.membership import Membership
from node.network.processes import RunningP2P, start_p2p
from node.specs import Cutting, load_spec
from node.swarm import Heartbeat
from node.syncing import Sync
from node.training.engine import Engine
from node.trust.identity import Identity
from node.trust.seal import SealedRun
from node.v1 import control_pb2
from node.weights import ensure_weights, serving_weights


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
        self._heartbeat: Heartbeat | None = None
        self._orders = Orders()
        self._coordination: Coordination | None = None
        self._loaded: Loaded | None = None
        self._sync: Sync | None = None
        self._cutting: Cutting | None = None
        self._capacity = 0
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
            State.SYNCING: self._catch_up,
            State.TRAINING: self._train,
            State.PAUSED: self._wait_for_room,
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
            relays=self._settings.bootstrap,
        )
        self._cleanup.push_async_callback(self._running.close)
        self._running.told = lambda text: self._events.emit(Fault(text))
        self._addresses = await own_addresses(self._running, self._settings, self._events)
        remember_port(self._home, self._addresses)
        return Signal.STARTED

    async def _join(self) -> Signal:
        """Found or join the run, and open the door for others."""
        assert self._running is not None
        if self._request.address is None:
            self._enlisted = await found(self._request, self._home, self._identity, self._say)
        else:
            self._enlisted = await join(self._request, self._home, self._identity, self._running, self._say)
        door = Door(self, self._events, self._running.told)
        await door.open(self._running.p2p)
        await self._cleanup.enter_async_context(serving_weights(self._enlisted.base, self._running))
        dht = DhtMembership(self._running, self._identity, self._enlisted.fingerprint)
        await dht.start()
        membership = self._helped(dht, self._enlisted)
        self._cleanup.push_async_callback(membership.close)
        self._cleanup.push_async_callback(self._leave, membership)
        heartbeat = self._heartbeat = Heartbeat(
            membership,
            describe=self._describe,
            folder=self._enlisted.folder,
            addresses=(*self._settings.bootstrap, *self._enlisted.known_addresses),
            events=self._events,
        )
        self._events.emit(Listening(self._identity.peer_id, self._addresses))
        if known := dict.fromkeys((*self._settings.bootstrap, *self._enlisted.known_addresses)):
            await membership.meet(known)
        self._background.append(asyncio.create_task(heartbeat.run(), name="heartbeat"))
        if self._settings.lan:
            about = (self._enlisted.recipe, self._enlisted.fingerprint, self._settings, self._home, self._events)
            self._background.append(asyncio.create_task(tell_lan(*about, lambda: heartbeat.view), name="lan"))
        return Signal.ASSIGNED

    def _helped(self, dht: DhtMembership, run: Enlisted) -> Membership:
        """Return the membership with the help of a coordinator, if there is to be one."""
        address = coordinator_address(self._settings.coordinator, run.folder, self._events)
        if address is None:
            return dht
        around = (self._identity, run, self._board, self._events, self._orders)
        self._coordination = Coordination(address, *around, nudge=self._nudge.set, stop=self.request_stop)
        return self._coordination.helped(dht)

    async def _load(self) -> Signal:
        """Choose the stages to hold; load them, the adapters and the latest checkpoint."""
        assert self._enlisted is not None
        assert self._running is not None
        assert self._heartbeat is not None
        device = pick_device(self._settings.device)
        moves_to = await self._unload()
        view = await self._heartbeat.beat()
        hint = self._coordination.suggested if self._coordination else NO_SHARD
        room, cutting = await asyncio.to_thread(choose, self._enlisted, device, self._settings, view, moves_to, hint)
        held = cutting.held
        self._events.emit(Holding(held.first_stage, held.stop_stage, room.plan.num_stages, room.layers_text(held)))
        self._capacity = room.num_stages
        self._cutting = cutting
        enlisted, heartbeat, spec = self._enlisted, self._heartbeat, load_spec(self._enlisted.recipe, device, cutting)
        folder = await ensure_weights(
            enlisted.base, self._running, lambda: enlisted.neighbours(heartbeat.view), spec, self._say
        )
        self._enlisted = enlisted.with_model_folder(folder)
        trainer = await load_trainer(
            self._enlisted, cutting, device=device, events=self._events, peer_id=self._identity.peer_id
        )
        if trainer.checkpoint is not None:
            self._board.restore(dict(trainer.checkpoint.counters))
        host = Host(
            self._running, self._heartbeat, self._engine, self._board, self._events, self._orders, lambda: self.state
        )
        loaded = Loaded(
            host,
            self._enlisted,
            trainer,
            max_graphs=room.num_graphs(cutting.held),
            may_move=self._settings.stages == "auto",
        )
        await loaded.open()
        self._loaded = loaded
        self._sync = Sync(
            running=self._running,
            fingerprint=self._enlisted.fingerprint,
            adapters=trainer.adapters,
            unknown=trainer.unknown,
            rounds=loaded.rounds,
            progress=loaded.progress,
            events=self._events,
        )
        return Signal.LOADED

    async def _unload(self) -> Shard | None:
        """Let go of what is loaded, if anything is; return the stages that it is to make room for."""
        loaded = self._loaded
        if loaded is None:
            return None
        await loaded.rounds.settle()
        await loaded.upkeep.until_saved()
        self._loaded = None
        await loaded.close()
        return loaded.moves_to

    async def _catch_up(self) -> Signal:
        """Follow the swarm's lineage if it is ahead of this node's."""
        assert self._heartbeat is not None
        assert self._loaded is not None
        assert self._sync is not None
        while not await self._sync.step(await self._heartbeat.beat()):
            pass
        self._loaded.rounds.end_sync()
        return Signal.SYNCED

    async def _train(self) -> Signal:
        """Train until the run is finished or this node fell behind."""
        assert self._loaded is not None
        signal = await self._loaded.train(self._nudge)
        self._is_finished = self._loaded.is_finished
        return signal

    async def _wait_for_room(self) -> Signal:
        """Take no step that could not be saved; the swarm goes on without this node."""
        assert self._loaded is not None
        await self._loaded.rounds.settle()
        await self._loaded.upkeep.until_saved()
        self._loaded.rounds.end_sync()
        return Signal.RESUME

    async def _drain(self) -> Signal:
        """Let a round end, score, save."""
        if self._loaded is not None:
            await self._loaded.rounds.settle()
            await self._loaded.upkeep.save_now()
            if self._is_finished:
                await self._loaded.upkeep.evaluate()
        return Signal.DRAINED

    async def _close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._loaded is not None:
            await self._loaded.close()
        await self._cleanup.aclose()
        await self._engine.close()

    async def _leave(self, membership: Membership) -> None:
        """Say goodbye, but never let a dead network hold up the end."""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(RECORD_LIFETIME_S / 10):
                await membership.leave()

    async def save_checkpoint(self) -> int:
        """Save now and return the version that is on disk.

        Raises:
            NodeError: nothing is loaded yet, or the disk is full or read-only.
        """
        return await self._trained().upkeep.save_now()

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
            PeerBusy: this node is itself not ready, or does not hold that stage.
        """
        loaded = self._loaded
        if loaded is None or self._life is not State.TRAINING or not loaded.cutting.held.holds(stage):
            raise PeerBusy(f"I am {self._life.value}", peer_id=self._identity.peer_id, retry_after_s=2)
        loaded.rounds.expect_newcomer()
        await loaded.strategy.settled()
        lineage = loaded.rounds.lineage
        exported = await loaded.strategy.export(stage)
        return StageState(exported.data, lineage, exported.standing.version, exported.standing.base_hash)

    async def gather(self) -> Gathered:
        """Return the adapter of all stages at one step.

        Raises:
            NodeError: the node is still loading, or nobody holds some stage.
        """
        loaded = self._trained()
        assert self._enlisted is not None
        assert self._running is not None
        return await gather(loaded, self._enlisted, self._running, loaded.rounds.view)

    async def run_stages(self, request: control_pb2.RunStagesRequest) -> control_pb2.RunStagesResponse:
        """Bring hidden states through all stages of the swarm.

        Raises:
            NodeError: the node is still loading, or some stage has no holder.
        """
        return await self._trained().run_stages(request)

    def _trained(self) -> Loaded:
        if self._loaded is None:
            raise NodeError("The node is still loading: there is nothing to use yet.")
        return self._loaded

    def status(self) -> control_pb2.GetStatusResponse:
        """Return the swarm as this node sees it."""
        view = self._heartbeat.view if self._heartbeat else SwarmView(self._identity.peer_id, ())
        loaded = self._loaded
        return self._board.status(
            state=self._life.value,
            view=view,
            mine=loaded.progress() if loaded else None,
            recipe=self._enlisted.recipe if self._enlisted else None,
            plan=self._cutting.plan if self._cutting else None,
            fingerprint=self._enlisted.fingerprint if self._enlisted else "",
            addresses=self._addresses,
            tokens_seen=loaded.pace.tokens_seen if loaded else 0,
            towards_next=loaded.rounds.tokens_towards_next() if loaded else 0,
            hidden_bytes=loaded.hidden_bytes if loaded else (0, 0),
        )

    def _describe(self) -> Peer:
        """Return this node as it announces itself."""
        loaded, cutting = self._loaded, self._cutting
        return Peer(
            peer_id=self._identity.peer_id,
            name=self._settings.name,
            addresses=self._addresses[:8],
            shard=cutting.held if cutting else NO_SHARD,
            state=self.state,
            loss=loaded.pace.loss if loaded else None,
            tokens_given=loaded.upkeep.tokens_given if loaded else 0,
            progress=loaded.progress() if loaded else None,
            expires_at_s=time.time() + RECORD_LIFETIME_S,
            session=loaded.strategy.session if loaded else "",
            drives=bool(self._enlisted and self._enlisted.data is not None),
            stage_tokens_per_s=loaded.stage_tokens_per_s if loaded else 0.0,
            capacity_stages=self._capacity,
        )
