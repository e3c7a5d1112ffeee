"""Serve this node's stages to other drivers: check, decode, compute, encode; and in a chain hand on to the next.

Whatever goes wrong becomes a reply that says so: an honest driver then goes elsewhere, or starts the microbatch again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from torch import Tensor

from node.core.errors import NeedsInput, NodeError, OutOfDeviceMemory, PeerBusy, PeerError, StaleVersion
from node.core.events import EventBus, Fault
from node.core.types import PeerId, Shard
from node.network.activations import Direction
from node.network.round_words import Malformed
from node.network.stages import StageTransport
from node.pipeline.deliveries import Deliveries
from node.pipeline.replies import raise_for
from node.pipeline.texts import Texts
from node.pipeline.wire import Wire
from node.training.engine import Engine, Priority
from node.training.stage import StageJob, StageRunner
from node.v1 import pipeline_pb2 as pb

_MAX_QUEUED = 64
"""Requests that are served at a time; a driver that is sent away tries another replica, or again in a moment."""
_MAX_HOPS = 64
_CHAIN_S = 120.0
_MAX_ID = 1 << 62

_DIRECTIONS: dict[int, Direction] = {
    pb.STAGE_KIND_FORWARD: "forward",
    pb.STAGE_KIND_EVALUATE: "forward",
    pb.STAGE_KIND_GENERATE: "forward",
    pb.STAGE_KIND_BACKWARD: "backward",
}

_PRIORITIES = {
    pb.STAGE_KIND_FORWARD: Priority.FORWARD,
    pb.STAGE_KIND_EVALUATE: Priority.FORWARD,
    pb.STAGE_KIND_GENERATE: Priority.WORD,
    pb.STAGE_KIND_BACKWARD: Priority.BACKWARD,
}


class StageServer:
    """Answers other drivers' requests; all model work is on the engine's thread."""

    def __init__(
        self,
        *,
        me: PeerId,
        shard: Shard,
        runner: StageRunner | None,
        texts: Texts | None,
        engine: Engine,
        transport: StageTransport,
        wire: Wire,
        deliveries: Deliveries,
        standing: Callable[[], tuple[int, str]],
        not_ready: Callable[[], str],
        reset: Callable[[str], Awaitable[bool]],
        events: EventBus,
    ) -> None:
        """Set up.

        Args:
            me: This node.
            shard: The stages that it holds.
            runner: Does the work; None if this node holds no stage.
            texts: Keeps the texts that are being written; None likewise.
            engine: The thread that owns the model.
            transport: For chains.
            wire: How tensors travel.
            deliveries: Results of chains that this node drives.
            standing: Returns the version, and the beginning of the run's hash at it.
            not_ready: Returns why nothing is served just now, or an empty text.
            reset: Drops the sums of a session; False if that cannot be done just now.
            events: Told about bugs.
        """
        self._me = me
        self._shard = shard
        self._runner = runner
        self._texts = texts
        self._engine = engine
        self._transport = transport
        self._wire = wire
        self._deliveries = deliveries
        self._standing = standing
        self._not_ready = not_ready
        self._reset = reset
        self._events = events
        self._num_served = 0
        self._asked_at = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since somebody asked for something, or since the start; 0 while it is being done."""
        return 0.0 if self._num_served else time.monotonic() - self._asked_at

    def expect(self, sender: PeerId, request: pb.StageRequest) -> tuple[int, ...]:
        """Return the bytes of each tensor that the request brings.

        Raises:
            Malformed: no honest peer sends that.
        """
        if request.kind == pb.STAGE_KIND_RESET:
            return ()
        if request.kind == pb.STAGE_KIND_DELIVER:
            return (self._deliveries.size_from(sender, request),)
        direction = _DIRECTIONS.get(request.kind)
        if direction is None or len(request.rest) > _MAX_HOPS or request.microbatch > _MAX_ID:
            raise Malformed("that is no request of this version")
        size = self._wire.size(direction, request.lengths, request.dtype)
        if request.has_input:
            return size, self._wire.size("forward", request.lengths, request.dtype)
        return (size,)

    async def serve(
        self, sender: PeerId, request: pb.StageRequest, tensors: Sequence[bytearray]
    ) -> tuple[pb.StageReply, bytes | memoryview]:
        """Do what is asked, or say why not."""
        self._num_served += 1
        try:
            return await self._serve(sender, request, tensors)
        except StaleVersion as error:
            return pb.StageReply(status=pb.STAGE_STATUS_STALE, reason=error.message, version=error.version), b""
        except NeedsInput as error:
            return pb.StageReply(status=pb.STAGE_STATUS_NEEDS_INPUT, reason=error.message), b""
        except PeerBusy as error:
            return _later(error.message, error.retry_after_s), b""
        except PeerError as error:
            status = pb.STAGE_STATUS_NEXT_FAILED if error.peer_id != self._me else pb.STAGE_STATUS_REFUSED
            return pb.StageReply(status=status, reason=error.message, failed_peer=error.peer_id), b""
        except Malformed as error:
            return _refusal(str(error)), b""
        except OutOfDeviceMemory as error:
            if request.kind == pb.STAGE_KIND_BACKWARD:
                raise  # the accumulators may hold a part of it: nothing that this node has is to be trusted any more
            self._events.emit(Fault(error.message, error.hint))
            return _later("I have too little memory for that just now", 5.0), b""
        except NodeError as error:
            return _refusal(error.message), b""
        finally:
            self._num_served -= 1
            self._asked_at = time.monotonic()

    async def _serve(
        self, sender: PeerId, request: pb.StageRequest, tensors: Sequence[bytearray]
    ) -> tuple[pb.StageReply, bytes | memoryview]:
        if request.kind == pb.STAGE_KIND_DELIVER:
            is_wanted = self._deliveries.take(sender, request, tensors[0])
            return (pb.StageReply(status=pb.STAGE_STATUS_DONE) if is_wanted else _refusal("nobody waits for that")), b""
        if reason := self._not_ready():
            return _later(reason, 1.0), b""
        if request.kind == pb.STAGE_KIND_RESET:
            if await self._reset(request.session):
                return pb.StageReply(status=pb.STAGE_STATUS_DONE), b""
            return _later("a round is under way", 0.5), b""
        if self._num_served > _MAX_QUEUED:
            return _later("I have too much to do", 1.0), b""
        held = self._shard
        if not held.first_stage <= request.first_stage < request.stop_stage <= held.stop_stage or self._runner is None:
            return _refusal(f"I hold no stages {request.first_stage} to {request.stop_stage}"), b""
        return await self._compute(sender, request, tensors)

    async def _compute(
        self, sender: PeerId, request: pb.StageRequest, tensors: Sequence[bytearray]
    ) -> tuple[pb.StageReply, bytes | memoryview]:
        assert self._runner is not None, "a node without stages refuses before"
        direction, lengths = _DIRECTIONS[request.kind], tuple(request.lengths)
        is_backward = request.kind == pb.STAGE_KIND_BACKWARD
        if request.kind in (pb.STAGE_KIND_FORWARD, pb.STAGE_KIND_BACKWARD):
            self._check_standing(request)
        tensor = await self._wire.decode(direction, tensors[0], lengths, request.dtype)
        given = await self._wire.decode("forward", tensors[1], lengths, request.dtype) if request.has_input else None
        job = StageJob(
            driver=PeerId(request.driver[:128]) if request.is_chained else sender,
            microbatch=request.microbatch,
            first_stage=request.first_stage,
            stop_stage=request.stop_stage,
            lengths=lengths,
            dropout_seed=request.dropout_seed if request.HasField("dropout_seed") else None,
            version=request.version,
            weight=min(request.weight, sum(lengths)),
        )
        work = self._work(request, job, tensor, given, writer=sender)
        queued_at = time.perf_counter()
        result, work_s = await self._engine.run(_PRIORITIES[request.kind], work)
        queue_s = time.perf_counter() - queued_at - work_s
        reply = pb.StageReply(status=pb.STAGE_STATUS_DONE)
        reply.tickets.add(peer_id=self._me, session=self._runner.session, work_s=work_s, queue_s=queue_s)
        is_passed_on = request.is_chained and (request.rest or request.wants_tensor)
        data: bytes | memoryview = b""
        if result is not None and (request.wants_tensor or request.rest):
            data = await self._wire.encode(direction, result, lengths, request.dtype)
        if not is_passed_on:
            return reply, data
        reply.tickets.extend(await self._pass_on(request, job, data, is_backward=is_backward))
        return reply, b""

    def _work(
        self, request: pb.StageRequest, job: StageJob, tensor: Tensor, given: Tensor | None, *, writer: PeerId
    ) -> Callable[[], tuple[Tensor | None, float]]:
        """Return what is to be done on the engine's thread: it gives the result and the seconds that it took."""
        runner, texts = self._runner, self._texts
        assert runner is not None, "a node without stages refuses before"

        def do() -> Tensor | None:
            if request.kind == pb.STAGE_KIND_FORWARD:
                return runner.forward(job, tensor)
            if request.kind == pb.STAGE_KIND_EVALUATE:
                return runner.evaluate(job, tensor, adapter=not request.without_adapter)
            if request.kind == pb.STAGE_KIND_BACKWARD:
                if request.session != runner.session:
                    raise StaleVersion("my sums of that session are gone", version=job.version)
                return runner.backward(job, tensor, hidden=given)[0]
            assert texts is not None, "a node with stages can keep texts"
            layers = runner.layers(job.first_stage, job.stop_stage)
            adapter = not request.without_adapter
            return texts.extend(writer, request.text[:64], request.start, tensor, layers, adapter=adapter)

        def timed() -> tuple[Tensor | None, float]:
            started = time.perf_counter()
            return do(), time.perf_counter() - started

        return timed

    def _check_standing(self, request: pb.StageRequest) -> None:
        version, base = self._standing()
        if (request.version, request.base) != (version, base):
            raise StaleVersion(f"I am at version {version}, you ask for {request.version}", version=version)

    async def _pass_on(
        self, request: pb.StageRequest, job: StageJob, data: bytes | memoryview, *, is_backward: bool
    ) -> Sequence[pb.StageTicket]:
        """Chain: hand the result to the next stage's holder, or at the end to the driver; return their tickets.

        Raises:
            PeerError: the next one failed.
        """
        following = pb.StageRequest()
        following.CopyFrom(request)
        following.has_input = False
        if request.rest:
            peer = PeerId(request.rest[0].peer_id[:128])
            following.first_stage, following.stop_stage = request.rest[0].first_stage, request.rest[0].stop_stage
            following.session = request.rest[0].session
            del following.rest[0]
        else:
            peer = job.driver
            following.kind = pb.STAGE_KIND_DELIVER
            following.is_backward = is_backward
        reply, _ = await self._transport.call(peer, following, (data,), reply_bytes=0, timeout_s=_CHAIN_S)
        raise_for(reply, peer)
        return reply.tickets


def _later(reason: str, retry_after_s: float) -> pb.StageReply:
    return pb.StageReply(status=pb.STAGE_STATUS_TRY_LATER, reason=reason, retry_after_s=retry_after_s)


def _refusal(reason: str) -> pb.StageReply:
    return pb.StageReply(status=pb.STAGE_STATUS_REFUSED, reason=reason)
