"""One peer's part of a microbatch's way: this node's own stages, another node's, or a chain of several nodes'.

A hop either does what is asked or raises; it never retries. Who raises is taken to have done nothing, except that a
backward whose answer was lost may have been counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from node.core.errors import NeedsInput, PeerError, PeerTimeout, StaleVersion
from node.core.routing import Hop, HopTimes
from node.core.types import PeerId
from node.network.stages import StageTransport
from node.pipeline.deliveries import Deliveries
from node.pipeline.replies import Answer, raise_for, sessions_of, watched
from node.pipeline.wire import Wire
from node.training.engine import Engine, Priority
from node.training.stage import StageJob, StageRunner
from node.trust.identity import short
from node.v1 import pipeline_pb2 as pb

_LEAST_PATIENCE_S = 1.0
_FIRST_ANSWER_S = 120.0
"""Deadline of a request to a peer that was never measured; pings tell long before whether it is alive."""
_DEADLINE_FACTOR = 10.0
R = TypeVar("R")


def timed(work: Callable[[], R]) -> tuple[R, float]:
    """Do some work on the engine's thread; return its result and the seconds that it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Order:
    """What stays the same over all hops of one attempt at a microbatch."""

    driver: PeerId
    microbatch: int
    lengths: tuple[int, ...]
    dropout_seed: int | None
    version: int
    base: str
    """Beginning of the run's hash at that version."""
    weight: int

    def job(self, hop: Hop) -> StageJob:
        """Return the part of one hop."""
        return StageJob(
            driver=self.driver,
            microbatch=self.microbatch,
            first_stage=hop.first_stage,
            stop_stage=hop.stop_stage,
            lengths=self.lengths,
            dropout_seed=self.dropout_seed,
            version=self.version,
            weight=self.weight,
        )

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self.lengths)


@dataclass(slots=True)
class Visit:
    """A hop that did its forward: what the backward needs, kept until the gradient is home."""

    hop: HopCaller
    input: Tensor
    output: Tensor
    sessions: dict[int, tuple[PeerId, str]]
    """By stage: who holds it, and the session that its counts belong to."""
    work_s: dict[PeerId, float] = field(default_factory=dict)
    """Compute by peer, forward and backward."""
    overhead_s: float = 0.0
    queue_s: float = 0.0


class HopCaller(Protocol):
    """A hop as the driver calls it."""

    hops: tuple[Hop, ...]

    async def forward(self, order: Order, hidden: Tensor) -> Visit:
        """Return the visit with the output [T, H].

        Raises:
            StaleVersion: the holder is at another version.
            PeerError: the holder failed, or is busy.
        """

    async def backward(self, order: Order, visit: Visit, gradient: Tensor) -> Tensor | None:
        """Return the gradient [T, H] for the visit's input; None before the frozen embedding.

        Raises:
            StaleVersion: the holder has moved on, or lost its sums.
            PeerError: the holder failed.
        """


class LocalHop:
    """This node's own stages."""

    def __init__(self, me: PeerId, hop: Hop, engine: Engine, runner: StageRunner) -> None:
        self.hops: tuple[Hop, ...] = (hop,)
        self._me = me
        self._hop = hop
        self._engine = engine
        self._runner = runner

    async def forward(self, order: Order, hidden: Tensor) -> Visit:
        """Compute on the engine's thread, behind what others asked for."""
        started = time.perf_counter()
        job = order.job(self._hop)
        output, work_s = await self._engine.run(Priority.OWN, timed, lambda: self._runner.forward(job, hidden))
        queue_s = time.perf_counter() - started - work_s
        sessions = dict.fromkeys(range(job.first_stage, job.stop_stage), (self._me, self._runner.session))
        return Visit(self, hidden, output, sessions, {self._me: work_s}, queue_s=queue_s)

    async def backward(self, order: Order, visit: Visit, gradient: Tensor) -> Tensor | None:
        """Compute on the engine's thread, first of all: it frees what the forward holds."""
        started = time.perf_counter()
        job = order.job(self._hop)

        def work() -> Tensor | None:
            if visit.sessions[job.first_stage][1] != self._runner.session:
                raise StaleVersion("this node's sums were dropped", version=job.version)
            return self._runner.backward(job, gradient, hidden=visit.input)[0]

        result, work_s = await self._engine.run(Priority.BACKWARD, timed, work)
        visit.work_s[self._me] += work_s
        visit.queue_s += time.perf_counter() - started - work_s
        return result


class RemoteHop:
    """Another node's stages, or with `wire: chain` several nodes' in a row that hand on to each other."""

    def __init__(
        self,
        hops: tuple[Hop, ...],
        transport: StageTransport,
        wire: Wire,
        times: Mapping[PeerId, HopTimes],
        deliveries: Deliveries,
    ) -> None:
        self.hops = hops
        self._transport = transport
        self._wire = wire
        self._times = times
        self._deliveries = deliveries

    async def forward(self, order: Order, hidden: Tensor) -> Visit:
        """Send the hidden states there, and wait for those that come back."""
        request = self._request(pb.STAGE_KIND_FORWARD, order, self.hops)
        request.wants_tensor = True
        tensor = await self._wire.encode("forward", hidden, order.lengths, self._wire.dtype_name)
        started = time.perf_counter()
        reply, data = await self._call(order, request, (tensor,), backward=False)
        output = await self._wire.decode("forward", data, order.lengths, self._wire.dtype_name)
        visit = Visit(self, hidden, output, sessions_of(self.hops, reply))
        self._note(visit, reply, time.perf_counter() - started)
        return visit

    async def backward(self, order: Order, visit: Visit, gradient: Tensor) -> Tensor | None:
        """Send the gradient there; the input again only if it is not kept any more."""
        backwards = tuple(reversed(self.hops))
        request = self._request(pb.STAGE_KIND_BACKWARD, order, backwards, visit)
        request.wants_tensor = self.hops[0].first_stage > 0
        tensors = [await self._wire.encode("backward", gradient, order.lengths, self._wire.dtype_name)]
        started = time.perf_counter()
        try:
            reply, data = await self._call(order, request, tensors, backward=True)
        except NeedsInput:
            if len(self.hops) > 1:
                raise StaleVersion("a stage of the chain let go of its input", version=order.version) from None
            request.has_input = True
            tensors.append(await self._wire.encode("forward", visit.input, order.lengths, self._wire.dtype_name))
            reply, data = await self._call(order, request, tensors, backward=True)
        self._note(visit, reply, time.perf_counter() - started)
        if not request.wants_tensor:
            return None
        return await self._wire.decode("backward", data, order.lengths, self._wire.dtype_name)

    async def _call(
        self, order: Order, request: pb.StageRequest, tensors: Sequence[bytes | memoryview], *, backward: bool
    ) -> Answer:
        """Ask, and meanwhile make sure that the peers are alive."""
        peers = [hop.peer_id for hop in self.hops]
        first = peers[-1 if backward else 0]
        expected_s = sum(self._expected(hop, order) for hop in self.hops)
        timeout_s = _DEADLINE_FACTOR * expected_s + 30.0 if expected_s else _FIRST_ANSWER_S
        size = self._wire.size("backward" if backward else "forward", order.lengths, self._wire.dtype_name)
        delivery = None
        if request.is_chained and request.wants_tensor:
            last = peers[0 if backward else -1]
            delivery = self._deliveries.expect(order.microbatch, last, size, is_backward=backward)
        for peer in peers:
            self._times[peer].under_way += 1
        try:
            call = self._transport.call(first, request, tensors, reply_bytes=size, timeout_s=timeout_s)
            reply, data = await watched(call, peers, self._transport, patience_s=max(_LEAST_PATIENCE_S, expected_s))
            raise_for(reply, first)
            if delivery is not None:
                async with asyncio.timeout(timeout_s):
                    data = await delivery
            elif request.wants_tensor and not reply.has_tensor:
                raise PeerError(f"{short(first)} answered without the tensor.", peer_id=first)
            return reply, data
        except TimeoutError:
            raise PeerTimeout(f"{short(peers[-1])} delivered nothing.", peer_id=peers[-1]) from None
        finally:
            if delivery is not None:
                self._deliveries.drop(order.microbatch, is_backward=backward)
            for peer in peers:
                self._times[peer].under_way -= 1

    def _request(
        self, kind: pb.StageKind, order: Order, hops: tuple[Hop, ...], visit: Visit | None = None
    ) -> pb.StageRequest:
        request = pb.StageRequest(
            kind=kind,
            version=order.version,
            base=order.base,
            driver=order.driver,
            microbatch=order.microbatch,
            first_stage=hops[0].first_stage,
            stop_stage=hops[0].stop_stage,
            lengths=order.lengths,
            weight=order.weight,
            dtype=self._wire.dtype_name,
            has_tensor=True,
            is_chained=len(hops) > 1,
        )
        if order.dropout_seed is not None:
            request.dropout_seed = order.dropout_seed
        if visit is not None:
            request.session = visit.sessions[hops[0].first_stage][1]
        for hop in hops[1:]:
            following = request.rest.add(peer_id=hop.peer_id, first_stage=hop.first_stage, stop_stage=hop.stop_stage)
            if visit is not None:
                following.session = visit.sessions[hop.first_stage][1]
        return request

    def _expected(self, hop: Hop, order: Order) -> float:
        times = self._times[hop.peer_id]
        return times.expected_s(order.num_tokens, hop.stop_stage - hop.first_stage) if times.num_measured else 0.0

    @staticmethod
    def _note(visit: Visit, reply: pb.StageReply, elapsed_s: float) -> None:
        """Keep what this request took; both directions together are one measurement."""
        known_s = 0.0
        for ticket in reply.tickets:
            peer = PeerId(ticket.peer_id)
            work_s, queue_s = _within(ticket.work_s, elapsed_s), _within(ticket.queue_s, elapsed_s)
            visit.work_s[peer] = visit.work_s.get(peer, 0.0) + work_s
            visit.queue_s += queue_s
            known_s += work_s + queue_s
        visit.overhead_s += max(0.0, elapsed_s - known_s)


def _within(seconds: float, elapsed_s: float) -> float:
    """Return a time that a peer tells, at most what passed here: NaN or less than nothing would spoil every route."""
    return min(seconds, elapsed_s) if seconds > 0 else 0.0
