"""The gradient strategy: one replica's sealed gradient in, one optimizer step out, and the books around it.

Synchronous data parallelism (arXiv 1404.5997 and before): the step that N replicas take from the mean of their
gradients, weighted by label tokens, is the step that one process would take from all their microbatches.
"""

from __future__ import annotations

from node.averaging.strategy import Mean
from node.core.events import EventBus, Stepped
from node.core.round_messages import Standing
from node.training.adapter import SealedGradient, StageAdapter, StepInfo
from node.training.loop import TrainingLoop
from node.training.optimizer import AdamWSettings
from node.training.saver import Snapshot
from node.training.schedule import ScheduleSettings, learning_rate
from node.training.state import AdapterState


class GradientStrategy:
    """One stage's adapter as the averaging sees it. All methods run the work on the engine's thread."""

    def __init__(
        self,
        *,
        loop: TrainingLoop,
        adapter: StageAdapter,
        optimizer: AdamWSettings,
        schedule: ScheduleSettings,
        events: EventBus,
    ) -> None:
        self._loop = loop
        self._adapter = adapter
        self._optimizer = optimizer
        self._schedule = schedule
        self._events = events
        self._sealed_cursor = self._committed_cursor = loop.cursor
        self.standing = self._stand()

    @property
    def version(self) -> int:
        """Optimizer steps behind the adapter."""
        return self.standing.version

    async def seal(self) -> SealedGradient:
        """Hand out the accumulated gradient; later microbatches start from zero."""
        sealed = await self._loop.seal(self._adapter)
        self._sealed_cursor = sealed.cursor
        return sealed.gradient

    async def apply(self, mean: Mean) -> Standing:
        """Step with a committed round's mean; everything that was sealed is in it."""
        rate = learning_rate(self._schedule, self._adapter.version)

        def step() -> tuple[StepInfo, Standing]:
            info = self._adapter.step(mean.values, mean.norm_sq, mean.tokens, self._optimizer, rate)
            return info, self._stand()

        info, self.standing = await self._loop.on_engine(step)
        self._committed_cursor = self._sealed_cursor
        self._events.emit(
            Stepped(self.version, rate, info.gradient_norm, self.standing.base_hash, round(self._loop.epoch, 4))
        )
        return self.standing

    async def adopt(self, state: AdapterState) -> Standing:
        """Go to another lineage's state; what this node has accumulated stays.

        Raises:
            CheckpointError: the state cannot be one of this stage.
        """

        def load() -> Standing:
            self._adapter.load_state(state)
            return self._stand()

        self.standing = await self._loop.on_engine(load)
        return self.standing

    async def export(self) -> bytes:
        """Return the adapter and its moments as they are now, for a newcomer."""
        return await self._loop.on_engine(self._adapter.to_bytes)

    async def snapshot(self, counters: dict[str, int], lineage: tuple[str, ...]) -> Snapshot:
        """Return a copy of the committed version, for a checkpoint."""

        def copy() -> Snapshot:
            return Snapshot(
                version=self._adapter.version,
                adapters={self._adapter.stage: self._adapter.to_bytes()},
                cursor=self._committed_cursor,
                counters={**counters, "committed_tokens": self._adapter.committed_tokens},
                lineage=lineage,
            )

        return await self._loop.on_engine(copy)

    def _stand(self) -> Standing:
        return Standing(self._adapter.version, self._adapter.digest(), self._adapter.committed_tokens)
