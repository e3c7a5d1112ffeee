"""Frozen weights, dense or in NF4 with double quantisation, as bitsandbytes stores them.

No module of bitsandbytes is used, only its functions: its linear layer repacks its weights in place when it is called
without gradients on a CPU with AVX512-BF16, and then trains with wrong gradients.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from torch import Tensor


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


# When it is imported, bitsandbytes warns that a kernel for inference is missing, one that is never called here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_worth_saying)


def _as_it_is(function: Any = None, **_: Any) -> Any:
    return (lambda inner: inner) if function is None else function


# As it is imported, it also hands the code for devices without kernels of their own to `torch.compile`, which loads the
# compiler: 2 s and 45 MB in every process, for code that is never called here.
_compile, torch.compile = torch.compile, _as_it_is  # type: ignore[assignment]
try:
    from bitsandbytes import functional as bnb
finally:
    torch.compile = _compile

BLOCK = 64
"""Weights that share one scale."""

_ROWS_ELEMENTS = 1 << 18
"""Weights that are quantised at a time on a CPU: small enough for the temporaries to stay in the cache."""


class FrozenWeight(Protocol):
    """The weight of a linear layer that is never trained."""

    shape: tuple[int, int]
    """[out, in]"""

    def dense(self) -> Tensor:
        """Return the weight [out, in] in the compute type; not to be written to."""
        ...


class DenseWeight:
    """A weight that is stored as it is computed with."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = (weight.shape[0], weight.shape[1])
        self._weight = weight

    def dense(self) -> Tensor:
        """Return the weight itself."""
        return self._weight


class Nf4Weight:
    """A weight in NF4 (arXiv 2305.14314): 4 bits a value, a scale for each 64 values, the scales in 8 bits."""

    def __init__(self, codes: Tensor, state: bnb.QuantState) -> None:
        self.shape = (state.shape[0], state.shape[1])
        self._codes = codes
        self._state = state

    @classmethod
    def quantize(cls, weight: Tensor, dtype: torch.dtype) -> Nf4Weight:
        """Quantise `weight` [out, in] to what bitsandbytes makes of it, bit for bit; `dense()` will return `dtype`.

        The codes are made block by block on a CPU, since bitsandbytes needs 20 bytes of temporaries a value there and
        three times as long.
        """
        if weight.device.type != "cpu" or weight.numel() % BLOCK:
            codes, state = bnb.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
            state.dtype = dtype
            return cls(codes, state)
        codes, absmax = _quantize_cpu(weight.reshape(-1))
        offset = absmax.mean()
        scales, scales_state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
        state = bnb.QuantState(
            absmax=scales,
            shape=weight.shape,
            dtype=dtype,
            blocksize=BLOCK,
            code=_levels(),
            quant_type="nf4",
            offset=offset,
            state2=scales_state,
        )
        return cls(codes, state)

    def dense(self) -> Tensor:
        """Return the dequantised weight, made anew by each call: cheap next to any product with it."""
        weight: Tensor = bnb.dequantize_4bit(self._codes, self._state)
        return weight


def try_nf4(device: str) -> float:
    """Return the root mean square error, in deviations, of normal numbers that went to NF4 and back on `device`.

    Raises:
        RuntimeError: the kernels do not run there.
    """
    weight = torch.randn(256, 4 * BLOCK, generator=torch.Generator().manual_seed(0)).to(device)
    restored = Nf4Weight.quantize(weight, torch.float32).dense()
    return float((restored - weight).square().mean().sqrt())


def _levels() -> Tensor:
    levels: Tensor = bnb.get_4bit_type("nf4", device="cpu")
    return levels


def _quantize_cpu(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the packed codes uint8 [n / 2, 1] and the scales fp32 [n / 64] of `flat` [n]."""
    levels = _levels()
    bounds = ((levels[1:] + levels[:-1]) / 2).tolist()
    codes = torch.empty(flat.numel() // 2, dtype=torch.uint8)
    absmax = torch.empty(flat.numel() // BLOCK, dtype=torch.float32)
    for start in range(0, flat.numel(), _ROWS_ELEMENTS):
        values = flat[start : start + _ROWS_ELEMENTS].float().view(-1, BLOCK)
        scale = values.abs().amax(dim=1)
        # The order of operations is bitsandbytes' own; another one moves values that lie near a bound.
        values = (values * (1.0 / scale.clamp(min=1e-38))[:, None]).clamp_(-1, 1).view(-1)
        level = torch.zeros(values.numel(), dtype=torch.uint8)
        for bound in bounds:
            level.add_(values > bound)
        codes[start // 2 : (start + values.numel()) // 2] = (level[::2] << 4) | level[1::2]
        absmax[start // BLOCK : (start + values.numel()) // BLOCK] = scale
    return codes[:, None], absmax
