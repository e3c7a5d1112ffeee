"""How fast this machine probably trains: a product and an element-wise operation are timed, the rest is counting.

An estimate for planning, within a factor of two or so. A node that trains tells the truth (`potluck status`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch

from node.host.memory import AdapterShape, layer_activation_bytes
from node.host.shapes import ModelShape

_PASSES = 21.0
"""How often each kept activation goes through an element-wise operation: norms, rotations, casts, softmax, gradients.
Fitted to SmolLM2 on one CPU core."""

_MEASURE_S = 0.15
_MOST_ROWS = 2048
_WIDEST = 16384


def flop_per_token(shape: ModelShape, adapter: AdapterShape, *, gradient_checkpointing: bool) -> int:
    """Return the floating-point operations that one token costs, attention's scores left out.

    The frozen weights are multiplied forward and backward (2 operations each), and forward again with checkpointing;
    they have no gradient of their own. The adapter's have.
    """
    passes = 3 if gradient_checkpointing else 2
    frozen = shape.num_layers * shape.matrix_numel
    trained = shape.num_layers * adapter.layer_numel(shape)
    return 2 * passes * frozen + 4 * shape.vocabulary * shape.hidden + 2 * (passes + 1) * trained


def tokens_per_s(
    shape: ModelShape,
    adapter: AdapterShape,
    *,
    tokens: int,
    device: str,
    compute: Literal["bfloat16", "float32"],
    gradient_checkpointing: bool,
) -> float:
    """Return about how many tokens a second a node alone trains on `device` in microbatches of `tokens`.

    Times the model's widest product and its activation for a fraction of a second.
    """
    dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
    rows, inputs, outputs = min(tokens, _MOST_ROWS), min(shape.hidden, _WIDEST), min(shape.intermediate, _WIDEST)
    left = torch.ones(rows, inputs, dtype=dtype, device=device)
    right = torch.ones(outputs, inputs, dtype=dtype, device=device)
    gate = torch.ones(rows, outputs, dtype=dtype, device=device)
    product_s = _median_s(lambda: torch.nn.functional.linear(left, right), left)
    gating_s = _median_s(lambda: torch.nn.functional.silu(gate) * gate, left)
    operations = flop_per_token(shape, adapter, gradient_checkpointing=gradient_checkpointing)
    per_operation_s = product_s / (2 * rows * inputs * outputs)
    item = left.element_size()
    kept = layer_activation_bytes(shape, adapter, rows, item) / item / rows * shape.num_layers
    per_number_s = gating_s / (2 * rows * outputs)
    return 1.0 / (operations * per_operation_s + _PASSES * kept * per_number_s)


def _median_s(operation: Callable[[], torch.Tensor], on: torch.Tensor) -> float:
    operation()  # the first call prepares its kernel
    times: list[float] = []
    while sum(times) < _MEASURE_S or len(times) < 3:
        started = time.perf_counter()
        operation()
        if on.is_cuda:
            torch.cuda.synchronize(on.device)
        times.append(max(time.perf_counter() - started, 1e-9))
    return sorted(times)[len(times) // 2]
