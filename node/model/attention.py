"""Causal attention over packed documents, each by itself.

Legend: T tokens, Hq query heads, Hk key heads, G = Hq / Hk, D head size, b queries of a block, w keys that they see.
Inside, queries are [Hk, T * G, D]: the G queries of a token that share a key head lie below each other, so that a
block of tokens is a slice, and one product serves all of them.
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

_BLOCK = 128
"""Queries of a block on a CPU, where the scores should stay in the cache (measured: 512 take a fifth longer)."""

_GPU_BLOCK = 1024
"""Queries of a block on other devices, where every operation costs its start."""


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
        document_lengths: Lengths of the documents, which sum to T. Of no meaning while a text is continued: then
            there is one query, and the keys are those that the cache holds, its own the last.

    Returns:
        [1, T, Hq, D], and no weights.
    """
    assert attention_mask is None, "packed attention was given a mask"
    assert dropout == 0.0, "packed attention has no dropout"
    if query.shape[2] < key.shape[2]:
        return _attend_last(query[0], key[0], value[0], scaling, sliding_window, softcap), None
    assert sum(document_lengths) == query.shape[2], f"{sum(document_lengths)} tokens in documents of {query.shape[2]}"
    output = _PackedAttention.apply(  # type: ignore[no-untyped-call]
        query[0], key[0], value[0], scaling, sliding_window, softcap, tuple(document_lengths)
    )
    return output.transpose(0, 1)[None], None


def _attend_last(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """Return [1, 1, Hq, D]: what the last token attends to, for a query [Hq, 1, D]; without a gradient."""
    assert query.shape[1] == 1, f"{query.shape[1]} queries at the end of {key.shape[1]} keys, and one was expected"
    if window is not None:
        key, value = key[:, -window:], value[:, -window:]
    grouped = query.view(key.shape[0], -1, query.shape[-1])
    scores = torch.bmm(grouped, key.transpose(1, 2)).mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    return torch.bmm(torch.softmax(scores, dim=-1), value).view(1, 1, -1, query.shape[-1])


def _blocks(lengths: Sequence[int], window: int | None, device: torch.device) -> Iterator[_Block]:
    size = _BLOCK if device.type == "cpu" else _GPU_BLOCK
    document = 0
    for length in lengths:
        for start in range(document, document + length, size):
            first = document if window is None else max(document, start - window + 1)
            yield _Block(first, start, min(start + size, document + length))
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
        key, value = key.contiguous(), value.contiguous()
        group = query.shape[0] // key.shape[0]
        scaled = _grouped(query, key.shape[0]) * scaling
        output = torch.empty_like(scaled)
        masks = _Masks(group, window, scaled)
        for block in _blocks(lengths, window, query.device):
            queries = scaled[:, block.query_start * group : block.query_stop * group]
            probabilities, _ = _probabilities(queries, key, block, softcap, masks)
            attended = torch.bmm(probabilities, value[:, block.key_start : block.query_stop])
            output[:, block.query_start * group : block.query_stop * group] = attended
        ctx.save_for_backward(scaled, key, value)
        ctx.settings = (scaling, window, softcap, lengths)
        return _ungrouped(output, group)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value = ctx.saved_tensors
        scaling, window, softcap, lengths = ctx.settings
        group = scaled.shape[1] // key.shape[1]
        grad_attended = _grouped(grad_output, key.shape[0]).contiguous()
        grad_scaled = torch.empty_like(scaled)
        # Several blocks add to the gradient of one key, and bf16 would round each time.
        grad_key = torch.zeros(key.shape, dtype=torch.float32, device=key.device)
        grad_value = torch.zeros_like(grad_key)
        masks = _Masks(group, window, scaled)
        for block in _blocks(lengths, window, scaled.device):
            rows = slice(block.query_start * group, block.query_stop * group)
            keys = slice(block.key_start, block.query_stop)
            probabilities, slope = _probabilities(scaled[:, rows], key, block, softcap, masks)
            grad_value[:, keys] += torch.bmm(probabilities.transpose(1, 2), grad_attended[:, rows])
            grad_scores = torch.bmm(grad_attended[:, rows], value[:, keys].transpose(1, 2))
            # The backward of softmax as one operation: P * (dP - rowsum(P * dP)).
            grad_scores = torch.ops.aten._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)  # noqa: SLF001
            if slope is not None:
                grad_scores.mul_(slope)
            grad_scaled[:, rows] = torch.bmm(grad_scores, key[:, keys])
            grad_key[:, keys] += torch.bmm(grad_scores.transpose(1, 2), scaled[:, rows])
        grad_query = _ungrouped(grad_scaled.mul_(scaling), group)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None, None


def _grouped(tensor: Tensor, num_keys: int) -> Tensor:
    """Return [Hq, T, D] as [Hk, T * G, D]; a copy."""
    heads, tokens, size = tensor.shape
    return tensor.view(num_keys, heads // num_keys, tokens, size).transpose(1, 2).reshape(num_keys, -1, size)


def _ungrouped(tensor: Tensor, group: int) -> Tensor:
    """Return [Hk, T * G, D] as [Hq, T, D] in the memory order of [T, Hq, D], which is the one that is read next."""
    num_keys, rows, size = tensor.shape
    tokens = tensor.view(num_keys, rows // group, group, size).permute(1, 0, 2, 3).reshape(rows // group, -1, size)
    return tokens.transpose(0, 1)


def _probabilities(
    queries: Tensor, key: Tensor, block: _Block, softcap: float | None, masks: _Masks
) -> tuple[Tensor, Tensor | None]:
    """Return the probabilities [Hk, b * G, w] of scaled queries, and with a softcap its slope at the scores."""
    scores = torch.bmm(queries, key[:, block.key_start : block.query_stop].transpose(1, 2))
    slope = None
    if softcap is not None:
        capped = scores.div_(softcap).tanh_()
        slope = 1.0 - capped.square()
        scores = capped.mul_(softcap)
    masks.apply(scores, block)
    return torch.softmax(scores, dim=-1), slope


class _Masks:
    """Minus infinity where a query must not look, made once for each shape of a block."""

    def __init__(self, group: int, window: int | None, like: Tensor) -> None:
        self._group = group
        self._window = window
        self._like = like
        self._made: dict[tuple[int, int], Tensor] = {}

    def apply(self, scores: Tensor, block: _Block) -> None:
        """Hide in `scores` [Hk, b * G, w] the keys that come later or lie before the window."""
        queries, keys = block.query_stop - block.query_start, block.query_stop - block.key_start
        # Without a window all keys before the block are seen by all of its queries.
        touched = queries if self._window is None else keys
        mask = self._made.get((queries, touched))
        if mask is None:
            mask = self._made[queries, touched] = self._make(queries, touched)
        scores[:, :, keys - touched :] += mask

    def _make(self, queries: int, keys: int) -> Tensor:
        """Return the mask [b * G, keys]; the last query and the last key are the same token."""
        device = self._like.device
        rows = torch.arange(keys - queries, keys, device=device).repeat_interleave(self._group)
        distance = rows[:, None] - torch.arange(keys, device=device)[None, :]
        hidden = distance < 0
        if self._window is not None:
            hidden.logical_or_(distance >= self._window)
        return torch.zeros(hidden.shape, dtype=self._like.dtype, device=device).masked_fill_(hidden, float("-inf"))
