"""The tensors of one round: parts in, one span reduced, all spans gathered. The machine knows nothing of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import torch
from torch import Tensor

from node.averaging.guard import refuse, refuse_norm
from node.averaging.reduce import squared_norm, weighted_mean
from node.averaging.strategy import Mean
from node.core.round_messages import Share
from node.core.types import PeerId
from node.network.compression import Codec, decode, encode, num_bytes
from node.network.rounds import Bulk, PeerLost, digest_of
from node.training.adapter import SealedGradient


@dataclass
class Exchange:
    """One round's tensors on one replica; thrown away with the round."""

    me: PeerId
    codec: Codec
    started_at: float
    gradient: Tensor | None = None
    """This replica's own sealed sum, [N] fp32."""
    shares: tuple[Share, ...] = ()
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the spans are known, and when the round ended without them."""
    ended: bool = False
    parts: dict[PeerId, Tensor] = field(default_factory=dict)
    spans: dict[PeerId, tuple[Tensor, float]] = field(default_factory=dict)
    result: asyncio.Future[Bulk] | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    bytes_sent: int = 0

    def share_of(self, peer: PeerId) -> Share | None:
        """Return a member's share, or None."""
        return next((share for share in self.shares if share.peer_id == peer), None)

    @property
    def mine(self) -> Share:
        """Return this replica's share of an open round."""
        share = self.share_of(self.me)
        assert share is not None, "this replica is in the round"
        return share

    def part_for(self, share: Share) -> memoryview:
        """Return the bytes of this replica's part of another member's span."""
        assert self.gradient is not None, "the round was sealed before it opened"
        return encode(self.gradient[share.start : share.stop], self.codec)

    def span_bytes(self, share: Share) -> int:
        """Return the length of a span on the wire."""
        return num_bytes(share.stop - share.start, self.codec)

    def take_part(self, sender: PeerId, data: bytes | bytearray | memoryview) -> None:
        """Keep a member's part of this replica's span.

        Raises:
            PeerLost: it is unusable.
        """
        size = self.mine.stop - self.mine.start
        values = decode(data, size, self.codec)
        if reason := refuse(values, size):
            raise PeerLost(f"its part is unusable: {reason}", is_to_blame=True)
        self.parts[sender] = values

    def reduce(self) -> Bulk:
        """Reduce this replica's span of all parts, and encode it once: these bytes are the result for everybody.

        Raises:
            PeerLost: the sum overflowed.
        """
        share = self.mine
        assert self.gradient is not None, "the round was sealed before it opened"
        own = self.gradient[share.start : share.stop]
        # the own part takes the same way as the others', or a lossy codec would treat members differently
        self.parts[self.me] = own if self.codec == "none" else self._rounded(own)
        members = [s.peer_id for s in self.shares]
        mean = weighted_mean([self.parts[peer] for peer in members], [s.weight for s in self.shares])
        result = mean if self.codec == "none" else self._rounded(mean)
        norm_sq = squared_norm(result)
        if reason := refuse_norm(norm_sq):  # NaN and infinity show in the norm too: one pass instead of two
            raise PeerLost(f"the mean is unusable: {reason}")
        self.spans[self.me] = (result, norm_sq)
        self.parts.clear()
        data = encode(result, self.codec)
        return Bulk(data, digest_of(data), norm_sq)

    def _rounded(self, values: Tensor) -> Tensor:
        """Return what the others will decode; to encode that again gives the same bytes."""
        return decode(bytes(encode(values, self.codec)), len(values), self.codec)

    def take_span(self, share: Share, bulk: Bulk) -> None:
        """Keep another member's reduced span.

        Raises:
            PeerLost: it is unusable.
        """
        size = share.stop - share.start
        values = decode(bulk.data, size, self.codec)
        if reason := refuse(values, size) or refuse_norm(bulk.norm_sq):
            raise PeerLost(f"its result is unusable: {reason}", is_to_blame=True)
        self.spans[share.peer_id] = (values, bulk.norm_sq)

    def close(self) -> None:
        """End whatever is under way for this round; streams that wait for its result are cut off."""
        self.ended = True
        self.opened.set()
        if self.result is not None and not self.result.done():
            self.result.cancel()
        current = asyncio.current_task()
        for task in tuple(self.tasks):
            if task is not current:
                task.cancel()

    def mean(self) -> Mean:
        """Return the round's result, put together in the order of the members."""
        ordered = [self.spans[share.peer_id] for share in self.shares]
        norm_sq = 0.0
        for _, span_norm_sq in ordered:
            norm_sq += span_norm_sq
        return Mean(torch.cat([values for values, _ in ordered]), norm_sq, sum(share.tokens for share in self.shares))


def sum_of(sums: list[SealedGradient]) -> Tensor:
    """Return the sum of several sealed gradients, [N] fp32; of one, that one itself."""
    total = sums[0].gradient
    if len(sums) > 1:
        total = total.clone()
        for sealed in sums[1:]:
            total += sealed.gradient
    return total
