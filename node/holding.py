"""Which stages of the run this machine holds: what its owner says, what it held before, or what the swarm lacks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Sequence

from node.config.local import LocalSettings
from node.config.recipe import Recipe
from node.core.errors import ConfigError, OutOfDeviceMemory
from node.core.placement import Candidate, auto_num_stages, choose, is_lopsided, should_move
from node.core.routing import Holder, layers_text, missing_stages
from node.core.types import NO_SHARD, Peer, PeerState, Shard, StagePlan, SwarmView
from node.host.devices import Device
from node.host.memory import NF4_BYTES_PER_WEIGHT, AdapterShape, MemoryPlan, Workload, fits, plan_memory
from node.host.shapes import ModelShape

_GB = 10**9
MAX_IN_FLIGHT = 16
"""This node's own microbatches under way: enough for hops that are far away, and each holds some hidden states."""
_SERVES = (PeerState.TRAINING, PeerState.SYNCING, PeerState.LOADING, PeerState.PAUSED)


def stages_of(shape: ModelShape, *, nf4: bool) -> int:
    """Return into how many stages `potluck.stages: auto` cuts a model."""
    per_weight = NF4_BYTES_PER_WEIGHT if nf4 else 2
    return auto_num_stages(shape.num_layers, round(shape.matrix_numel * per_weight + shape.small_numel * 2))


def plan_of(recipe: Recipe, shape: ModelShape) -> StagePlan:
    """Return the run's cut of the model."""
    stages = recipe.potluck.stages
    assert stages != "auto", "the founder has resolved it"
    return StagePlan.even(shape.num_layers, stages)


@dataclasses.dataclass(frozen=True)
class Room:
    """What this machine can hold of one run."""

    plan: StagePlan
    shape: ModelShape
    adapter: AdapterShape
    work: Workload
    free_bytes: int

    @classmethod
    def of(
        cls, recipe: Recipe, shape: ModelShape, device: Device, settings: LocalSettings, *, drives: bool, bf16: bool
    ) -> Room:
        """Measure it.

        Args:
            recipe: The run's.
            shape: The model's.
            device: As it is now.
            settings: The owner's, with a limit perhaps.
            drives: Whether the model's ends are held too.
            bf16: The compute type.
        """
        free = device.free_bytes
        if settings.max_memory_gb is not None:
            free = min(free, int(settings.max_memory_gb * _GB))
        targets = None if recipe.lora_target_linear else recipe.lora_target_modules
        work = Workload(
            tokens=recipe.micro_batch_size * recipe.sequence_len,
            quantization="nf4" if recipe.load_in_4bit else "none",
            compute="bfloat16" if bf16 else "float32",
            gradient_checkpointing=recipe.gradient_checkpointing,
            on_gpu=device.name.startswith("cuda"),
            ends=drives,
        )
        adapter = AdapterShape(recipe.lora_r, targets, recipe.peft_use_dora)
        return cls(plan_of(recipe, shape), shape, adapter, work, free)

    def layers_text(self, shard: Shard) -> str:
        """Return a shard's layers, for people."""
        layers = shard.layers(self.plan)
        return layers_text(layers.start, layers.stop) if layers is not None else "no layers"

    def memory(self, shard: Shard) -> MemoryPlan:
        """Return what holding `shard` takes, with one microbatch's activations."""
        layers = shard.layers(self.plan)
        work = dataclasses.replace(self.work, num_layers=len(layers) if layers is not None else 0)
        return plan_memory(self.shape, self.adapter, work)

    def needed_bytes(self, shard: Shard) -> int:
        """Return the bytes of the device that holding `shard` takes."""
        plan = self.memory(shard)
        return plan.device_bytes if self.work.on_gpu else plan.total_bytes

    @property
    def num_stages(self) -> int:
        """Stages that fit, whichever they are; a run's stages are about equally large."""
        held = 0
        while held < self.plan.num_stages and fits(self.needed_bytes(Shard(0, held + 1)), self.free_bytes):
            held += 1
        return held

    def num_graphs(self, shard: Shard) -> int:
        """Return the microbatches whose activations fit at a time, at least 1."""
        plan = self.memory(shard)
        spare = self.free_bytes - self.needed_bytes(shard)
        each = max(1, plan.activations)
        return max(1, min(MAX_IN_FLIGHT, 1 + int(spare / 1.5) // each))


def pick_shard(
    room: Room, settings: LocalSettings, peers: Sequence[Peer], *, before: Collection[int], lends: bool
) -> Shard:
    """Return the stages to hold.

    Args:
        room: What this machine can hold.
        settings: The owner's.
        peers: The others in the swarm.
        before: Stages of the latest checkpoint: their bits are here.
        lends: This node has no data, so that it is of use with stages alone.

    Raises:
        ConfigError: the owner names stages that the run does not have.
        OutOfDeviceMemory: not even one stage fits, and one is needed.
    """
    whole = Shard(0, room.plan.num_stages)
    wanted = settings.stages
    if wanted == "all" or room.plan.num_stages == 1:
        return whole
    if wanted == "none":
        return NO_SHARD
    if wanted != "auto":
        return _named(wanted, room.plan)
    capacity = room.num_stages
    if capacity == 0:
        if lends:
            raise _too_small(room)
        return NO_SHARD
    if before and set(before) == set(range(min(before), max(before) + 1)) and len(before) <= capacity:
        return Shard(min(before), max(before) + 1)
    return choose(room.plan.num_stages, candidates(peers), capacity)


def candidates(peers: Iterable[Peer]) -> list[Candidate]:
    """Return who holds stages, for the placement; those whose speed is not measured yet count as average."""
    holders = [peer for peer in peers if len(peer.shard) and peer.state in _SERVES]
    measured = [peer.stage_tokens_per_s for peer in holders if peer.stage_tokens_per_s]
    average = sum(measured) / len(measured) if measured else 1.0
    return [
        Candidate(
            peer.peer_id, peer.shard, peer.stage_tokens_per_s or average, max(peer.capacity_stages, len(peer.shard))
        )
        for peer in holders
    ]


class Mover:
    """Watches whether this node should hold other stages than it does; asked now and then, it never thrashes."""

    def __init__(self, num_stages: int, *, may_move: bool) -> None:
        """Set up; an owner who names stages keeps them."""
        self._num_stages = num_stages
        self._may_move = may_move
        self._settled_at = time.monotonic()
        self._lopsided_at: float | None = None
        self._unheld: tuple[int, ...] = ()

    def wanted(self, view: SwarmView) -> Shard | None:
        """Return the stages to hold instead of the present ones, or None to stay."""
        holders, now = candidates(view.peers), time.monotonic()
        unheld = missing_stages([Holder(h.peer_id, h.shard) for h in holders], self._num_stages)
        if not is_lopsided(self._num_stages, holders):
            self._lopsided_at = None
            return None
        if self._lopsided_at is None or unheld != self._unheld:
            self._lopsided_at, self._unheld = now, unheld
        if not self._may_move:
            return None
        return should_move(
            self._num_stages,
            holders,
            view.me,
            lopsided_s=now - self._lopsided_at,
            settled_s=now - self._settled_at,
        )


def _named(text: str, plan: StagePlan) -> Shard:
    first, _, last = text.partition("-")
    start, stop = int(first), int(last or first) + 1
    if not start < stop <= plan.num_stages:
        raise ConfigError(
            f"--stages {text}: this run has the stages 0 to {plan.num_stages - 1}.",
            hint=f"They hold {', '.join(layers_text(r.start, r.stop) for r in plan.ranges[:8])}"
            f"{' …' if plan.num_stages > 8 else ''}.",
        )
    return Shard(start, stop)


def _too_small(room: Room) -> OutOfDeviceMemory:
    needed, free = room.needed_bytes(Shard(0, 1)), room.free_bytes
    return OutOfDeviceMemory(
        f"Not even one stage ({layers_text(room.plan.ranges[0].start, room.plan.ranges[0].stop)}) fits: it needs about "
        f"{needed / _GB:.1f} GB and {free / _GB:.1f} GB is free.",
        hint="Free memory on the device, or give another with --device. A node with data of its own can take part "
        "without a stage.",
    )
