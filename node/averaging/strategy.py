"""What a round needs of the node that takes part in it: the plug point for other ways to average."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from node.core.round_messages import Doubts, Share
from node.core.types import Shard, Standing
from node.data.stream import Cursor
from node.network.compression import Codec
from node.training.adapter import SealedGradient
from node.training.state import AdapterState

Hook = Callable[[str], Awaitable[None]]
"""Awaited at named points of the protocol; does nothing in a real node, kills or delays in tests."""


async def no_hook(_: str) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class SealedStages:
    """One node's sums, taken out of the accumulators of all its stages at one moment."""

    by_stage: Mapping[int, SealedGradient]
    """What was counted here, of any driver's microbatches."""
    weight: int = 0
    """Labels of this node's own microbatches; 0 in a run of several stages, whose drivers keep books of their own."""
    tokens: int = 0
    """Tokens of this node's own microbatches; 0 likewise."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost with it."""
        return not (self.weight or self.tokens or any(s.weight or s.tokens for s in self.by_stage.values()))


@dataclass(frozen=True)
class Prepared:
    """What a node says when it is called."""

    weight: int
    """Labels of its own microbatches that every stage has counted since the last committed round."""
    tokens: int
    doubts: Doubts = frozenset()
    """Holders, with their session, that may have counted a microbatch which another one counted too."""
    sealed: SealedStages | None = None
    """What was sealed at the call already (a run of one stage, where training goes on during the round); else None,
    and `Strategy.seal` follows when the round opens."""


@dataclass(frozen=True)
class Mean:
    """What a committed round gives every member, bit for bit."""

    by_stage: Mapping[int, Tensor]
    """Mean gradient of each stage held, [N] fp32 on the CPU."""
    norm_sq: float
    """The squared norm of the whole adapter's mean, all stages together, as the reducers of the spans computed it."""
    tokens: int
    """Tokens of all drivers together."""
    base_hash: str
    """Of the lineage after this round."""


class Work(Protocol):
    """This node's own training and the sums that it keeps for others, as a round sees them.

    `hold` and `release` may come in any order and more than once; the latest counts.
    """

    @property
    def session(self) -> str:
        """Of the sums, hex: another one after each `discard` and each start."""

    @property
    def cursor(self) -> Cursor:
        """Where the data stands after the last microbatch that is in a committed round with all before it."""

    @property
    def epoch(self) -> float:
        """Passes over the node's data."""

    async def hold(self) -> Prepared:
        """Begin no microbatch, finish those under way, and say what there is; in a run of one stage seal and go on."""

    def sealed(self) -> None:
        """Note that the sums of this node are sealed: one that depends on nobody else may go on."""

    def release(self) -> None:
        """Go on."""

    def settle(self, shares: tuple[Share, ...], *, committed: bool) -> None:
        """Settle the books after a round with these members."""

    def discard(self) -> None:
        """Forget what was counted and take a new session: the sums are gone. On the engine's thread."""


class Strategy(Protocol):
    """The node's adapters, as a round sees them."""

    standing: Standing
    shard: Shard

    @property
    def session(self) -> str:
        """Of the sums, as in `Work`."""

    @property
    def sizes(self) -> Mapping[int, int]:
        """Length of the flat vector of each stage held."""

    async def prepare(self) -> Prepared:
        """Come to a rest and say what there is to bring."""

    async def seal(self) -> SealedStages:
        """Hand out the sums of all stages; not called if `prepare` has done so."""

    async def apply(self, mean: Mean) -> Standing:
        """Step all stages with a committed round's mean."""

    async def adopt(self, states: Mapping[int, AdapterState], standing: Standing) -> Standing:
        """Go to another lineage's state; in a run of several stages the sums are discarded."""

    async def reset(self) -> None:
        """Discard the sums: some may be counted elsewhere too."""

    def ended(self, shares: tuple[Share, ...], *, committed: bool) -> None:
        """Go on after a round, whatever became of it; `shares` is empty if it never opened here."""


@dataclass(frozen=True, slots=True)
class AveragerSettings:
    """What the members of a round agree on."""

    num_stages: int
    codec: Codec

    @property
    def text(self) -> str:
        """Must be equal everywhere."""
        return f"{self.codec}/mean/{self.num_stages}"
