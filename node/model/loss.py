"""Cross entropy over a large vocabulary without ever holding all logits.

Legend: N rows, H hidden size, V vocabulary. The head is frozen, so the gradient of the rows is all there is, and it is
made in the forward while the logits of a chunk exist (the idea of Cut Cross-Entropy, arXiv 2411.09009).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK_BYTES = 64 << 20
"""Size of the logits that exist at a time, in the compute type: the product with the head reads all of it for each
chunk, so small chunks are slow (measured: 128 rows take twice the time of 512)."""

_BLOCK_BYTES = 2 << 20
"""Size of the fp32 logits that are worked on at a time, in the cache."""


class SummedCrossEntropy(torch.autograd.Function):
    """The sum over N rows of the cross entropy in nats, fp32, of `softcap(rows @ head')` against `targets`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        """Compute the loss.

        Args:
            ctx: Autograd's.
            rows: [N, H] in the compute type.
            head: [V, H] in the compute type, frozen.
            targets: [N] int64, each a token id.
            softcap: If given, logits become cap * tanh(logits / cap) first (Gemma 2).
        """
        with_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(rows) if with_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        chunk = max(16, _CHUNK_BYTES // (rows.element_size() * head.shape[0]))
        block = max(4, _BLOCK_BYTES // (4 * head.shape[0]))
        for start in range(0, rows.shape[0], chunk):
            stop = min(start + chunk, rows.shape[0])
            logits = rows[start:stop] @ head.t()
            for first in range(start, stop, block):
                last = min(first + block, stop)
                total += _block(logits[first - start : last - start], targets[first:last], softcap, with_gradient)
            if gradient is not None:
                torch.mm(logits, head, out=gradient[start:stop])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the rows that the forward has made."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None


def _block(logits: Tensor, targets: Tensor, softcap: float | None, with_gradient: bool) -> Tensor:
    """Return the summed loss of `logits` [n, V], and put their gradient in their place if it is wanted."""
    z = logits.float()
    slope = None
    if softcap is not None:
        z = z.div_(softcap).tanh_()
        slope = 1.0 - z.square() if with_gradient else None
        z.mul_(softcap)
    largest = z.amax(dim=1, keepdim=True)
    z.sub_(largest)
    of_target = z.gather(1, targets[:, None])
    z.exp_()
    sums = z.sum(dim=1, keepdim=True)
    loss = (sums.log() - of_target).sum()
    if with_gradient:
        z.div_(sums)
        z.scatter_add_(1, targets[:, None], z.new_full((len(targets), 1), -1.0))
        logits.copy_(z if slope is None else z.mul_(slope))
    return loss
