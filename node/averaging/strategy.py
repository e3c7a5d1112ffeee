"""What a round needs of the replica that takes part in it: the plug point for other ways to average."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from node.core.round_messages import Standing
from node.network.compression import Codec
from node.training.adapter import SealedGradient
from node.training.state import AdapterState

Hook = Callable[[str], Awaitable[None]]
"""Awaited at named points of the protocol; does nothing in a real node, kills or delays in tests."""


async def no_hook(_: str) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Mean:
    """What a committed round gives every member, bit for bit."""

    values: Tensor
    """Mean gradient, [N] fp32 on the CPU."""
    norm_sq: float
    """Its squared norm, as the reducers of the spans computed it."""
    tokens: int
    """Tokens of all members together."""


class Strategy(Protocol):
    """The replica's adapter, as a round sees it."""

    standing: Standing

    async def seal(self) -> SealedGradient:
        """Hand out the accumulated gradient; later microbatches start from zero."""

    async def apply(self, mean: Mean) -> Standing:
        """Step with a committed round's mean."""

    async def adopt(self, state: AdapterState) -> Standing:
        """Go to another lineage's state."""


@dataclass(frozen=True, slots=True)
class AveragerSettings:
    """What the members of a round agree on."""

    stage: int
    num_values: int
    codec: Codec

    @property
    def text(self) -> str:
        """Must be equal everywhere."""
        return f"{self.num_values}/{self.codec}/mean"
