"""What does rounding the hidden states between two stages cost, in what is learnt and in time?

SmolLM2-135M is cut in its middle (layer 15 of 30). Hidden states cross the seam in the forward and gradients in the
backward, each through a codec of `node/network/activations.py`. The named baseline is `none`, which is exact; two usual
forms of int8 are here to show what first tokens do to them. Printed for each codec:

    bf16 / it     bytes of a token in bf16 over its own, forward and backward together
    loss          the training loss against the baseline's, in percent (B of the adapters is random, N(0, 0.01))
    cosine, error of the adapters' gradient against the baseline's: cosine, and norm of the difference over the norm
    after         held-out loss, through an exact seam, after training through the codec from the usual start
    cost          CPU seconds to encode and decode both ways over those of the second stage's forward and backward
                  (NF4 and bf16, as nodes compute); the goal is 0.02

    python benchmarks/activations.py [--quick] [--steps 200]
"""

import argparse
import json
import os
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from platformdirs import user_cache_path
from torch import Tensor

from node.core.types import Document, LayerRange, Microbatch
from node.demo.model import find_demo_gguf
from node.model.shard import ModelShard, load_shard
from node.model.source import load_tokenizer, resolve_base_model
from node.model.spec import LoadSpec, LoraSpec
from node.network.activations import GROUP, ActivationCodec, Direction, decode, encode, encoded_size

TOKENS, SEAM, RATE, SEED = 256, 15, 1e-3, 7
NUM_HELD_OUT = 8
COST_GOAL = 0.02
CODECS: tuple[ActivationCodec, ...] = ("none", "bf16", "int8", "lowbit")
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
USUAL = {"int8, a scale a token": 0, "int8, 64, first token too": GROUP}
"""Usual codecs, and over how many values each has a scale; 0: all of a token."""

Travel = Callable[[Direction, Tensor, Sequence[int]], Tensor]


def travel_of(name: str) -> Travel:
    """Return what a tensor [T, H] becomes on its way through the codec of this name."""
    if name in USUAL:
        return lambda _direction, tensor, _lengths: rounded_to_int8(tensor, USUAL[name] or tensor.shape[1])
    codec = next(codec for codec in CODECS if codec == name)

    def travel(direction: Direction, tensor: Tensor, lengths: Sequence[int]) -> Tensor:
        data = encode(codec, direction, tensor, lengths)
        return decode(codec, direction, data, lengths, tensor.shape[1], tensor.dtype)

    return travel


def rounded_to_int8(tensor: Tensor, group: int) -> Tensor:
    groups = tensor.view(len(tensor), -1, group)
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / scales).round() * scales).view_as(tensor)


def saving(name: str, lengths: Sequence[int], hidden_size: int) -> float:
    """Return bytes of the tensors in bf16 over those of this codec."""
    exact = 2 * sum(lengths) * hidden_size * 2
    if name in USUAL:
        return exact / (2 * sum(lengths) * (hidden_size + 2 * (hidden_size // USUAL[name] if USUAL[name] else 1)))
    codec = next(codec for codec in CODECS if codec == name)
    return exact / sum(encoded_size(codec, way, lengths, hidden_size, torch.float32) for way in DIRECTIONS)


class Seam(torch.autograd.Function):
    """Takes hidden states, and their gradient on the way back, through a codec."""

    @staticmethod
    def forward(ctx, hidden, travel, lengths):
        ctx.travel, ctx.lengths = travel, lengths
        return travel("forward", hidden, lengths)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.travel("backward", gradient, ctx.lengths), None, None


def run(shard: ModelShard, batch: Microbatch, travel: Travel) -> float:
    """Run forward and backward with a seam; add to the adapters' gradients; return the mean loss in nats."""
    input_ids, labels = shard.tensors(batch)
    shard.step.adapter, shard.step.dropout_seed = True, None
    # The embedding has no gradient, so the first stage's output has one only through its adapters.
    hidden = shard.forward(shard.embed(input_ids), batch.lengths, LayerRange(0, SEAM))
    hidden = Seam.apply(hidden, travel, batch.lengths)
    hidden = shard.forward(hidden, batch.lengths, LayerRange(SEAM, shard.num_layers))
    loss = shard.loss_sum(hidden, labels, batch.lengths)
    loss.backward()
    return float(loss.detach()) / batch.num_labels


def gradient(shard: ModelShard, batches: list[Microbatch], travel: Travel) -> tuple[float, Tensor]:
    """Return the mean loss and the adapters' gradient [N] over `batches`."""
    clear(shard)
    loss = sum(run(shard, batch, travel) for batch in batches) / len(batches)
    return loss, torch.cat([parameter.grad.flatten().double() for parameter in shard.lora.values()])


def clear(shard: ModelShard) -> None:
    for parameter in shard.lora.values():
        parameter.grad = torch.zeros_like(parameter)


def trained(shard: ModelShard, batches: list[Microbatch], held_out: list[Microbatch], travel: Travel) -> float:
    """Train on `batches`, one a step; return the held-out loss through an exact seam."""
    optimizer = torch.optim.AdamW(shard.lora.values(), lr=RATE, weight_decay=0.0)
    for batch in batches:
        clear(shard)
        run(shard, batch, travel)
        for parameter in shard.lora.values():
            parameter.grad /= batch.num_labels
        torch.nn.utils.clip_grad_norm_(shard.lora.values(), 1.0)
        optimizer.step()
    return sum(shard.evaluate(batch) / batch.num_labels for batch in held_out) / len(held_out)


def stage_seconds(shard: ModelShard, hidden: Tensor, lengths: Sequence[int]) -> float:
    """Return the CPU seconds of the second stage's forward and backward: the least of five."""

    def work() -> None:
        leaf = hidden.clone().requires_grad_()
        output = shard.forward(leaf, lengths, LayerRange(SEAM, shard.num_layers))
        output.backward(torch.ones_like(output))

    return least_seconds(work, 5)


def least_seconds(work: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def costs(folder: Path, batch: Microbatch) -> dict[str, float]:
    """Return each codec's cost over the second stage's, in the types that nodes compute in."""
    shard = load_shard(folder, LoadSpec(lora=LoraSpec(r=16, alpha=32.0), seed=SEED))
    shard.step.adapter, shard.step.dropout_seed = True, None
    input_ids, _ = shard.tensors(batch)
    with torch.no_grad():
        hidden = shard.forward(shard.embed(input_ids), batch.lengths, LayerRange(0, SEAM))
    stage_s = stage_seconds(shard, hidden, batch.lengths)
    print(f"the second stage: {batch.num_tokens / stage_s:.0f} tokens/CPU s, forward and backward")

    def both_ways(travel: Travel) -> Callable[[], object]:
        return lambda: [travel(direction, hidden, batch.lengths) for direction in DIRECTIONS]

    return {codec: least_seconds(both_ways(travel_of(codec)), 20) / stage_s for codec in CODECS}


def make_batches(folder: Path, count: int, documents: int) -> list[Microbatch]:
    """Return microbatches of Python's own manual, each of a few documents of TOKENS tokens."""
    ids = load_tokenizer(folder)("\n".join(topics.values()), verbose=False)["input_ids"]
    windows = [ids[start : start + TOKENS] for start in range(0, len(ids) - TOKENS, TOKENS)]
    texts = [Document(array("i", window), array("i", [-100, *window[1:]])) for window in windows]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SEED)).tolist()
    chosen = [texts[order[index % len(order)]] for index in range(count * documents)]
    return [Microbatch.of(i, chosen[i * documents : (i + 1) * documents]) for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 steps: a few minutes")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    steps = 30 if options.quick else options.steps
    torch.set_num_threads(1)
    cache = user_cache_path("potluck")
    folder = resolve_base_model(str(find_demo_gguf(cache)), cache=cache / "models")
    probes = make_batches(folder, 2, 4)
    texts = make_batches(folder, NUM_HELD_OUT + steps, 1)
    held_out, batches = texts[:NUM_HELD_OUT], texts[NUM_HELD_OUT:]
    cost = costs(folder, probes[0])

    spec = LoadSpec(lora=LoraSpec(r=16, alpha=32.0), quantization="none", compute="float32", seed=SEED)
    shard = load_shard(folder, spec)
    start = {name: parameter.detach().clone() for name, parameter in shard.lora.items()}
    random = torch.Generator().manual_seed(SEED)
    noise = {name: torch.randn(p.shape, generator=random) * 0.01 for name, p in start.items() if "lora_B" in name}

    def restore(values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            shard.lora[name].data.copy_(value)

    print(f"{'codec':26} {'bf16 / it':>9} {'loss %':>8} {'cosine':>8} {'error':>7} {'after':>7} {'cost':>7}")
    records = {}
    exact_loss, exact = 0.0, torch.empty(0)
    for name in (*CODECS, *USUAL):
        travel = travel_of(name)
        restore(start | noise)
        loss, found = gradient(shard, probes, travel)
        if name == "none":
            exact_loss, exact = loss, found
        restore(start)
        record = {
            "saving": saving(name, probes[0].lengths, shard.hidden_size),
            "loss_percent": 100 * (loss / exact_loss - 1),
            "cosine": float(torch.dot(found, exact) / found.norm() / exact.norm()),
            "error": float((found - exact).norm() / exact.norm()),
            "after": trained(shard, batches, held_out, travel),
            "cost": cost.get(name),
        }
        records[name] = record
        saved, percent, cosine, error, after, _ = record.values()
        shown = f"{cost[name]:7.4f}" if name in cost else ""
        print(f"{name:26} {saved:9.2f} {percent:+8.3f} {cosine:8.5f} {error:7.4f} {after:7.4f} {shown}", flush=True)
    print(f"cost of each: goal at most {COST_GOAL}; steps behind `after`: {steps}")
    print(json.dumps({"benchmark": "activations", "steps": steps, "codecs": records}))


if __name__ == "__main__":
    main()
