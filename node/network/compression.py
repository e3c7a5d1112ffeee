"""Numbers as bytes on the wire: fp32 as they are, or rounded to bf16.

hivemind's own 8-bit codecs are not used: with current numpy they fail, and its averager reports success all the
same. Whoever encodes a result decodes its own bytes too, so that every member holds the same bits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Codec = Literal["none", "bf16"]
_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16}


def encode(values: Tensor, codec: Codec) -> memoryview:
    """Return a flat fp32 CPU tensor [n] as little-endian bytes."""
    return values.to(_DTYPES[codec]).contiguous().view(torch.uint8).numpy().data


def decode(data: bytes | bytearray | memoryview, num_values: int, codec: Codec) -> Tensor:
    """Return `encode`'s bytes as a flat fp32 tensor [num_values]; a bytearray may become its memory.

    Raises:
        ValueError: the length is wrong.
    """
    if len(data) != num_bytes(num_values, codec):
        raise ValueError(f"{len(data)} bytes for {num_values} numbers in '{codec}'")
    if not num_values:
        return torch.zeros(0)
    return torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=_DTYPES[codec]).to(
        torch.float32
    )


def num_bytes(num_values: int, codec: Codec) -> int:
    """Return how long `num_values` encoded numbers are."""
    return num_values * (2 if codec == "bf16" else 4)
