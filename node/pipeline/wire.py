"""Hidden states and gradients as bytes, off the event loop; what both ends of a hop agree on.

Legend: T tokens of a microbatch, H hidden size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from node.core.errors import NodeError
from node.network.activations import ActivationCodec, Direction, decode, encode, encoded_size
from node.network.round_words import Malformed

MAX_TOKENS = 1 << 18
"""Tokens of one microbatch that are taken in from a peer."""
MAX_TENSOR_BYTES = 1 << 30
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Wire:
    """How tensors travel in one run, and in what type this node computes."""

    codec: ActivationCodec
    hidden_size: int
    compute: torch.dtype
    device: torch.device

    @property
    def dtype_name(self) -> str:
        """The compute type's name in a request."""
        return _NAMES[self.compute]

    def size(self, direction: Direction, lengths: Sequence[int], dtype_name: str) -> int:
        """Return the bytes of one tensor, from fields that a peer has sent.

        Raises:
            Malformed: the lengths or the type cannot be those of a microbatch.
        """
        if not lengths or min(lengths) < 1 or sum(lengths) > MAX_TOKENS:
            raise Malformed("the lengths are not those of a microbatch")
        if dtype_name not in _DTYPES:
            raise Malformed(f"tensors of type {dtype_name[:20]!r}")
        size = encoded_size(self.codec, direction, lengths, self.hidden_size, _DTYPES[dtype_name])
        if size > MAX_TENSOR_BYTES:
            raise Malformed(f"a tensor of {size} bytes")
        return size

    async def encode(
        self, direction: Direction, tensor: Tensor, lengths: Sequence[int], dtype_name: str
    ) -> bytes | memoryview:
        """Return the tensor [T, H] as bytes."""

        def work() -> bytes | memoryview:
            return encode(self.codec, direction, tensor.to("cpu", _DTYPES[dtype_name]), lengths)

        return await asyncio.to_thread(work)

    async def decode(
        self, direction: Direction, data: bytes | bytearray, lengths: Sequence[int], dtype_name: str
    ) -> Tensor:
        """Return the tensor [T, H] in this node's compute type, on its device.

        Raises:
            Malformed: the bytes are not such a tensor.
        """

        def work() -> Tensor:
            tensor = decode(self.codec, direction, data, lengths, self.hidden_size, _DTYPES[dtype_name])
            return tensor.to(self.device, self.compute)

        return await asyncio.to_thread(work)


def hidden_bytes(hidden: Tensor, dtype_name: str) -> bytes:
    """Return hidden states [T, H] row by row in the type named, for another process of this machine's owner."""
    flat = hidden.detach().to("cpu", _DTYPES[dtype_name]).contiguous()
    return flat.view(torch.uint8).numpy().tobytes()


def hidden_from(data: bytes, dtype_name: str, lengths: Sequence[int], hidden_size: int) -> Tensor:
    """Return the hidden states [T, H] in what `hidden_bytes` gave.

    Raises:
        NodeError: the bytes are not those of documents with these lengths.
    """
    dtype = _DTYPES.get(dtype_name)
    if dtype is None or not lengths or min(lengths) < 1 or len(data) != sum(lengths) * hidden_size * dtype.itemsize:
        raise NodeError("The hidden states are not those of the documents' lengths.", hint="This is a bug.")
    return torch.frombuffer(bytearray(data), dtype=dtype).view(sum(lengths), hidden_size)
