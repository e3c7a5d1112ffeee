"""Score a saved result outside of a running node."""

from __future__ import annotations

import asyncio

from node.assembly import held_out_batches, load_spec
from node.core.errors import DataError
from node.data.dataset import prepare
from node.host.devices import pick_device
from node.model.shard import load_shard
from node.model.source import load_tokenizer
from node.result import Result, put_into
from node.training.engine import Engine
from node.training.evaluate import Score, score


async def evaluate_result(result: Result, *, device: str, whole: bool) -> tuple[Score, Score]:
    """Return the scores of the base model and of the adapter.

    Args:
        result: What to score; its recipe names the data.
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
        shard = await asyncio.to_thread(load_shard, result.base_folder, load_spec(result.recipe, pick_device(device)))
        put_into(shard, result.tensors)
        base = await score(engine, shard, batches, adapter=False)
        tuned = await score(engine, shard, batches)
    finally:
        await engine.close()
    if base is None or tuned is None:
        raise DataError("The held-out examples have no labels to score.", hint="Name another file with --data.")
    return base, tuned
