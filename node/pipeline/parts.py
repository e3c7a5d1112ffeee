"""Build the parts of one node's pipeline around its loaded shard; they share an engine, a transport and a view."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from node.core.events import EventBus
from node.core.types import Microbatch, PeerId, Shard, StagePlan, SwarmView
from node.data.stream import MicrobatchStream
from node.model.shard import ModelShard
from node.network.activations import ActivationCodec
from node.network.processes import RunningP2P
from node.network.stages import StageTransport
from node.pipeline.deliveries import Deliveries
from node.pipeline.driver import Driver
from node.pipeline.inference import Inference
from node.pipeline.router import SwarmRouter
from node.pipeline.server import StageServer
from node.pipeline.texts import Texts
from node.pipeline.wire import Wire
from node.training.adapter import StageAdapter
from node.training.engine import Engine, Priority
from node.training.evaluate import Score
from node.training.stage import StageRunner


@dataclass(frozen=True)
class Surroundings:
    """What a pipeline needs of the node around it."""

    me: PeerId
    running: RunningP2P
    fingerprint: str
    view: Callable[[], SwarmView]
    standing: Callable[[], tuple[int, str]]
    """Version, and the beginning of the run's hash at it."""
    not_ready: Callable[[], str]
    """Why this node serves nobody just now, or an empty text."""
    reset: Callable[[str], Awaitable[bool]]
    """Drop the sums of a session; False if not just now."""
    events: EventBus


@dataclass(frozen=True)
class Cut:
    """How the run cuts the model, and how its parts talk."""

    plan: StagePlan
    held: Shard
    codec: ActivationCodec
    wire: Literal["star", "chain"]


@dataclass(frozen=True)
class Pipeline:
    """One node's part of the swarm's pipeline."""

    runner: StageRunner
    driver: Driver
    router: SwarmRouter
    server: StageServer
    transport: StageTransport
    inference: Inference

    async def open(self) -> None:
        """Begin to serve."""
        await self.transport.open(self.server)

    async def close(self) -> None:
        """Serve no more."""
        await self.transport.close()

    async def score(self, shard: ModelShard, engine: Engine, batches: Iterable[Microbatch]) -> Score | None:
        """Return the mean loss over `batches`, through all stages, or None if they hold no label.

        Args:
            shard: This node's, with the ends.
            engine: The thread that owns it.
            batches: Of this node's own data.

        Raises:
            SwarmError: some stage has no holder that answers.
        """
        total, labels = 0.0, 0
        for batch in batches:
            ids, _ = shard.tensors(batch)
            hidden = await engine.run(Priority.OWN, shard.embed, ids)
            hidden = await self.inference.run(hidden, batch.lengths, adapter=True)
            total += await engine.run(Priority.OWN, shard.evaluate_hidden, hidden, batch)
            labels += batch.num_labels
        return Score(total / labels, labels) if labels else None


@dataclass(frozen=True)
class _Swarm:
    """The driver's window on the swarm."""

    around: Surroundings
    runner: StageRunner

    def standing(self) -> tuple[int, str]:
        return self.around.standing()

    def sessions(self) -> dict[PeerId, str]:
        view = self.around.view()
        seen = {peer.peer_id: peer.session for peer in view.peers if len(peer.shard)}
        return {**seen, self.around.me: self.runner.session}


def build_pipeline(
    *,
    around: Surroundings,
    cut: Cut,
    shard: ModelShard,
    adapters: Mapping[int, StageAdapter],
    engine: Engine,
    stream: MicrobatchStream | None,
    salt: str,
    max_in_flight: int,
    max_graphs: int,
) -> Pipeline:
    """Return the parts, not yet serving.

    Args:
        around: The node.
        cut: How the model is cut, and what of it is held here.
        shard: The layers held, and the ends if there is a stream.
        adapters: Of the stages held.
        engine: The thread that owns both.
        stream: This node's own data, or None.
        salt: Of the dropout seeds: differs between nodes.
        max_in_flight: This node's own microbatches that may be under way at a time.
        max_graphs: Microbatches, of whomever, whose activations fit into memory at a time.
    """
    runner = StageRunner(shard, adapters, cut.plan, max_graphs=max_graphs)
    transport = StageTransport(around.running.p2p, fingerprint=around.fingerprint, told=around.running.told)
    wire = Wire(cut.codec, shard.hidden_size, shard.dtype, torch.device(shard.device))
    deliveries, texts = Deliveries(), Texts(shard)
    router = SwarmRouter(
        plan=cut.plan,
        runner=runner,
        engine=engine,
        transport=transport,
        wire=wire,
        deliveries=deliveries,
        view=around.view,
        is_chain=cut.wire == "chain",
    )
    server = StageServer(
        me=around.me,
        shard=cut.held,
        runner=runner if len(cut.held) else None,
        texts=texts if len(cut.held) else None,
        engine=engine,
        transport=transport,
        wire=wire,
        deliveries=deliveries,
        standing=around.standing,
        not_ready=around.not_ready,
        reset=around.reset,
        events=around.events,
    )
    driver = Driver(
        me=around.me,
        shard=shard,
        runner=runner,
        num_stages=cut.plan.num_stages,
        stream=stream,
        engine=engine,
        router=router,
        swarm=_Swarm(around, runner),
        events=around.events,
        salt=salt,
        max_in_flight=max_in_flight,
    )
    inference = Inference(
        me=around.me,
        num_stages=cut.plan.num_stages,
        runner=runner,
        texts=texts,
        engine=engine,
        finder=router,
        transport=transport,
        wire=wire,
    )
    return Pipeline(runner, driver, router, server, transport, inference)
