"""Forward and backward of the stages that this node holds, for its own microbatches and for other drivers'.

All of it runs on the engine's thread. A stage is stateless towards its callers: whatever is kept here (graphs, inputs,
which microbatches are counted) only saves work, and a caller that brings the input again gets the same answer.

Legend: T tokens of a microbatch, H hidden size.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from node.core.errors import NeedsInput, StaleVersion
from node.core.types import LayerRange, PeerId, StagePlan
from node.model.shard import ModelShard
from node.training.adapter import StageAdapter

_KEPT_SHARE = 0.98
"""Of what was measured, with each new measurement."""
_REMEMBERED_IDS = 4096
"""Microbatches of one driver that are remembered as counted; a driver has a few dozen that are not settled."""


@dataclass(frozen=True, slots=True)
class StageJob:
    """What is asked of a run of stages for one microbatch."""

    driver: PeerId
    microbatch: int
    first_stage: int
    stop_stage: int
    lengths: tuple[int, ...]
    """Tokens of each document, which sum to T."""
    dropout_seed: int | None
    """None: no dropout."""
    version: int
    """Optimizer steps behind the adapter that the driver counts on."""
    weight: int
    """Tokens that take part in the loss."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self.lengths)

    @property
    def key(self) -> tuple[PeerId, int, int, int]:
        """What a kept graph is found by."""
        return self.driver, self.microbatch, self.first_stage, self.stop_stage


@dataclass(slots=True)
class _Kept:
    version: int
    input: Tensor
    output: Tensor | None
    """With its graph; None if only the input is kept."""


class StageRunner:
    """The stages of one node, at work."""

    def __init__(
        self,
        shard: ModelShard,
        adapters: Mapping[int, StageAdapter],
        plan: StagePlan,
        *,
        max_graphs: int,
        max_inputs: int = 64,
    ) -> None:
        """Set up.

        Args:
            shard: Holds the layers of the stages in `adapters`.
            adapters: By stage.
            plan: The run's cut of the model.
            max_graphs: Microbatches whose activations are kept between forward and backward; beyond it the oldest is
                computed again in its backward.
            max_inputs: Microbatches whose input is kept; beyond it the driver has to send it again.
        """
        assert max_graphs >= 1, "with no graph at all every forward is done twice"
        self._shard = shard
        self._adapters = adapters
        self._plan = plan
        self._max_graphs = max_graphs
        self._max_inputs = max(max_inputs, max_graphs)
        self._kept: OrderedDict[tuple[PeerId, int, int, int], _Kept] = OrderedDict()
        self._counted: dict[PeerId, OrderedDict[int, set[int]]] = {}
        self._spent_s = 0.0
        self._done_tokens = 0.0
        self.session = ""
        self.new_session()

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second through one stage, forward and backward, by what was measured lately; 0 before."""
        return self._done_tokens / self._spent_s if self._spent_s else 0.0

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that this node holds."""
        return tuple(self._adapters)

    def new_session(self) -> None:
        """Forget what was counted: the sums that it was counted into are gone."""
        self.session = new_session()
        self._counted.clear()
        self._kept.clear()

    def forward(self, job: StageJob, hidden: Tensor) -> Tensor:
        """Return the hidden states [T, H] after the job's stages, detached; the graph is kept for the backward.

        Args:
            job: What to compute.
            hidden: [T, H] in the compute type, on the device.

        Raises:
            StaleVersion: the adapter is at another version than the driver counts on.
        """
        self._check_version(job)
        started = time.perf_counter()
        kept = self._run(job, hidden)
        self._measured(job, time.perf_counter() - started)
        self._kept.pop(job.key, None)
        self._kept[job.key] = kept
        self._make_room()
        assert kept.output is not None, "the newest graph is kept"
        return kept.output.detach()

    def evaluate(self, job: StageJob, hidden: Tensor, *, adapter: bool) -> Tensor:
        """Return the hidden states [T, H] after the job's stages, at whatever version; nothing is kept."""
        self._set_step(job, adapter=adapter)
        with torch.no_grad():
            return self._shard.forward(hidden, job.lengths, self.layers(job.first_stage, job.stop_stage))

    def backward(
        self, job: StageJob, gradient: Tensor, *, hidden: Tensor | None
    ) -> tuple[Tensor | None, tuple[int, ...]]:
        """Add a microbatch's gradient to the stages' accumulators, once, and return that of the input.

        Args:
            job: The forward's.
            gradient: [T, H] of the summed loss for the forward's output.
            hidden: The forward's input, if the caller had to send it again.

        Returns:
            The gradient [T, H] for the input, None before stage 0 since the embedding is frozen; and the stages that
            counted the microbatch just now: none if it is a repetition.

        Raises:
            StaleVersion: the adapter has moved on; the driver starts the microbatch again.
            NeedsInput: the input is not kept any more.
        """
        self._check_version(job)
        started = time.perf_counter()
        kept = self._kept.pop(job.key, None)
        if kept is None or kept.version != job.version:
            if hidden is None:
                raise NeedsInput(f"the input of microbatch {job.microbatch} is not here any more")
            kept = self._run(job, hidden)
        elif kept.output is None:
            kept = self._run(job, kept.input.detach())
        assert kept.output is not None, "it was just computed"
        self._set_step(job, adapter=True)  # checkpointed layers are computed again in the backward
        counted = self._counted.setdefault(job.driver, OrderedDict()).setdefault(job.microbatch, set())
        stages = range(job.first_stage, job.stop_stage)
        new = tuple(stage for stage in stages if stage not in counted)
        with ExitStack() as muted:
            for stage in stages:
                if stage in counted:
                    muted.enter_context(self._adapters[stage].muted())
            kept.output.backward(gradient)  # type: ignore[no-untyped-call]
        for stage in new:
            self._adapters[stage].count(job.num_tokens, job.weight)
        counted.update(new)
        self._measured(job, time.perf_counter() - started)
        self._forget_old(job.driver)
        return kept.input.grad, new

    def layers(self, first_stage: int, stop_stage: int) -> LayerRange:
        """Return the decoder layers of stages `[first_stage, stop_stage)`."""
        return LayerRange(self._plan.ranges[first_stage].start, self._plan.ranges[stop_stage - 1].stop)

    def _run(self, job: StageJob, hidden: Tensor) -> _Kept:
        self._set_step(job, adapter=True)
        leaf = hidden.detach().requires_grad_(job.first_stage > 0)
        output = self._shard.forward(leaf, job.lengths, self.layers(job.first_stage, job.stop_stage))
        return _Kept(job.version, leaf, output)

    def _measured(self, job: StageJob, seconds: float) -> None:
        """Take in one direction of a microbatch; both cost about the same, so each is half of its tokens."""
        self._spent_s = _KEPT_SHARE * self._spent_s + seconds
        self._done_tokens *= _KEPT_SHARE
        self._done_tokens += job.num_tokens * (job.stop_stage - job.first_stage) / 2

    def _make_room(self) -> None:
        """Keep the newest graphs, and inputs alone of the ones before: the oldest wait longest for their backward."""
        with_graph = [kept for kept in self._kept.values() if kept.output is not None]
        for kept in with_graph[: -self._max_graphs]:
            kept.output = None
        while len(self._kept) > self._max_inputs:
            self._kept.popitem(last=False)

    def _set_step(self, job: StageJob, *, adapter: bool) -> None:
        self._shard.step.adapter, self._shard.step.dropout_seed = adapter, job.dropout_seed

    def _check_version(self, job: StageJob) -> None:
        for stage in range(job.first_stage, job.stop_stage):
            version = self._adapters[stage].version
            if version != job.version:
                raise StaleVersion(f"stage {stage} is at version {version}, not {job.version}", version=version)

    def _forget_old(self, driver: PeerId) -> None:
        ids = self._counted[driver]
        while len(ids) > _REMEMBERED_IDS:
            ids.popitem(last=False)


def new_session() -> str:
    """Return a session's name, hex: later ones of a peer sort after earlier ones, so that old news can be told."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


def split_adapters(shard: ModelShard, stages: Sequence[int], plan: StagePlan) -> dict[int, StageAdapter]:
    """Return one adapter a stage over the parameters of `shard`, which holds the layers of all `stages`."""
    return {stage: StageAdapter(stage, shard.lora_of(plan.ranges[stage])) for stage in stages}
