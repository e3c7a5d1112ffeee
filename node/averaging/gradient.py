"""The gradient strategy: sealed gradients in, one optimizer step of all stages out, and the books around it.

Synchronous data parallelism (arXiv 1404.5997 and before): the step that N peers take from the mean of their
gradients, weighted by label tokens, is the step that one process would take from all their microbatches.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from node.averaging.strategy import Mean, Prepared, SealedStages, Work
from node.core.errors import CheckpointError
from node.core.events import EventBus, Stepped
from node.core.round_messages import Share
from node.core.types import HASH_CHARS, NO_SHARD, Shard, Standing
from node.data.stream import Cursor
from node.training.adapter import StageAdapter, StepInfo
from node.training.engine import Engine, Priority
from node.training.loop import TrainingLoop
from node.training.optimizer import AdamWSettings
from node.training.saver import Snapshot
from node.training.schedule import ScheduleSettings, learning_rate
from node.training.stage import new_session
from node.training.state import AdapterState

R = TypeVar("R")


@dataclass(frozen=True)
class Rule:
    """How a step is made."""

    optimizer: AdamWSettings
    schedule: ScheduleSettings


@dataclass(frozen=True)
class Exported:
    """One stage's state, for a newcomer."""

    data: bytes
    standing: Standing


class GradientStrategy:
    """The adapters of the stages that a node holds, as the averaging sees them; there may be none.

    Everything that touches an adapter runs on the engine's thread, and the standing moves in the same job.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        adapters: Sequence[StageAdapter],
        work: Work,
        rule: Rule,
        standing: Standing,
        num_stages: int,
        events: EventBus,
    ) -> None:
        """Set up.

        Args:
            engine: Owns the adapters.
            adapters: Of the stages held, without a gap, in order.
            work: This node's own training, and the session of its sums.
            rule: How a step is made.
            standing: Where this node is; its hashes are made anew from the adapters.
            num_stages: Of the run.
            events: Told of steps.
        """
        self._engine = engine
        self._adapters = {adapter.stage: adapter for adapter in adapters}
        stages = sorted(self._adapters)
        self.shard = Shard(stages[0], stages[-1] + 1) if stages else NO_SHARD
        assert stages == list(self.shard.stages), "a shard has no gap"
        self._work = work
        self._rule = rule
        self._num_stages = num_stages
        self._events = events
        self._settled = asyncio.Event()
        self._settled.set()
        self.standing = self._stand(standing)

    @property
    def version(self) -> int:
        """Optimizer steps behind the adapters."""
        return self.standing.version

    @property
    def session(self) -> str:
        """Of the sums, as in `Work`."""
        return self._work.session

    @property
    def sizes(self) -> Mapping[int, int]:
        """Length of the flat vector of each stage held."""
        return {stage: adapter.layout.numel for stage, adapter in self._adapters.items()}

    async def prepare(self) -> Prepared:
        """Come to a rest and say what there is to bring."""
        return await self._work.hold()

    async def seal(self) -> SealedStages:
        """Hand out the sums of all stages; later microbatches start from zero."""
        sealed = await self._run(lambda: {stage: adapter.seal() for stage, adapter in self._adapters.items()})
        self._work.sealed()
        return SealedStages(sealed)

    async def apply(self, mean: Mean) -> Standing:
        """Step with a committed round's mean; everything that was sealed is in it."""
        old = self.standing
        rate = learning_rate(self._rule.schedule, old.version)
        reached = Standing(old.version + 1, mean.base_hash, old.committed_tokens + mean.tokens)

        def step() -> StepInfo | None:
            info = None
            for stage, adapter in self._adapters.items():
                info = adapter.step(mean.by_stage[stage], mean.norm_sq, mean.tokens, self._rule.optimizer, rate)
            self.standing = self._stand(reached)
            return info

        self._settled.clear()
        try:
            await self._run(step)
        except BaseException:
            self._settled.set()
            raise
        norm = mean.norm_sq**0.5
        self._events.emit(Stepped(self.version, rate, norm, self.standing.bits, round(self._work.epoch, 4)))
        return self.standing

    async def adopt(self, states: Mapping[int, AdapterState], standing: Standing) -> Standing:
        """Go to another lineage's state.

        In a run of one stage what this node has accumulated stays; else the sums are discarded, since other stages
        hold the same microbatches and have gone on without them.

        Args:
            states: By stage, of stages that this node holds. A stage that is not among them keeps its bits.
            standing: Version, lineage and tokens to go to, also for the stages that keep their bits.

        Raises:
            CheckpointError: a state cannot be one of its stage; nothing has changed.
        """

        def load() -> None:
            for stage, state in states.items():
                if stage not in self._adapters:
                    raise CheckpointError(f"A state of stage {stage} was sent, and this node holds other stages.")
                state.check(self._adapters[stage].layout)
            for stage, adapter in self._adapters.items():
                state = states.get(stage) or adapter.state()
                adapter.load_state(
                    dataclasses.replace(state, version=standing.version, committed_tokens=standing.committed_tokens)
                )
            self.standing = self._stand(standing)
            if self._num_stages > 1:
                self._discard()

        await self._run(load)
        return self.standing

    async def reset(self) -> None:
        """Discard the sums: some may be counted elsewhere too."""
        await self._run(self._discard)

    def ended(self, shares: tuple[Share, ...], *, committed: bool) -> None:
        """Go on after a round, whatever became of it."""
        self._work.settle(shares, committed=committed)
        self._work.release()
        self._settled.set()

    async def settled(self) -> None:
        """Return when no step is half done: adapters, standing, lineage and cursor tell of one version.

        What is called next without an await in between sees that version.
        """
        await self._settled.wait()

    async def export(self, stage: int) -> Exported:
        """Return a stage's adapter and its moments, for a newcomer; to be called right after `settled`."""
        standing = self.standing
        return Exported(await self._run(self._adapters[stage].to_bytes), standing)

    async def snapshot(self, counters: dict[str, int], lineage: tuple[str, ...]) -> Snapshot:
        """Return a copy of the committed version, for a checkpoint; to be called right after `settled`."""
        standing, cursor = self.standing, self._work.cursor
        adapters = await self._run(lambda: {stage: a.to_bytes() for stage, a in self._adapters.items()})
        return Snapshot(
            version=standing.version,
            adapters=adapters,
            cursor=cursor,
            counters={**counters, "committed_tokens": standing.committed_tokens},
            lineage=lineage,
            base_hash=standing.base_hash,
        )

    def _discard(self) -> None:
        for adapter in self._adapters.values():
            adapter.discard()
        self._work.discard()

    async def _run(self, function: Callable[[], R]) -> R:
        return await self._engine.run(Priority.BACKWARD, function)

    def _stand(self, standing: Standing) -> Standing:
        hashes = tuple((stage, adapter.digest()[:HASH_CHARS]) for stage, adapter in self._adapters.items())
        return dataclasses.replace(standing, hashes=hashes)


class LoopWork:
    """The work of a node in a run of one stage: it never rests, and what is sealed at the call waits in the ledger."""

    def __init__(self, loop: TrainingLoop, adapter: StageAdapter) -> None:
        self._loop = loop
        self._adapter = adapter
        self._sealed_cursor = self._committed_cursor = loop.cursor
        self.session = new_session()

    @property
    def cursor(self) -> Cursor:
        """Where the data stands after what is in committed rounds."""
        return self._committed_cursor

    @property
    def epoch(self) -> float:
        """Passes over the node's data."""
        return self._loop.epoch

    async def hold(self) -> Prepared:
        """Seal what has accumulated; later microbatches start from zero."""
        sealed = await self._loop.seal(self._adapter)
        self._sealed_cursor = sealed.cursor
        gradient = sealed.gradient
        stages = SealedStages({self._adapter.stage: gradient}, gradient.weight, gradient.tokens)
        return Prepared(gradient.weight, gradient.tokens, sealed=stages)

    def sealed(self) -> None:
        """Nothing waits for it."""

    def release(self) -> None:
        """Nothing was held."""

    def settle(self, shares: tuple[Share, ...], *, committed: bool) -> None:  # noqa: ARG002
        """Note that everything that was sealed is committed."""
        if committed:
            self._committed_cursor = self._sealed_cursor

    def discard(self) -> None:
        """Take a new session."""
        self.session = new_session()
