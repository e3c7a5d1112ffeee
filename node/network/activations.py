"""Hidden states and their gradients as bytes between the stages of a model, exact or rounded.

The first token of a document is an attention sink: in the middle of SmolLM2 its norm is 160 times the median's and one
of its channels 500 times the others. It would spoil every value that shares its scale, so it travels as bf16; the other
tokens are rounded in groups of 64 along the hidden size. Rotating a group by a Hadamard matrix spreads outlying
channels before the rounding to few bits (QuaRot, arXiv 2404.00456). Little-endian throughout: the first tokens, then
one bf16 scale for each group, then the values.

Legend: T tokens of a microbatch, D documents, N = T - D tokens that are rounded, H hidden size, G groups of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from node.network.round_words import Malformed

ActivationCodec = Literal["none", "bf16", "int8", "lowbit"]
Direction = Literal["forward", "backward"]

GROUP = 64
"""Values that share a scale."""
_BITS: dict[Direction, int] = {"forward": 6, "backward": 4}
"""Of `lowbit`; a gradient bears far coarser rounding than the hidden state it belongs to."""
_INT8_MAX = 127
_SMALLEST = torch.finfo(torch.bfloat16).tiny
_LARGEST = 1e30
"""Of a scale: whatever codes come with it, the values stay finite."""


def encoded_size(
    codec: ActivationCodec, direction: Direction, lengths: Sequence[int], hidden_size: int, dtype: torch.dtype
) -> int:
    """Return the exact bytes of a tensor [T, H], where T is the sum of the documents' `lengths`.

    Args:
        codec: The recipe's.
        direction: `forward` for hidden states, `backward` for gradients.
        lengths: Lengths of the documents.
        hidden_size: H.
        dtype: The compute type; it matters to `none` alone.

    Raises:
        Malformed: there are no documents, or one of them is empty.
    """
    if not lengths or min(lengths) < 1:
        raise Malformed("the lengths are not those of documents")
    if codec in ("none", "bf16"):
        return sum(lengths) * hidden_size * _raw_type(codec, dtype).itemsize
    num_groups = -(-hidden_size // GROUP)
    values = hidden_size if codec == "int8" else num_groups * GROUP * _BITS[direction] // 8
    rounded = sum(lengths) - len(lengths)
    return len(lengths) * hidden_size * 2 + rounded * (num_groups * 2 + values)


def encode(codec: ActivationCodec, direction: Direction, tensor: Tensor, lengths: Sequence[int]) -> memoryview:
    """Return a CPU tensor [T, H], fp32 or bf16, as `encoded_size` bytes.

    With `none` they may be the tensor's own memory: leave it alone until they are sent. The same tensor gives the
    same bytes (rounding is to the nearest). What is not finite, or in a group beyond 1e30, is encoded into
    something that `decode` refuses.
    """
    assert len(tensor) == sum(lengths), "the lengths are those of the tensor's documents"
    tensor = tensor.detach()
    if codec in ("none", "bf16"):
        return _bytes_of(tensor.to(_raw_type(codec, tensor.dtype))).numpy().data
    first, others = _positions(lengths)
    groups = _grouped(tensor.index_select(0, others).float())
    if codec == "int8":
        scales = _scales(groups, _INT8_MAX)
        codes = groups.mul_(_inverse(scales)).round_().clamp_(-_INT8_MAX, _INT8_MAX).to(torch.int8)
        values = codes.flatten(1)[:, : tensor.shape[1]]
    else:
        bits = _BITS[direction]
        rotated = groups @ _hadamard()
        half = 1 << (bits - 1)
        scales = _scales(rotated, half)
        # Levels lie at half steps, so that all 2^bits of them are used; zero is exact only in a group of zeros.
        codes = rotated.mul_(_inverse(scales)).floor_().clamp_(-half, half - 1).add_(half).to(torch.uint8)
        values = _pack(codes, bits)
    heads = tensor.index_select(0, first).bfloat16()
    return torch.cat([_bytes_of(part) for part in (heads, scales, values)]).numpy().data


def decode(
    codec: ActivationCodec,
    direction: Direction,
    data: bytes | bytearray | memoryview,
    lengths: Sequence[int],
    hidden_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return `encode`'s bytes as a finite CPU tensor [T, H] of `dtype`; a bytearray may become its memory.

    Nothing is allocated that `lengths` and `hidden_size` do not ask for: bound those first.

    Raises:
        Malformed: the size is not `encoded_size`, or the numbers are not finite.
    """
    if len(data) != encoded_size(codec, direction, lengths, hidden_size, dtype):
        raise Malformed(f"{len(data)} bytes for {sum(lengths)} tokens in '{codec}'")
    raw = torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8)
    if codec in ("none", "bf16"):
        return _finite(raw.view(_raw_type(codec, dtype)).view(-1, hidden_size)).to(dtype)
    first, others = _positions(lengths)
    num_groups = -(-hidden_size // GROUP)
    num_scale_bytes = len(others) * num_groups * 2
    head_bytes, scale_bytes, values = raw.tensor_split(
        (len(first) * hidden_size * 2, len(first) * hidden_size * 2 + num_scale_bytes)
    )
    heads = _finite(head_bytes.view(torch.bfloat16).view(-1, hidden_size))
    scales = scale_bytes.view(torch.bfloat16).view(len(others), num_groups, 1).float()
    if not bool(((scales >= 0) & (scales <= _LARGEST)).all()):
        raise Malformed("a scale is not that of a finite tensor")
    if codec == "int8":
        groups = _grouped(values.view(torch.int8).view(len(others), hidden_size).float()).mul_(scales)
    else:
        bits = _BITS[direction]
        codes = _unpack(values.view(len(others), num_groups, GROUP * bits // 8), bits)
        groups = codes.float().sub_((1 << (bits - 1)) - 0.5).mul_(scales) @ _hadamard()
    tensor = torch.empty(sum(lengths), hidden_size, dtype=dtype)
    tensor.index_copy_(0, others, groups.view(len(others), num_groups * GROUP)[:, :hidden_size].to(dtype))
    return tensor.index_copy_(0, first, heads.to(dtype))


def _raw_type(codec: ActivationCodec, dtype: torch.dtype) -> torch.dtype:
    return dtype if codec == "none" else torch.bfloat16


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _finite(tensor: Tensor) -> Tensor:
    least, largest = torch.aminmax(tensor)  # a third of the time of isfinite, and NaN comes through
    if not (math.isfinite(least) and math.isfinite(largest)):
        raise Malformed("a number is not finite")
    return tensor


def _positions(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return where the documents' first tokens [D] are, and all others [N]."""
    of_documents = torch.tensor(lengths)
    first = of_documents.cumsum(0) - of_documents
    is_other = torch.ones(sum(lengths), dtype=torch.bool)
    is_other[first] = False
    return first, is_other.nonzero()[:, 0]


def _grouped(rows: Tensor) -> Tensor:
    """Return rows [N, H] as [N, G, GROUP], with zeros where the last group is short."""
    num_groups = -(-rows.shape[1] // GROUP)
    padded = functional.pad(rows, (0, num_groups * GROUP - rows.shape[1]))
    return padded.view(len(rows), num_groups, GROUP)


def _scales(groups: Tensor, largest_code: int) -> Tensor:
    """Return the scales [N, G, 1] that take each group's largest value to `largest_code`, in bf16.

    Codes are made with the rounded scale, so fp16's finer steps would gain nothing, and the gradient of a long text
    lies below the least of fp16.
    """
    largest: Tensor = torch.linalg.vector_norm(groups, ord=float("inf"), dim=-1, keepdim=True)
    scales = (largest / largest_code).bfloat16()
    scales[scales < _SMALLEST] = 0  # their inverse would overflow
    return scales


def _inverse(scales: Tensor) -> Tensor:
    inverse: Tensor = scales.float().reciprocal().masked_fill_(scales == 0, 0)
    return inverse


@cache
def _hadamard() -> Tensor:
    """Return the Hadamard matrix [GROUP, GROUP] by Sylvester's construction, scaled so that it is its own inverse."""
    matrix = torch.ones(1, 1)
    while len(matrix) < GROUP:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    scaled: Tensor = matrix / GROUP**0.5
    return scaled


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes [N, G, GROUP] of 4 or 6 bits: two halves of a group side by side, or three quarters and the fourth."""
    if bits == 4:
        low, high = codes.chunk(2, dim=-1)
        packed: Tensor = low | high << 4
        return packed
    quarters = torch.stack(codes.chunk(4, dim=-1)[:3], dim=-2)
    fourth = codes[..., None, -GROUP // 4 :]
    pieces = torch.cat([fourth << 6, (fourth >> 2) << 6, (fourth >> 4) << 6], dim=-2)
    return (quarters | pieces).flatten(-2)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes that `_pack` has packed."""
    if bits == 4:
        return torch.cat([packed & 15, packed >> 4], dim=-1)
    first, second, third = packed.chunk(3, dim=-1)
    fourth = first >> 6 | (second >> 6) << 2 | (third >> 6) << 4
    return torch.cat([first & 63, second & 63, third & 63, fourth], dim=-1)
