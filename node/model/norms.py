"""RMS normalisation in half the passes over memory, in the place of transformers' modules.

Legend: T rows, H size of a row. Next to fast bf16 products the normalisations of a layer are among the slowest
operations of a step on a CPU. The families differ in where they round and in what the weight is added to; the
forward rounds exactly where the family's own does, and the tests compare the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Kind(NamedTuple):
    """How a family's normalisation uses its weight w on a normed fp32 row n."""

    one_plus: bool
    """The factor is 1 + w (Gemma)."""
    rounds_first: bool
    """n is rounded to the compute type before the product, which is then made in that type (Llama)."""
    eps: str
    """The attribute that holds epsilon."""


_LLAMA = _Kind(one_plus=False, rounds_first=True, eps="variance_epsilon")
_OLMO = _Kind(one_plus=False, rounds_first=False, eps="variance_epsilon")
_GEMMA = _Kind(one_plus=True, rounds_first=False, eps="eps")

_KINDS = {
    "LlamaRMSNorm": _LLAMA,
    "MistralRMSNorm": _LLAMA,
    "Qwen2RMSNorm": _LLAMA,
    "Qwen3RMSNorm": _LLAMA,
    "Phi3RMSNorm": _LLAMA,
    "SmolLM3RMSNorm": _LLAMA,
    "Olmo2RMSNorm": _OLMO,
    "Gemma2RMSNorm": _GEMMA,
    "Gemma3RMSNorm": _GEMMA,
}


class RmsNorm(nn.Module):
    """A frozen normalisation of the last dimension."""

    def __init__(self, weight: nn.Parameter, eps: float, kind: _Kind) -> None:
        super().__init__()
        self.weight = weight
        self._eps = eps
        self._kind = kind

    @classmethod
    def of(cls, module: nn.Module) -> RmsNorm | None:
        """Return the replacement of a normalisation of transformers, or None if `module` is none that is known."""
        kind = _KINDS.get(type(module).__name__)
        if kind is None:
            return None
        return cls(module.get_parameter("weight"), float(getattr(module, kind.eps)), kind)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., H]."""
        y: Tensor = _RmsNorm.apply(x, self.weight, self._eps, self._kind)  # type: ignore[no-untyped-call]
        return y


class _RmsNorm(torch.autograd.Function):
    """y = x / rms(x) * factor, with a gradient for x alone: dx = r (g - x r² mean(g x)) for g = dy * factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kind: _Kind) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed = torch.mul(wide, inverse, out=wide if wide is not x else None)
        factor = 1.0 + weight.float() if kind.one_plus else weight
        y = normed.to(x.dtype).mul_(factor) if kind.rounds_first else normed.mul_(factor.float()).to(x.dtype)
        ctx.save_for_backward(x, inverse, weight)
        ctx.one_plus = kind.one_plus
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        x, inverse, weight = ctx.saved_tensors
        g = dy.float() * (1.0 + weight.float() if ctx.one_plus else weight.float())
        wide = x.float()
        correction = (g * wide).mean(-1, keepdim=True).mul_(inverse * inverse)
        g.addcmul_(wide, correction, value=-1.0).mul_(inverse)
        return g.to(x.dtype), None, None, None
