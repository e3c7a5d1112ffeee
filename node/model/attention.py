"""Causal attention over packed documents, each by itself.

Legend: T tokens, Hq query heads, Hk key heads, G = Hq / Hk, D head size, b queries of a block, w keys that they see.
A block-diagonal mask costs the square of all tokens; going document by document costs the sum of the squares of their
lengths, and no mask that could leak has to be built. Long documents are cut into blocks of queries, so that keys which
no query of a block may see are not computed, and the scores of a block stay in the cache. The backward makes the
probabilities again instead of keeping them: their memory grows with the square of a document's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "potluck"
"""The name under which transformers' models find this attention."""

_BLOCK = 256
"""Queries of a block."""


class _Block(NamedTuple):
    """Queries [query_start, query_stop) and the keys [key_start, query_stop) that any of them sees."""

    key_start: int
    query_start: int
    query_stop: int


def register() -> None:
    """Make this attention known to transformers' models; may be called again.

    No mask function is registered under the name, so that transformers builds no mask for it.
    """
    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: nn.Module,  # noqa: ARG001 - transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_lengths: Sequence[int] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each document; called by transformers' attention modules.

    Args:
        module: The attention module, not used.
        query: [1, Hq, T, D].
        key: [1, Hk, T, D].
        value: [1, Hk, T, D].
        attention_mask: None; a mask would mean that transformers did not know this function.
        scaling: Factor on the scores.
        dropout: Must be 0.
        sliding_window: A query sees at most that many keys, itself included.
        softcap: If given, scores become cap * tanh(scores / cap).
        document_lengths: Lengths of the documents, which sum to T.

    Returns:
        [1, T, Hq, D], and no weights.
    """
    assert attention_mask is None, "packed attention was given a mask"
    assert dropout == 0.0, "packed attention has no dropout"
    assert sum(document_lengths) == query.shape[2], f"{sum(document_lengths)} tokens in documents of {query.shape[2]}"
    output = _PackedAttention.apply(  # type: ignore[no-untyped-call]
        query[0], key[0], value[0], scaling, sliding_window, softcap, tuple(document_lengths)
    )
    return output.transpose(0, 1)[None], None


def _blocks(lengths: Sequence[int], window: int | None) -> Iterator[_Block]:
    document = 0
    for length in lengths:
        for start in range(document, document + length, _BLOCK):
            first = document if window is None else max(document, start - window + 1)
            yield _Block(first, start, min(start + _BLOCK, document + length))
        document += length


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # [Hq, T, D]
        key: Tensor,  # [Hk, T, D]
        value: Tensor,  # [Hk, T, D]
        scaling: float,
        window: int | None,
        softcap: float | None,
        lengths: tuple[int, ...],
    ) -> Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for block in _blocks(lengths, window):
            probabilities, _ = _probabilities(query, key, block, scaling, window, softcap)
            attended = torch.bmm(probabilities, value[:, block.key_start : block.query_stop])
            _put(output, block, attended)
        ctx.save_for_backward(query, key, value)
        ctx.settings = (scaling, window, softcap, lengths)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        scaling, window, softcap, lengths = ctx.settings
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        # Several blocks add to the gradient of one key, and bf16 would round each time.
        grad_key = torch.zeros(key.shape, dtype=torch.float32, device=key.device)
        grad_value = torch.zeros_like(grad_key)
        for block in _blocks(lengths, window):
            keys = slice(block.key_start, block.query_stop)
            probabilities, slope = _probabilities(query, key, block, scaling, window, softcap)
            grad_attended = _take(grad_output, block, key.shape[0])
            grad_value[:, keys] += torch.bmm(probabilities.transpose(1, 2), grad_attended)
            grad_scores = torch.bmm(grad_attended, value[:, keys].transpose(1, 2))
            # The backward of softmax as one operation: P * (dP - rowsum(P * dP)).
            grad_scores = torch.ops.aten._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)  # noqa: SLF001
            if slope is not None:
                grad_scores.mul_(slope)
            grad_scores.mul_(scaling)
            _put(grad_query, block, torch.bmm(grad_scores, key[:, keys]))
            grad_key[:, keys] += torch.bmm(grad_scores.transpose(1, 2), _take(query, block, key.shape[0]))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None, None


def _take(tensor: Tensor, block: _Block, num_keys: int) -> Tensor:
    """Return the block's queries out of [Hq, T, D] as [Hk, G * b, D]: those of one key head below each other."""
    part = tensor[:, block.query_start : block.query_stop]
    return part.reshape(num_keys, -1, part.shape[-1])


def _put(tensor: Tensor, block: _Block, part: Tensor) -> None:
    """Write [Hk, G * b, D] to the block's queries in [Hq, T, D]."""
    queries = block.query_stop - block.query_start
    tensor[:, block.query_start : block.query_stop] = part.view(tensor.shape[0], queries, tensor.shape[-1])


def _probabilities(
    query: Tensor, key: Tensor, block: _Block, scaling: float, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the block's probabilities [Hk, G * b, w], and with a softcap its slope at the scores."""
    num_keys = key.shape[0]
    scores = torch.bmm(_take(query, block, num_keys), key[:, block.key_start : block.query_stop].transpose(1, 2))
    scores.mul_(scaling)
    slope = None
    if softcap is not None:
        capped = scores.div_(softcap).tanh_()
        slope = 1.0 - capped.square()
        scores = capped.mul_(softcap)
    queries, keys = block.query_stop - block.query_start, block.query_stop - block.key_start
    hidden = _hidden(queries, keys, window, scores.device)
    scores.view(num_keys, -1, queries, keys).masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1), slope


def _hidden(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return which keys [queries, keys] a query must not see; the last query and the last key are the same token."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    hidden = distance < 0
    return hidden if window is None else hidden.logical_or_(distance >= window)
