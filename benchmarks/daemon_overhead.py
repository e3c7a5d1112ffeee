"""How much of a core does the daemon leave to the training? Its loop against the same loop bare in a script.

The daemon is a real `potluck start` that is alone: network, announcements, events, hashes, checkpoints and all. The
bare loop loads the same model, takes the same microbatches in the same order, makes the same optimizer steps, and does
nothing else. Both are pinned to core 0 with one thread and take turns of some microbatches (the other one stands
still), so that whatever else the machine does falls on both alike. The goal is 0.98.

The model is small and its adapter large (3.6 % of its weights; 0.5 % in an 8B model), so that what a step costs beside
the training, above all the hash of adapter and moments, weighs more here than it would with a large model.

    python -m benchmarks.daemon_overhead [--quick] [--turns 12] [--microbatches 10]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.nodes import Node, Watched, write_inputs
from node.assembly import optimizer_settings, packing
from node.config.load import load_recipe
from node.data.dataset import prepare
from node.data.stream import MicrobatchStream
from node.model.shard import load_shard
from node.model.source import load_tokenizer
from node.specs import load_spec
from node.training.adapter import StageAdapter
from node.training.schedule import ScheduleSettings, learning_rate

TARGET_TOKENS = 4096
WARM_UP = 3
GOAL = 0.98


def bare(recipe_path: str, data: str, peer_id: str) -> None:
    """Train microbatches in the order of the node `peer_id`, and print each as the daemon does."""
    torch.set_num_threads(1)
    recipe = load_recipe(Path(recipe_path)).recipe
    folder = Path(recipe.base_model)
    documents = prepare(recipe, load_tokenizer(folder), [data]).train
    shard = load_shard(folder, load_spec(recipe, "cpu"))
    adapter = StageAdapter(0, shard.lora)
    settings = optimizer_settings(recipe)
    schedule = ScheduleSettings(recipe.learning_rate, recipe.lr_scheduler, 0, recipe.max_steps or 1)
    stream = MicrobatchStream(documents, packing(recipe), seed=recipe.seed, salt=peer_id)
    for batch in stream:
        shard.train_microbatch(batch, dropout_seed=batch.id)
        adapter.count(batch.num_tokens, batch.num_labels)
        if adapter.tokens >= TARGET_TOKENS:
            mean = adapter.gradients / adapter.weight
            norm_sq = float(mean.double().square().sum())
            adapter.step(mean, norm_sq, adapter.tokens, settings, learning_rate(schedule, adapter.version))
            adapter.discard()
        record = {"event": "MicrobatchDone", "id": batch.id, "tokens": batch.num_tokens, "at_s": time.time()}
        print(json.dumps({**record, "cpu_s": time.process_time()}), flush=True)


def take_turns(children: dict[str, Watched], turns: int, count: int) -> dict[str, list[dict[str, float]]]:
    """Let the children run in turns of `count` microbatches; return tokens, CPU seconds and seconds of each turn.

    A microbatch that a pause cuts in two counts to the turn in which it ends, with all of its CPU time.
    """
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    for _ in range(turns):
        for name, child in children.items():
            before = len(child.microbatches())
            started = time.monotonic()
            child.resume()
            child.wait_for_microbatches(count)
            child.pause()
            seconds = time.monotonic() - started
            done = child.microbatches()
            cpu_s = done[-1]["cpu_s"] - done[before - 1]["cpu_s"]
            tokens = sum(event["tokens"] for event in done[before:])
            taken[name].append({"tokens": tokens, "cpu_s": cpu_s, "seconds": seconds})
            turn = taken[name][-1]
            print(f"{name:8} {tokens:7} {tokens / cpu_s:10.1f} {tokens / turn['seconds']:8.1f}", flush=True)
    return taken


def compare(folder: Path, turns: int, count: int) -> dict[str, list[dict[str, float]]]:
    """Start both, warm them up one after the other, and let them take turns."""
    recipe, data = write_inputs(folder, target_batch_tokens=TARGET_TOKENS)
    children: dict[str, Watched] = {}
    try:
        node = children["daemon"] = Node(folder / "home", ["start", str(recipe), "--data", str(data)], core=0)
        peer_id = node.listening()["peer_id"]
        node.wait_for_microbatches(WARM_UP)
        node.pause()
        arguments = ["--bare", str(recipe), str(data), peer_id]
        children["bare"] = Watched([sys.executable, __file__, *arguments], 0, folder / "bare.txt")
        children["bare"].wait_for_microbatches(WARM_UP)
        children["bare"].pause()
        print(f"{'':8} {'tokens':>7} {'tok/CPU-s':>10} {'tok/s':>8}")
        taken = take_turns(children, turns, count)
        ids = [[(e["id"], e["tokens"]) for e in child.microbatches()] for child in children.values()]
        assert all(one == other for one, other in zip(*ids, strict=False)), "the two trained other microbatches"
        return taken
    finally:
        for child in children.values():
            child.stop()


def rate(turns: list[dict[str, float]], of: str) -> float:
    """Return tokens per second of all turns together."""
    return sum(turn["tokens"] for turn in turns) / sum(turn[of] for turn in turns)


def median_rate(turns: list[dict[str, float]], of: str) -> float:
    return statistics.median(turn["tokens"] / turn[of] for turn in turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three turns each")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--microbatches", type=int, default=10, help="of one turn")
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(*options.bare)
        return
    turns = 3 if options.quick else options.turns
    with tempfile.TemporaryDirectory() as scratch:
        taken = compare(Path(scratch), turns, options.microbatches)
    result = {}
    for of, label in (("cpu_s", "CPU time"), ("seconds", "the clock")):
        total = rate(taken["daemon"], of) / rate(taken["bare"], of)
        middle = median_rate(taken["daemon"], of) / median_rate(taken["bare"], of)
        result[of] = {"all": round(total, 4), "median": round(middle, 4)}
        print(f"by {label}: {total:.3f} over all turns, {middle:.3f} by the median turn; goal {GOAL}")
    print(json.dumps({"benchmark": "daemon_overhead", "turns": turns, "ratio": result, "goal": GOAL}))


if __name__ == "__main__":
    main()
