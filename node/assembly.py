"""The only place that builds a node's parts from a run, a machine's settings and a model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from node.averaging.gradient import Rule
from node.config.recipe import Recipe
from node.core.events import EventBus, Fault
from node.core.types import START_HASH, Document, Microbatch, Standing
from node.data.stream import Cursor, MicrobatchStream, Packing, in_order
from node.enlist import Enlisted
from node.model.shard import ModelShard, load_shard
from node.specs import Cutting, load_spec
from node.training.adapter import StageAdapter
from node.training.checkpoint import Checkpoint, CheckpointStore
from node.training.optimizer import AdamWSettings
from node.training.saver import Saver
from node.training.schedule import ScheduleSettings
from node.training.stage import split_adapters

MAX_HELD_OUT_BATCHES = 64
"""Enough for a standard error of a few thousandths; a large split would hold up training."""


@dataclass(frozen=True)
class Trainer:
    """What trains: the layers held, their adapters, the data's stream, and where they are saved."""

    cutting: Cutting
    shard: ModelShard
    adapters: dict[int, StageAdapter]
    stream: MicrobatchStream | None
    saver: Saver
    checkpoint: Checkpoint | None
    standing: Standing
    """Where the adapters stand; their hashes are for whoever owns them to fill in."""
    unknown: frozenset[int]
    """Stages held whose bits at `standing` are not here: fetched from a peer, or begun anew."""
    lineage: tuple[str, ...]
    """Ids of the latest rounds behind the adapters, oldest first."""
    held_out: tuple[Microbatch, ...]
    rule: Rule
    eval_every: int | None


def packing(recipe: Recipe) -> Packing:
    """Return how documents become microbatches."""
    return Packing(recipe.micro_batch_size, recipe.sequence_len, recipe.sample_packing)


def held_out_batches(recipe: Recipe, documents: Sequence[Document]) -> tuple[Microbatch, ...]:
    """Return the held-out split as microbatches, a bounded number of them."""
    return tuple(itertools.islice(in_order(documents, packing(recipe)), MAX_HELD_OUT_BATCHES))


async def load_trainer(enlisted: Enlisted, cutting: Cutting, *, device: str, events: EventBus, peer_id: str) -> Trainer:
    """Load the layers held and the latest checkpoint of a run.

    Args:
        enlisted: The run; its model folder holds at least the tensors that `cutting` needs.
        cutting: What to hold.
        device: Where to compute.
        events: Told what is odd about the checkpoint or the data.
        peer_id: Of this node.

    Raises:
        ModelError: the model cannot be used.
        CheckpointError: there are checkpoints and none is whole.
    """
    recipe = enlisted.recipe
    shard = await asyncio.to_thread(load_shard, enlisted.model_folder, load_spec(recipe, device, cutting))
    adapters = split_adapters(shard, cutting.held.stages, cutting.plan)
    store = CheckpointStore(enlisted.folder.checkpoints, emit=events.emit)
    checkpoint = await asyncio.to_thread(store.load_latest, enlisted.fingerprint)
    standing, unknown = Standing(0, START_HASH, 0), frozenset[int]()
    if checkpoint is not None:
        standing = Standing(
            checkpoint.version,
            str(checkpoint.random.get("base_hash", START_HASH)),
            checkpoint.counters.get("committed_tokens", 0),
        )
        for stage in adapters.keys() & checkpoint.adapters.keys():
            adapters[stage].from_bytes(checkpoint.adapters[stage])
        if checkpoint.version > 0:
            unknown = frozenset(adapters.keys() - checkpoint.adapters.keys())
    max_steps = recipe.max_steps or 1
    num_tokens = enlisted.data.report.num_train_tokens if enlisted.data is not None else 0
    steps_per_epoch = max(1.0, num_tokens / recipe.potluck.averaging.target_batch_tokens)
    saver = Saver(
        store,
        fingerprint=enlisted.fingerprint,
        data_digest=enlisted.data.report.digest if enlisted.data is not None else "",
        every_steps=recipe.save_interval(steps_per_epoch=steps_per_epoch, total_steps=max_steps)
        if recipe.save_steps is not None or recipe.saves_per_epoch is not None
        else None,
        events=events,
    )
    return Trainer(
        cutting=cutting,
        shard=shard,
        adapters=adapters,
        stream=_stream(enlisted, checkpoint, events, peer_id),
        saver=saver,
        checkpoint=checkpoint,
        standing=standing,
        unknown=unknown,
        lineage=tuple(str(checkpoint.random.get("lineage", "")).split()) if checkpoint else (),
        held_out=held_out_batches(recipe, enlisted.data.held_out) if enlisted.data is not None else (),
        rule=Rule(optimizer_settings(recipe), schedule_settings(recipe)),
        eval_every=recipe.eval_interval(steps_per_epoch=steps_per_epoch, total_steps=max_steps),
    )


def _stream(
    enlisted: Enlisted, checkpoint: Checkpoint | None, events: EventBus, peer_id: str
) -> MicrobatchStream | None:
    """Return the microbatches of this node's own data from where it stopped, or None if it has no data."""
    if enlisted.data is None:
        return None
    recipe = enlisted.recipe
    cursor = _resume_cursor(checkpoint, enlisted.data.report.digest, events) if checkpoint is not None else Cursor()
    return MicrobatchStream(enlisted.data.train, packing(recipe), seed=recipe.seed, salt=peer_id, cursor=cursor)


def schedule_settings(recipe: Recipe) -> ScheduleSettings:
    """Return the recipe's learning rate in the training room's terms."""
    max_steps = recipe.max_steps or 1
    return ScheduleSettings(
        learning_rate=recipe.learning_rate,
        kind=recipe.lr_scheduler,
        warmup_steps=recipe.warmup(max_steps),
        total_steps=max_steps,
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


def _resume_cursor(checkpoint: Checkpoint, data_digest: str, events: EventBus) -> Cursor:
    cursor = Cursor.from_json(checkpoint.cursor)
    if checkpoint.random.get("data") == data_digest:
        return cursor
    events.emit(
        Fault(
            "The data has changed since the run stopped; a new pass over it begins.",
            "Rows that were trained on before are seen again.",
        )
    )
    return Cursor(epoch=cursor.epoch + 1, position=0, next_id=cursor.next_id)
