"""What no file shows and must yet be the same on all peers and after an upgrade: steps, rates, means, orders, cuts."""

import hashlib
from array import array

import torch

from node.averaging.reduce import squared_norm, weighted_mean
from node.core.types import START_HASH, Document, StagePlan
from node.data.stream import MicrobatchStream, Packing
from node.network.compression import encode
from node.training.optimizer import AdamWSettings, adamw_step, clip_scale
from node.training.schedule import ScheduleSettings, learning_rate
from versions import material


def maths():
    """Return a few results of each rule, exactly; the numbers in are halves and quarters."""
    return {
        "adapter digest": material.adapter().digest(material.layout()),
        "start of a lineage": START_HASH,
        "optimizer": _steps(),
        "rates": {kind: [learning_rate(_schedule(kind), step).hex() for step in (0, 3, 10, 11, 50, 99)] for kind in _KINDS},
        "mean": _mean(),
        "gradients on the wire": {codec: bytes(encode(_numbers(8), codec)).hex() for codec in ("none", "bf16")},
        "order of documents": _order(),
        "cut into stages": [[part.stop for part in StagePlan.even(layers, 4).ranges] for layers in (4, 7, 30)],
    }  # fmt: skip


_KINDS = ("constant", "linear", "cosine")


def _schedule(kind):
    return ScheduleSettings(learning_rate=2e-4, kind=kind, warmup_steps=10, total_steps=100)


def _numbers(count):
    return (torch.arange(count) * 37 % 33 - 16).float() / 4


def _steps():
    values, mean, square = _numbers(24), torch.zeros(24), torch.zeros(24)
    settings = AdamWSettings(weight_decay=0.01)
    for step in (1, 2, 3):
        scale = clip_scale(float(step), settings.max_grad_norm)
        adamw_step(values, _numbers(24) / step, mean, square, step=step, lr=1e-3, settings=settings, scale=scale)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in (values, mean, square))).hexdigest()


def _mean():
    parts = [_numbers(6) * factor for factor in (1, 2)]
    return [value.hex() for value in weighted_mean(parts, [3, 5]).tolist()] + [squared_norm(parts[0]).hex()]


def _order():
    documents = [Document(array("i", [number]), array("i", [-100])) for number in range(12)]
    stream = MicrobatchStream(documents, Packing(2, 8, sample_packing=False), seed=7, salt="anna")
    return [list(next(stream).input_ids) for _ in range(9)]
