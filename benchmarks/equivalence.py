"""Does a swarm learn what one machine learns? The same seed and data, on one process and on a swarm of two.

Three runs of SmolLM2, each with the same two data sets, the same order within each, and the same tokens behind a step:

* `one process`: the microbatches of both data sets in turn, one optimizer;
* `swarm of two`: two real nodes on loopback, one data set each;
* `swarm, one killed`: the same, and the second node is killed with -9 in the middle and comes back.

Prints the held-out loss of each (on the first node's held-out rows) and draws the three curves into a picture. In
the swarm a few microbatches count one version later, so the curves may differ by that and by nothing else.

    python benchmarks/equivalence.py --picture docs/equivalence.svg
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from platformdirs import user_cache_path

from node.assembly import held_out_batches, optimizer_settings, packing
from node.averaging.reduce import squared_norm
from node.config.load import load_recipe
from node.data.dataset import prepare
from node.data.demo_data import write_docstrings, write_topics
from node.data.stream import MicrobatchStream
from node.demo.model import find_demo_gguf
from node.demo.process import NodeProcess
from node.model.shard import load_shard
from node.model.source import load_tokenizer, resolve_base_model
from node.specs import load_spec
from node.training.adapter import StageAdapter
from node.training.schedule import ScheduleSettings, learning_rate
from node.trust.identity import Identity

RECIPE = """
base_model: {base_model}
adapter: qlora
lora_r: 16
lora_alpha: 32
sequence_len: 256
sample_packing: true
micro_batch_size: 1
val_set_size: 24
learning_rate: 1e-3
lr_scheduler: linear
warmup_steps: 2
max_steps: {steps}
eval_steps: {eval_every}
seed: 11
potluck:
  name: equivalence
  averaging:
    target_batch_tokens: {target}
"""


def one_process(recipe, model_folder, data, peer_ids, eval_every):
    """Train as one process on the two nodes' microbatches in turn; return (step, held-out loss) pairs."""
    tokenizer = load_tokenizer(model_folder)
    prepared = [prepare(recipe, tokenizer, [path]) for path in data]
    shard = load_shard(model_folder, load_spec(recipe, "cpu"))
    adapter = StageAdapter(0, shard.lora)
    streams = [
        MicrobatchStream(p.train, packing(recipe), seed=recipe.seed, salt=peer_id)
        for p, peer_id in zip(prepared, peer_ids, strict=True)
    ]
    schedule = ScheduleSettings(
        recipe.learning_rate, recipe.lr_scheduler, recipe.warmup(recipe.max_steps), recipe.max_steps
    )
    held_out = held_out_batches(recipe, prepared[0].held_out)
    labels = sum(batch.num_labels for batch in held_out)
    curve, turn = [], 0
    while adapter.version < recipe.max_steps:
        while adapter.tokens < recipe.potluck.averaging.target_batch_tokens:
            batch = next(streams[turn % 2])
            turn += 1
            shard.train_microbatch(batch, dropout_seed=0)
            adapter.count(batch.num_tokens, batch.num_labels)
        sealed = adapter.seal()
        mean = sealed.gradient / sealed.weight
        rate = learning_rate(schedule, adapter.version)
        adapter.step(mean, squared_norm(mean), sealed.tokens, optimizer_settings(recipe), rate)
        if adapter.version % eval_every == 0:
            curve.append((adapter.version, sum(shard.evaluate(batch) for batch in held_out) / labels))
    return curve


def swarm(folder, recipe_path, data, kill_at):
    """Train as a swarm of two, killing the second node at a step if told; return the first node's curve."""
    listen = ["--listen", "/ip4/127.0.0.1/tcp/0", "--threads", "1"]
    curve = []
    first = NodeProcess("first", folder / "a", ["start", str(recipe_path), "--data", str(data[0]), *listen])
    second, killed = None, False
    try:
        while not first.address:
            first.pump()
            time.sleep(0.05)
        join = ["join", first.address, "--data", str(data[1]), *listen]
        second = NodeProcess("second", folder / "b", join)
        finished = False
        while not finished:
            for event in first.pump():
                if event["event"] == "Evaluated":
                    curve.append((event["version"], event["loss"]))
                finished |= event["event"] == "StateChanged" and event["after"] == "stopped"
            if kill_at is not None and not killed and first.version >= kill_at:
                second.kill()
                killed, back_at = True, time.monotonic() + 8
            if killed and second.is_over and time.monotonic() > back_at and not finished:
                second = NodeProcess("second", folder / "b", join)
                back_at = float("inf")
            time.sleep(0.05)
    finally:
        first.stop()
        if second is not None:
            second.stop()
    return sorted(dict(curve).items())


def draw(curves, picture):
    """Draw the curves on top of each other."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    styles = ({"lw": 5, "alpha": 0.35}, {"lw": 1.8}, {"lw": 1.8, "ls": "--"})
    for (name, curve), style in zip(curves.items(), styles, strict=True):
        axes.plot(*zip(*curve, strict=True), label=name, **style)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--target", type=int, default=2048, help="tokens behind a step")
    parser.add_argument("--eval-every", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=Path("equivalence.svg"))
    arguments = parser.parse_args()
    cache = user_cache_path("potluck") / "models"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = [folder / "topics.jsonl", folder / "docstrings.jsonl"]
        write_topics(data[0])
        write_docstrings(data[1])
        gguf = find_demo_gguf(cache)
        path = folder / "recipe.yaml"
        path.write_text(
            RECIPE.format(
                base_model=gguf, steps=arguments.steps, target=arguments.target, eval_every=arguments.eval_every
            )
        )
        recipe = load_recipe(path).recipe
        for run in ("swarm", "killed"):
            for name in "ab":
                Identity.load_or_create(folder / run / name / "identity.key")
        peer_ids = [Identity.load_or_create(folder / "swarm" / name / "identity.key").peer_id for name in "ab"]
        for name in "ab":  # the same ids, so that each node goes through its data in the same order
            (folder / "killed" / name / "identity.key").write_bytes(
                (folder / "swarm" / name / "identity.key").read_bytes()
            )
        model_folder = resolve_base_model(str(gguf), cache=cache)
        curves = {
            "swarm of two": swarm(folder / "swarm", path, data, None),
            "swarm of two, one killed and back": swarm(folder / "killed", path, data, arguments.steps // 2),
        }
        curves = {"one process": one_process(recipe, model_folder, data, peer_ids, arguments.eval_every), **curves}
    draw(curves, arguments.picture)
    one = dict(curves["one process"])
    print(f"{'step':>5}" + "".join(f"{name:>36}" for name in curves))
    for step in sorted(one):
        print(f"{step:>5}" + "".join(f"{dict(curve).get(step, float('nan')):>36.4f}" for curve in curves.values()))
    fall = curves["one process"][0][1] - curves["one process"][-1][1]
    gaps = {
        name: max(abs(loss - one[step]) for step, loss in curve if step in one)
        for name, curve in curves.items()
        if name != "one process"
    }
    print(json.dumps({"fall": round(fall, 4), "largest_gap": {name: round(gap, 4) for name, gap in gaps.items()}}))


if __name__ == "__main__":
    main()
