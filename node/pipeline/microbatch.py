"""One microbatch, from its tokens to gradients in every stage: forward hop by hop, the loss at home, and back.

Who fails is replaced from the last good hidden state; who has moved on (another version) makes the whole microbatch
start again with the same id, and stages that had counted it add nothing.

Legend: T tokens of the microbatch, H hidden size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from node.core.errors import PeerBusy, PeerError
from node.core.types import Microbatch, PeerId
from node.model.shard import ModelShard
from node.pipeline.hops import HopCaller, Order, Visit, timed
from node.training.engine import Engine, Priority

_MAX_REROUTES = 32
"""Hops that may fail in one attempt before it is given up: the swarm is then in no state to train."""
R = TypeVar("R")


class Router(Protocol):
    """Chooses hops, and is told how they did."""

    def hops(
        self, start: int, stop: int, *, tokens: int, avoid: Collection[PeerId], counted_by: Mapping[int, PeerId]
    ) -> tuple[HopCaller, ...]:
        """Return callers for stages `[start, stop)`; stages that have counted the microbatch stay with who did.

        Raises:
            NoReplica: some stage has no holder.
        """

    def failed(self, error: PeerError) -> None:
        """Note that a peer failed."""

    async def is_there(self, peer: PeerId) -> bool:
        """Return whether a holder answers."""

    async def reset(self, peer: PeerId, session: str) -> None:
        """Ask a holder to drop the sums of a session; whether it did shows in its next announcement."""

    def finished(self, visit: Visit, tokens: int) -> None:
        """Note what a forward and its backward took."""


@dataclass(slots=True)
class Finished:
    """A microbatch whose gradient is in every stage."""

    batch: Microbatch
    loss_sum: float
    """In nats, over all labels."""
    counted_by: dict[int, tuple[PeerId, str]]
    seconds: float
    unqueued_s: float
    """Without the time that it waited for other work, at the holders and here."""
    is_local: bool
    """Nobody but the driver worked on it."""


@dataclass(slots=True)
class Attempt:
    """One attempt at one microbatch, at one version."""

    batch: Microbatch
    order: Order
    num_stages: int
    shard: ModelShard
    engine: Engine
    router: Router
    doubt: Callable[[PeerId, str], None]
    """Told which holder, and session, may have counted what another one counts now."""
    counted: dict[int, tuple[PeerId, str]] = field(default_factory=dict)
    """By stage: who may have counted this microbatch already, in this attempt or in one before."""
    avoid: set[PeerId] = field(default_factory=set)
    _failures: int = 0
    _queue_s: float = 0.0

    async def run(self) -> Finished:
        """Go all the way.

        Raises:
            StaleVersion: start again at the present version.
            NoReplica: some stage has no holder.
            PeerError: too many peers failed.
        """
        started = time.perf_counter()
        ids, _ = self.shard.tensors(self.batch)
        hidden = await self._here(Priority.OWN, lambda: self.shard.embed(ids))
        visits = await self._forward(hidden, 0, self.num_stages)
        hidden = visits[-1].output
        loss_sum, gradient = await self._here(
            Priority.FORWARD, lambda: self.shard.loss_and_gradient(hidden, self.batch)
        )
        done = await self._backward(visits, gradient)
        for visit in done:
            self.router.finished(visit, self.batch.num_tokens)
        seconds = time.perf_counter() - started
        return Finished(
            batch=self.batch,
            loss_sum=loss_sum,
            counted_by={stage: who for visit in done for stage, who in visit.sessions.items()},
            seconds=seconds,
            unqueued_s=seconds - self._queue_s - sum(visit.queue_s for visit in done),
            is_local=all(hop.peer_id == self.order.driver for visit in done for hop in visit.hop.hops),
        )

    async def _here(self, priority: Priority, work: Callable[[], R]) -> R:
        """Compute on this node's engine, and note how long other work was before it."""
        started = time.perf_counter()
        result, work_s = await self.engine.run(priority, timed, work)
        self._queue_s += time.perf_counter() - started - work_s
        return result

    async def _forward(self, hidden: Tensor, start: int, stop: int) -> list[Visit]:
        """Bring hidden states [T, H] through stages `[start, stop)`."""
        visits: list[Visit] = []
        while start < stop:
            bound = {stage: peer for stage, (peer, _) in self.counted.items()}
            caller = self.router.hops(start, stop, tokens=self.batch.num_tokens, avoid=self.avoid, counted_by=bound)[0]
            try:
                visit = await caller.forward(self.order, hidden)
            except PeerError as error:
                await self._note(error)
                continue
            visits.append(visit)
            hidden, start = visit.output, max(hop.stop_stage for hop in caller.hops)
        return visits

    async def _backward(self, visits: list[Visit], gradient: Tensor | None) -> list[Visit]:
        """Bring the gradient back through all visits; return those that counted it, replacements included."""
        done: list[Visit] = []
        for visit in reversed(visits):
            assert gradient is not None, "only the first stage's gradient is not wanted"
            gradient = await self._backward_one(visit, gradient, done)
        return done

    async def _backward_one(self, visit: Visit, gradient: Tensor, done: list[Visit]) -> Tensor | None:
        before = dict(self.counted)
        self._claim(visit)
        try:
            result = await visit.hop.backward(self.order, visit, gradient)
        except PeerError as error:
            if isinstance(error, PeerBusy) and len(visit.hop.hops) == 1:
                self.counted.clear()  # it said that it did nothing; in a chain others may have
                self.counted.update(before)
            await self._note(error)
        else:
            done.append(visit)
            return result
        stages = sorted(visit.sessions)
        replacements = await self._forward(visit.input, stages[0], stages[-1] + 1)
        passed: Tensor | None = gradient
        for replacement in reversed(replacements):
            assert passed is not None, "only the first stage's gradient is not wanted"
            passed = await self._backward_one(replacement, passed, done)
        return passed

    def _claim(self, visit: Visit) -> None:
        """Note who is about to count; another who may have counted before must drop its sums.

        A peer has one session at a time: what it counted in an earlier one is gone.
        """
        for stage, who in visit.sessions.items():
            before = self.counted.get(stage, who)
            if before[0] != who[0]:
                self.doubt(*before)
            self.counted[stage] = who

    async def _note(self, error: PeerError) -> None:
        """Go round a peer that failed; wait for one that is busy, unless another can do it."""
        self._failures += 1
        if self._failures > _MAX_REROUTES:
            raise error
        self.router.failed(error)
        if isinstance(error, PeerBusy):
            await asyncio.sleep(error.retry_after_s)
        else:
            self.avoid.add(PeerId(error.peer_id))
