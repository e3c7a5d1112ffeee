"""A run that is loaded on this node: what trains, what averages, what serves and what saves, put together.

Two forms, one face. In a run of one stage the node trains its own microbatches in one piece (`training/loop.py`) and
goes on during rounds; in a run of several stages it drives them through the swarm (`pipeline/driver.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.assembly import Trainer
from node.averaging.gradient import GradientStrategy, LoopWork
from node.board import Board
from node.core.errors import NeedsInput, NodeError
from node.core.events import EventBus
from node.core.lifecycle import Signal
from node.core.orders import Orders
from node.core.types import HASH_CHARS, PeerState, Progress, Shard, Standing, SwarmView
from node.enlist import Enlisted
from node.holding import MAX_IN_FLIGHT, Mover
from node.network.processes import RunningP2P
from node.pipeline.parts import Cut, Pipeline, Surroundings, build_pipeline
from node.pipeline.wire import hidden_bytes, hidden_from
from node.rounds import Rounds
from node.swarm import Heartbeat
from node.training.engine import Engine
from node.training.evaluate import Score, score
from node.training.loop import TrainingLoop
from node.training.pace import Pace
from node.upkeep import Upkeep
from node.v1 import control_pb2

_LOOK_EVERY_S = 0.1
_LINGER_S = 10.0
"""Nobody has asked for so long: whoever scores a result is through, or gone."""
_MAX_LINGER_S = 600.0
_LOOK_AROUND_S = 10.0
MAX_BACKLOG_STEPS = 4
"""A node whose rounds do not commit stops adding to its gradient after this many steps' worth of tokens."""


@dataclass(frozen=True)
class Host:
    """What a loaded run needs of the node around it."""

    running: RunningP2P
    heartbeat: Heartbeat
    engine: Engine
    board: Board
    events: EventBus
    orders: Orders
    state: Callable[[], PeerState]


class Loaded:
    """One run, ready to train."""

    def __init__(self, host: Host, enlisted: Enlisted, trainer: Trainer, *, max_graphs: int, may_move: bool) -> None:
        """Put the parts together; nothing is served before `open`."""
        self.moves_to: Shard | None = None
        """Stages to hold instead, once `train` has returned `Signal.REASSIGNED`."""
        self._mover = Mover(trainer.cutting.plan.num_stages, may_move=may_move)
        self.trainer = trainer
        self.cutting = trainer.cutting
        self._looked_at = time.monotonic()
        self._host = host
        self._enlisted = enlisted
        self._target_tokens = enlisted.recipe.potluck.averaging.target_batch_tokens
        self._max_steps = enlisted.recipe.max_steps or 1
        self._num_stages = trainer.cutting.plan.num_stages
        self.pipeline = self._build_pipeline(max_graphs) if self._num_stages > 1 else None
        self.loop = self._build_loop() if self.pipeline is None else None
        self.strategy = GradientStrategy(
            engine=host.engine,
            adapters=tuple(trainer.adapters.values()),
            work=self.pipeline.driver if self.pipeline is not None else LoopWork(self._the_loop, trainer.adapters[0]),
            rule=trainer.rule,
            standing=trainer.standing,
            num_stages=self._num_stages,
            events=host.events,
        )
        self.rounds = Rounds(
            strategy=self.strategy,
            num_stages=self._num_stages,
            running=host.running,
            heartbeat=host.heartbeat,
            enlisted=enlisted,
            lineage=trainer.lineage,
            events=host.events,
            orders=host.orders,
            progress=self.progress,
        )
        self.upkeep = Upkeep(
            trainer=trainer,
            strategy=self.strategy,
            rounds=self.rounds,
            board=host.board,
            events=host.events,
            score=self._score,
        )

    async def open(self) -> None:
        """Begin to answer rounds and to serve stages."""
        await self.rounds.open()
        if self.pipeline is not None:
            await self.pipeline.open()

    async def close(self) -> None:
        """Answer no more."""
        if self.pipeline is not None:
            await self.pipeline.close()
        await self.rounds.close()

    @property
    def pace(self) -> Pace:
        """Rate and loss of this node's own training."""
        return self.pipeline.driver.pace if self.pipeline is not None else self._the_loop.pace

    @property
    def own_tokens(self) -> int:
        """Tokens of this node's own microbatches since the last committed round."""
        return self.pipeline.driver.tokens if self.pipeline is not None else self.trainer.adapters[0].tokens

    @property
    def stage_tokens_per_s(self) -> float:
        """What this node makes of one stage, if it did nothing else; 0 before it is measured."""
        return self.pipeline.runner.tokens_per_s if self.pipeline is not None else 0.0

    @property
    def hidden_bytes(self) -> tuple[int, int]:
        """Bytes of hidden states and gradients that this node has sent and received."""
        if self.pipeline is None:
            return 0, 0
        return self.pipeline.transport.bytes_sent, self.pipeline.transport.bytes_received

    def progress(self) -> Progress:
        """Return this node's progress, as it is now."""
        standing = self.strategy.standing
        return Progress(
            version=standing.version,
            base_hash=standing.base_hash,
            committed_tokens=standing.committed_tokens,
            tokens=self.own_tokens,
            tokens_per_s=self.pace.tokens_per_s,
            at_s=time.time(),
            hashes=standing.hashes,
        )

    async def train(self, nudge: asyncio.Event) -> Signal:
        """Train until the run is finished, this node fell behind, or what it makes cannot be saved."""
        rounds = asyncio.create_task(self.rounds.run(nudge), name="rounds")
        try:
            if self.pipeline is not None:
                return await self._drive(self.pipeline, rounds, nudge)
            return await self._loop_on(rounds, nudge)
        finally:
            rounds.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await rounds

    @property
    def is_finished(self) -> bool:
        """Whether the run has made all its steps, or its operator has ended it."""
        return self.strategy.version >= self._max_steps or self._host.orders.is_finished

    def _most_tokens(self) -> int:
        """Return how many of its own tokens may wait for a round: if none commits, more would only be staler."""
        return 0 if self._host.orders.is_paused else MAX_BACKLOG_STEPS * self._target_tokens

    async def _loop_on(self, rounds: asyncio.Task[Signal], nudge: asyncio.Event) -> Signal:
        while not self.is_finished:
            if rounds.done():
                return rounds.result()
            if self.own_tokens >= self._most_tokens():
                await asyncio.sleep(0.2)
                continue
            await self._the_loop.train_one()
            if self.rounds.tokens_towards_next() >= self._target_tokens:
                await self.upkeep.saved()  # the step before the next one is on the disk first
            if self.upkeep.is_blocked:
                return Signal.PAUSE
            await self.rounds.step_if_alone()
            nudge.set()
            await self.upkeep.between_microbatches()
        return Signal.STOP_REQUESTED

    async def _drive(self, pipeline: Pipeline, rounds: asyncio.Task[Signal], nudge: asyncio.Event) -> Signal:
        """Let the driver go, and see to rounds and saving beside it."""
        driver = pipeline.driver
        driver.release()
        driving = asyncio.create_task(driver.run(backlog_tokens=self._most_tokens))
        try:
            while not self.is_finished:
                for task in (rounds, driving):
                    if task is rounds and task.done():
                        return rounds.result()
                    if task.done():
                        task.result()
                if self.upkeep.is_blocked:
                    return Signal.PAUSE
                await self.rounds.step_if_alone()
                nudge.set()
                await self.upkeep.between_microbatches()
                if await self._should_move():
                    return Signal.REASSIGNED
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            driving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await driving
        await self.upkeep.evaluate()
        await self._see_others_through(pipeline)
        return Signal.STOP_REQUESTED

    async def _see_others_through(self, pipeline: Pipeline) -> None:
        """Serve on at the run's end for as long as others score with this node's stages."""
        until = time.monotonic() + _MAX_LINGER_S
        while time.monotonic() < until and pipeline.server.idle_s < _LINGER_S:
            peers = self.rounds.view().peers
            if not any(peer.drives and peer.peer_id != self._host.running.peer_id for peer in peers):
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def run_stages(self, request: control_pb2.RunStagesRequest) -> control_pb2.RunStagesResponse:
        """Bring hidden states of the owner's own through all stages of the swarm.

        Raises:
            NodeError: the run has no stages, the request is not in order, or some stage has no holder that answers.
        """
        if self.pipeline is None:
            raise NodeError("This run is not cut into stages: the whole model is on each node.")
        shard, lengths = self.trainer.shard, tuple(request.lengths)
        hidden = hidden_from(request.hidden, request.dtype, lengths, shard.hidden_size)
        try:
            output = await self.pipeline.inference.run(
                hidden.to(shard.device, shard.dtype),
                lengths,
                adapter=not request.without_adapter,
                text=request.text[:64],
                start=request.start,
            )
        except NeedsInput:
            return control_pb2.RunStagesResponse(needs_all=True)
        return control_pb2.RunStagesResponse(hidden=hidden_bytes(output, request.dtype))

    async def _should_move(self) -> bool:
        """Look now and then whether other stages need this node more; what its sums hold is then done again."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_AROUND_S:
            return False
        self._looked_at = now
        # the search takes a quarter of a second with 50 nodes and 80 stages
        self.moves_to = await asyncio.to_thread(self._mover.wanted, self.rounds.view())
        return self.moves_to is not None

    async def _score(self) -> Score | None:
        """Score the held-out split, over the swarm's stages if they are not all here."""
        batches, shard, engine = self.trainer.held_out, self.trainer.shard, self._host.engine
        if self.pipeline is None:
            return await score(engine, shard, batches)
        return await self.pipeline.score(shard, engine, batches)

    @property
    def _the_loop(self) -> TrainingLoop:
        assert self.loop is not None, "a run of one stage has a loop"
        return self.loop

    def _build_loop(self) -> TrainingLoop:
        trainer = self.trainer
        assert trainer.stream is not None, "a run of one stage has no lenders"
        return TrainingLoop(
            engine=self._host.engine,
            model=trainer.shard,
            adapters=tuple(trainer.adapters.values()),
            stream=trainer.stream,
            events=self._host.events,
            seed=self._enlisted.recipe.seed,
            peer_id=self._host.running.peer_id,
        )

    def _build_pipeline(self, max_graphs: int) -> Pipeline:
        host, recipe, cutting = self._host, self._enlisted.recipe, self.cutting
        # what is under way when a round is called is waited for, so not much more than a step needs
        needed = self._target_tokens // (recipe.micro_batch_size * recipe.sequence_len)
        return build_pipeline(
            around=Surroundings(
                me=host.running.peer_id,
                running=host.running,
                fingerprint=self._enlisted.fingerprint,
                view=self._view,
                standing=lambda: _token(self.strategy.standing),
                not_ready=lambda: "" if host.state() is PeerState.TRAINING else f"I am {host.state().value}",
                reset=self._reset,
                events=host.events,
            ),
            cut=Cut(cutting.plan, cutting.held, recipe.potluck.activations, recipe.potluck.wire),
            shard=self.trainer.shard,
            adapters=self.trainer.adapters,
            engine=host.engine,
            stream=self.trainer.stream,
            salt=f"{recipe.seed}:{host.running.peer_id}",
            max_in_flight=min(MAX_IN_FLIGHT, max(2, needed)),
            max_graphs=max_graphs,
        )

    def _view(self) -> SwarmView:
        return self.rounds.view()

    async def _reset(self, session: str) -> bool:
        """Drop the sums of a session that another holder may have counted too."""
        if session == self.strategy.session:
            await self.rounds.reset()
        return True


def _token(standing: Standing) -> tuple[int, str]:
    return standing.version, standing.base_hash[:HASH_CHARS]
