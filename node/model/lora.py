"""Linear layers with a frozen weight and, where wanted, a trainable LoRA adapter.

Legend: T tokens, I inputs, O outputs, R rank. The names and the meaning are peft's, which the tests compare with; what
differs is that both products of the weight share one dequantisation, that the adapter's fp32 masters are cast once a
call, and that no fp32 copy of the input is made.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from node.model.quantization import FrozenWeight
from node.model.spec import LoraSpec


@dataclass
class StepContext:
    """What holds for the forward that is running; one object, shared by all layers of a shard."""

    adapter: bool = True
    """Whether adapters take part."""
    dropout_seed: int | None = None
    """Seed of the microbatch's dropout masks; None means no dropout."""


def initial_a(seed: int, name: str, rank: int, num_inputs: int) -> Tensor:
    """Return the start of an adapter's A [rank, num_inputs], fp32: the same bits on every machine.

    The bound is that of peft (Kaiming uniform with a = sqrt 5). Torch's generator gives other numbers on other SIMD
    paths, so the numbers come from numpy's PCG64, seeded by the run's seed and the layer's name: a replica gets the
    same start whatever layers it holds.
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    bound = 1.0 / math.sqrt(num_inputs)
    values = (generator.random((rank, num_inputs), dtype=np.float64) * 2.0 - 1.0) * bound
    return torch.from_numpy(values.astype(np.float32))


class LoraLinear(nn.Module):
    """A linear layer y = W x + b with a frozen W, plus s · B A x if it has an adapter."""

    def __init__(self, name: str, weight: FrozenWeight, bias: Tensor | None, step: StepContext) -> None:
        super().__init__()
        self.name = name
        self.weight = weight
        self.bias = bias
        self._step = step
        self.lora_a: nn.Parameter | None = None
        self.lora_b: nn.Parameter | None = None
        self.magnitude: nn.Parameter | None = None
        self._scaling = 0.0
        self._dropout = 0.0
        self._name_seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    def add_adapter(self, spec: LoraSpec, seed: int, device: str) -> dict[str, nn.Parameter]:
        """Give this layer an adapter at its start, where it changes nothing; return its parameters by peft's names."""
        outputs, inputs = self.weight.shape
        self._scaling, self._dropout = spec.scaling, spec.dropout
        self.lora_a = nn.Parameter(initial_a(seed, self.name, spec.r, inputs).to(device))
        self.lora_b = nn.Parameter(torch.zeros(outputs, spec.r, device=device))
        parameters = {f"{self.name}.lora_A.weight": self.lora_a, f"{self.name}.lora_B.weight": self.lora_b}
        if spec.use_dora:
            self.magnitude = nn.Parameter(_row_norms(self.weight.dense()).to(device))
            parameters[f"{self.name}.lora_magnitude_vector"] = self.magnitude
        return parameters

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x` [..., I], which has the compute type."""
        flat = x.reshape(-1, x.shape[-1])
        if self.lora_a is None or self.lora_b is None or not self._step.adapter:
            y = _frozen_linear(flat, self.weight, self.bias)
        elif self.magnitude is None:
            y = _LoraLinear.apply(  # type: ignore[no-untyped-call]
                flat, self.lora_a, self.lora_b, self.weight, self.bias, self._scaling, self._dropout_of_step()
            )
        else:
            y = self._dora(flat, self.lora_a, self.lora_b, self.magnitude)
        result: Tensor = y.view(*x.shape[:-1], y.shape[-1])
        return result

    def _dropout_of_step(self) -> tuple[float, int] | None:
        """Return the probability and the seed of this layer's mask in this microbatch."""
        if self._dropout == 0.0 or self._step.dropout_seed is None:
            return None
        return self._dropout, (self._step.dropout_seed ^ self._name_seed) & 0x7FFF_FFFF_FFFF_FFFF

    def _dora(self, x: Tensor, a: Tensor, b: Tensor, magnitude: Tensor) -> Tensor:
        """Apply the layer with DoRA: the rows of W + s · B A, scaled to the trained magnitudes.

        As in the paper's section 4.3 the norms count as constants, and as in peft dropout is applied to the input of
        everything but the frozen product.
        """
        with torch.no_grad():
            updated = torch.addmm(self.weight.dense().float(), b, a, alpha=self._scaling)
            norms = torch.linalg.vector_norm(updated, dim=1)
        gain = (magnitude / norms).to(x.dtype)
        frozen = _frozen_linear(x, self.weight, None)
        dropout = self._dropout_of_step()
        dropped = x if dropout is None else x * _mask(dropout, x)
        again = frozen if dropout is None else _frozen_linear(dropped, self.weight, None)
        update = (dropped @ a.to(x.dtype).t()) @ b.to(x.dtype).t()
        y: Tensor = frozen + (gain - 1) * again + (gain * self._scaling) * update
        return y if self.bias is None else y + self.bias


def _frozen_linear(x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
    y: Tensor = _FrozenLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


class _FrozenLinear(torch.autograd.Function):
    """y [T, O] = x W' + b, with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, weight.dense(), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        return (dy @ ctx.weight.dense() if ctx.needs_input_grad[0] else None), None, None


class _LoraLinear(torch.autograd.Function):
    """y [T, O] = x W' + b + s · (x A') B', with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [T, I]
        a: Tensor,  # [R, I] fp32
        b: Tensor,  # [O, R] fp32
        weight: FrozenWeight,
        bias: Tensor | None,
        scaling: float,
        dropout: tuple[float, int] | None,
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        xa = (x if dropout is None else x * _mask(dropout, x)) @ a.t()
        y = torch.nn.functional.linear(x, weight.dense(), bias)
        y.addmm_(xa, b.t(), alpha=scaling)
        ctx.save_for_backward(x, xa, a, b)
        ctx.weight, ctx.scaling, ctx.dropout = weight, scaling, dropout
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, xa, a, b = ctx.saved_tensors
        mask = None if ctx.dropout is None else _mask(ctx.dropout, x)
        dxa = (dy @ b).mul_(ctx.scaling)
        db = (dy.t() @ xa).float().mul_(ctx.scaling)
        da = (dxa.t() @ (x if mask is None else x * mask)).float()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ ctx.weight.dense()
            if mask is None:
                dx.addmm_(dxa, a)
            else:
                dx.addcmul_(dxa @ a, mask)
        return dx, da, db, None, None, None, None


def _mask(dropout: tuple[float, int], x: Tensor) -> Tensor:
    """Return a mask like `x` with 0 or 1 / (1 - p), the same for the same seed: made again instead of kept."""
    probability, seed = dropout
    generator = torch.Generator(device=x.device).manual_seed(seed)
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= probability
    return keep.to(x.dtype).mul_(1.0 / (1.0 - probability))


def _row_norms(weight: Tensor) -> Tensor:
    """Return the norms fp32 [O] of the rows of `weight` [O, I], added up in an order that no SIMD path changes."""
    squares = weight.double().square_()
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        odd = squares[:, 2 * half :]
        squares = squares[:, :half] + squares[:, half : 2 * half]
        squares = torch.cat((squares, odd), dim=1) if odd.shape[1] else squares
    return squares[:, 0].sqrt_().float()
