"""The only place that builds a node's parts from a run, a machine's settings and a model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from node.config.local import LocalSettings
from node.config.recipe import Recipe
from node.core.errors import CheckpointError
from node.core.events import EventBus, Fault
from node.core.types import START_HASH, Document, Microbatch, Standing
from node.data.stream import Cursor, MicrobatchStream, Packing, in_order
from node.enlist import Enlisted
from node.host.devices import describe, pick_device
from node.model.shard import ModelShard, load_shard
from node.model.spec import LoadSpec, LoraSpec
from node.training.adapter import StageAdapter
from node.training.checkpoint import Checkpoint, CheckpointStore
from node.training.engine import Engine
from node.training.loop import TrainingLoop
from node.training.optimizer import AdamWSettings
from node.training.saver import Saver
from node.training.schedule import ScheduleSettings

MAX_HELD_OUT_BATCHES = 64
"""Enough for a standard error of a few thousandths; a large split would hold up training."""


@dataclass(frozen=True)
class Trainer:
    """What trains: the model, its adapter, the data's stream, and where they are saved."""

    shard: ModelShard
    adapter: StageAdapter
    loop: TrainingLoop
    saver: Saver
    checkpoint: Checkpoint | None
    lineage: tuple[str, ...]
    """Ids of the latest rounds behind the adapter, oldest first."""
    standing: Standing
    held_out: tuple[Microbatch, ...]
    optimizer: AdamWSettings
    schedule: ScheduleSettings
    eval_every: int | None


def lora_spec(recipe: Recipe) -> LoraSpec:
    """Return the recipe's adapter in the model room's terms."""
    return LoraSpec(
        r=recipe.lora_r,
        alpha=recipe.lora_alpha,
        dropout=recipe.lora_dropout,
        targets=None if recipe.lora_target_linear else recipe.lora_target_modules,
        use_rslora=recipe.peft_use_rslora,
        use_dora=recipe.peft_use_dora,
    )


def load_spec(recipe: Recipe, device: str) -> LoadSpec:
    """Return what to load for the recipe on `device`, in the model room's terms."""
    is_bf16 = recipe.bf16 if isinstance(recipe.bf16, bool) else describe(device).has_bf16
    return LoadSpec(
        lora=lora_spec(recipe),
        quantization="nf4" if recipe.load_in_4bit else "none",
        compute="bfloat16" if is_bf16 else "float32",
        device=device,
        seed=recipe.seed,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )


def packing(recipe: Recipe) -> Packing:
    """Return how documents become microbatches."""
    return Packing(recipe.micro_batch_size, recipe.sequence_len, recipe.sample_packing)


def held_out_batches(recipe: Recipe, documents: Sequence[Document]) -> tuple[Microbatch, ...]:
    """Return the held-out split as microbatches, a bounded number of them."""
    return tuple(itertools.islice(in_order(documents, packing(recipe)), MAX_HELD_OUT_BATCHES))


async def load_trainer(
    enlisted: Enlisted, settings: LocalSettings, engine: Engine, events: EventBus, *, peer_id: str
) -> Trainer:
    """Load the model and the latest checkpoint of a run.

    Raises:
        ModelError: the model cannot be used.
        CheckpointError: there are checkpoints and none is whole.
    """
    recipe = enlisted.recipe
    device = pick_device(settings.device)
    shard = await asyncio.to_thread(load_shard, enlisted.model_folder, load_spec(recipe, device))
    adapter = StageAdapter(0, shard.lora)
    store = CheckpointStore(enlisted.folder.checkpoints, emit=events.emit)
    checkpoint = await asyncio.to_thread(store.load_latest, enlisted.fingerprint)
    cursor = Cursor()
    if checkpoint is not None:
        if set(checkpoint.adapters) != {0}:
            raise CheckpointError(f"The checkpoint holds the stages {sorted(checkpoint.adapters)}, this node holds 0.")
        adapter.from_bytes(checkpoint.adapters[0])
        cursor = _resume_cursor(checkpoint, enlisted, events)
    stream = MicrobatchStream(enlisted.data.train, packing(recipe), seed=recipe.seed, salt=peer_id, cursor=cursor)
    loop = TrainingLoop(
        engine=engine, model=shard, adapters=(adapter,), stream=stream, events=events, seed=recipe.seed, peer_id=peer_id
    )
    max_steps = recipe.max_steps or 1
    steps_per_epoch = max(1.0, enlisted.data.report.num_train_tokens / recipe.potluck.averaging.target_batch_tokens)
    saver = Saver(
        store,
        fingerprint=enlisted.fingerprint,
        data_digest=enlisted.data.report.digest,
        every_steps=recipe.save_interval(steps_per_epoch=steps_per_epoch, total_steps=max_steps)
        if recipe.save_steps is not None or recipe.saves_per_epoch is not None
        else None,
        events=events,
    )
    return Trainer(
        shard=shard,
        adapter=adapter,
        loop=loop,
        saver=saver,
        checkpoint=checkpoint,
        lineage=tuple(str(checkpoint.random.get("lineage", "")).split()) if checkpoint else (),
        standing=Standing(
            adapter.version,
            str(checkpoint.random.get("base_hash", START_HASH)) if checkpoint else START_HASH,
            adapter.committed_tokens,
        ),
        held_out=held_out_batches(recipe, enlisted.data.held_out),
        optimizer=optimizer_settings(recipe),
        schedule=ScheduleSettings(
            learning_rate=recipe.learning_rate,
            kind=recipe.lr_scheduler,
            warmup_steps=recipe.warmup(max_steps),
            total_steps=max_steps,
        ),
        eval_every=recipe.eval_interval(steps_per_epoch=steps_per_epoch, total_steps=max_steps),
    )


def optimizer_settings(recipe: Recipe) -> AdamWSettings:
    """Return the recipe's optimizer in the training room's terms."""
    return AdamWSettings(
        beta1=recipe.adam_beta1,
        beta2=recipe.adam_beta2,
        epsilon=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
    )


def _resume_cursor(checkpoint: Checkpoint, enlisted: Enlisted, events: EventBus) -> Cursor:
    cursor = Cursor.from_json(checkpoint.cursor)
    if checkpoint.random.get("data") == enlisted.data.report.digest:
        return cursor
    events.emit(
        Fault(
            "The data has changed since the run stopped; a new pass over it begins.",
            "Rows that were trained on before are seen again.",
        )
    )
    return Cursor(epoch=cursor.epoch + 1, position=0, next_id=cursor.next_id)
