"""Decide when a round is due, lead it or be called, and keep the strategy in step with the swarm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from node.averaging.gradient import GradientStrategy, Mean
from node.core.events import EventBus, RoundFinished
from node.core.lifecycle import Signal
from node.core.progress import tokens_towards_next
from node.core.types import Progress, RoundResult, RoundStatus
from node.enlist import Enlisted
from node.network.processes import RunningP2P
from node.swarm import Heartbeat
from node.training.state import AdapterState

_LOOK_EVERY_S = 0.25


class Rounds:
    """The averaging of one stage, as the daemon sees it."""

    def __init__(
        self,
        *,
        strategy: GradientStrategy,
        running: RunningP2P,
        heartbeat: Heartbeat,
        enlisted: Enlisted,
        events: EventBus,
        progress: Callable[[], Progress],
    ) -> None:
        self._strategy = strategy
        self._running = running
        self._heartbeat = heartbeat
        self._enlisted = enlisted
        self._events = events
        self._progress = progress
        self._target = enlisted.recipe.potluck.averaging.target_batch_tokens

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def settle(self) -> None:
        pass

    async def adopt(self, state: AdapterState, lineage: tuple[str, ...]) -> None:
        await self._strategy.adopt(state)

    async def run(self, nudge: asyncio.Event) -> Signal:
        while True:
            try:
                await asyncio.wait_for(nudge.wait(), _LOOK_EVERY_S)
            except TimeoutError:
                pass
            nudge.clear()
            mine = self._progress()
            if tokens_towards_next(self._heartbeat.view, mine, now_s=time.time()) < self._target or not mine.tokens:
                continue
            started = time.monotonic()
            sealed = await self._strategy.seal()
            mean = sealed.gradient / sealed.weight
            norm_sq = float(mean.double().square().sum())
            await self._strategy.apply(Mean(mean, norm_sq, sealed.tokens))
            self._events.emit(
                RoundFinished(
                    RoundResult(0, sealed.version, RoundStatus.ALONE, (mine and self._heartbeat.view.me,), sealed.tokens, time.monotonic() - started, 0)
                )
            )
