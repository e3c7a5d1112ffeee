"""What a tensor from another peer has to pass before anything is computed with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_ABS = 1e30
"""Larger values overflow when they are squared; no honest gradient comes near."""


def refuse(values: Tensor, num_values: int) -> str:
    """Return why a part or a result is unusable, or '' if it may be used.

    Args:
        values: Decoded, fp32.
        num_values: The length that the span has.
    """
    if values.dtype != torch.float32 or tuple(values.shape) != (num_values,):
        return f"it is {values.dtype} of shape {tuple(values.shape)}, not {num_values} fp32 numbers"
    if num_values == 0:
        return ""
    least, most = torch.aminmax(values)  # NaN comes through, in both
    largest = max(abs(float(least)), abs(float(most)))
    if not math.isfinite(largest):
        return "it holds NaN or infinity"
    if largest > MAX_ABS:
        return f"it holds a value of {largest:.1e}"
    return ""


def refuse_norm(norm_sq: float) -> str:
    """Return why the norm in a result is unusable, or ''."""
    return "" if math.isfinite(norm_sq) and norm_sq >= 0 else f"its squared norm is {norm_sq}"
