"""Use a result outside of a node's own training: open the model with the adapter, and score it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from node.assembly import held_out_batches
from node.control.client import ControlClient, running_pid
from node.core.errors import DataError
from node.core.types import Microbatch
from node.data.dataset import prepare
from node.host.devices import pick_device
from node.model.shard import ModelShard, load_shard
from node.model.source import load_tokenizer
from node.result import Result, put_into
from node.specs import load_spec
from node.staged import SwarmModel
from node.training.engine import Engine
from node.training.evaluate import Score, score

_AT_A_TIME = 4
"""Microbatches that are under way through the swarm."""


def open_model(result: Result, home: Path, device: str) -> ModelShard | SwarmModel:
    """Return the base model with the adapter: over the swarm's stages if the node under `home` runs a cut model.

    Raises:
        ModelError: the base model, or what is needed of it, is not on this machine.
    """
    if result.num_stages > 1 and running_pid(home) is not None:
        return SwarmModel(result, ControlClient(home), device)
    shard = load_shard(result.base_folder, load_spec(result.recipe, device))
    put_into(shard, result.tensors)
    return shard


async def evaluate_result(result: Result, home: Path, *, device: str, whole: bool) -> tuple[Score, Score]:
    """Return the scores of the base model and of the adapter.

    Args:
        result: What to score; its recipe names the data.
        home: Of the node, which does the layers if it runs and the model is cut.
        device: Where to compute.
        whole: Score all of the data rather than the held-out split.

    Raises:
        DataError: there is nothing to score.
    """
    data = await asyncio.to_thread(prepare, result.recipe, load_tokenizer(result.base_folder))
    documents = data.train + data.held_out if whole else data.held_out
    batches = held_out_batches(result.recipe, documents)
    if not batches:
        raise DataError(
            "Nothing was held out in this run, so there is nothing to score.",
            hint="Name a file with --data, or set val_set_size in the recipe of the next run.",
        )
    engine = Engine()
    try:
        model = await asyncio.to_thread(open_model, result, home, pick_device(device))
        if isinstance(model, SwarmModel):
            base, tuned = await _score_afar(model, batches, adapter=False), await _score_afar(model, batches)
        else:
            base, tuned = await score(engine, model, batches, adapter=False), await score(engine, model, batches)
    finally:
        await engine.close()
    if base is None or tuned is None:
        raise DataError("The held-out examples have no labels to score.", hint="Name another file with --data.")
    return base, tuned


async def _score_afar(model: SwarmModel, batches: Sequence[Microbatch], *, adapter: bool = True) -> Score | None:
    """Score through the swarm, several microbatches at a time, so that all of its stages are busy."""
    places = asyncio.Semaphore(_AT_A_TIME)

    async def one(batch: Microbatch) -> float:
        async with places:
            return await asyncio.to_thread(model.evaluate, batch, adapter=adapter)

    losses = await asyncio.gather(*(one(batch) for batch in batches))
    labels = sum(batch.num_labels for batch in batches)
    return Score(sum(losses) / labels, labels) if labels else None
