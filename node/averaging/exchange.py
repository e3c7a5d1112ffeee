"""The tensors of one round: parts in, spans reduced, all spans gathered. The machine knows nothing of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from node.averaging.guard import refuse, refuse_norm
from node.averaging.reduce import squared_norm, weighted_mean
from node.averaging.strategy import Mean, SealedStages
from node.core.round_messages import Results, Share, Span, SpanResult
from node.core.round_shares import Key, as_digests, next_base_hash, round_digest, spans_for
from node.core.types import PeerId
from node.network.compression import Codec, decode, encode, num_bytes
from node.network.round_words import parse_result, result_text
from node.network.rounds import Bulk, Parts, PeerLost, digest_of


@dataclass(frozen=True)
class Sums:
    """What this node brings to a round: by stage, the summed gradient [N] fp32 on the CPU and the labels behind it."""

    gradients: Mapping[int, Tensor]
    weights: Mapping[int, int]


@dataclass
class Exchange:
    """One round's tensors on one node; thrown away with the round."""

    me: PeerId
    codec: Codec
    started_at: float
    sums: Sums | None = None
    shares: tuple[Share, ...] = ()
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the spans are known, and when the round ended without them."""
    ended: bool = False
    parts: dict[PeerId, dict[int, tuple[Tensor, int]]] = field(default_factory=dict)
    """By sender and stage: a part of this node's span, and its weight."""
    spans: dict[Key, Tensor] = field(default_factory=dict)
    result: asyncio.Future[Mapping[int, Bulk]] | None = None
    """This node's reduced spans by stage."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    bytes_sent: int = 0
    opened_at: float = 0.0
    """When the members were known, on the clock of `started_at`; 0 before."""
    committed_at: float = 0.0
    moved_at: dict[PeerId, float] = field(default_factory=dict)
    """When a chunk last came from a peer or went to it."""

    def share_of(self, peer: PeerId) -> Share | None:
        """Return a member's share, or None."""
        return next((share for share in self.shares if share.peer_id == peer), None)

    @property
    def mine(self) -> Share:
        """Return this node's share of an open round."""
        share = self.share_of(self.me)
        assert share is not None, "this node is in the round"
        return share

    @property
    def near(self) -> tuple[Share, ...]:
        """Return the other members that hold a stage which this node holds too."""
        return tuple(s for s in self.shares if s.peer_id != self.me and s.shard.overlaps(self.mine.shard))

    def parts_for(self, share: Share) -> Parts:
        """Return this node's parts of another member's spans, and their weights."""
        assert self.sums is not None, "parts are made after sealing"
        spans, sums = spans_for(share, self.mine.shard), self.sums
        data = tuple(encode(sums.gradients[s.stage][s.start : s.stop], self.codec) for s in spans)
        return Parts(tuple(sums.weights[s.stage] for s in spans), data)

    def result_sizes(self, share: Share) -> tuple[int, ...]:
        """Return the lengths on the wire of the spans that another member reduces for this node, too."""
        return self._sizes(spans_for(share, self.mine.shard))

    def part_sizes(self, sender: PeerId) -> tuple[int, ...]:
        """Return the lengths on the wire of a member's parts of this node's spans.

        Raises:
            PeerLost: it has none to send.
        """
        share = self.share_of(sender)
        if self.ended or share is None or sender in self.parts or not share.shard.overlaps(self.mine.shard):
            raise PeerLost("you are not in that round, or it is over")
        return self._sizes(spans_for(self.mine, share.shard))

    def _sizes(self, spans: Sequence[Span]) -> tuple[int, ...]:
        return tuple(num_bytes(len(span), self.codec) for span in spans)

    def take_parts(self, sender: Share, parts: Parts) -> None:
        """Keep a member's parts of this node's spans.

        Raises:
            PeerLost: they are unusable.
        """
        taken = {}
        spans = spans_for(self.mine, sender.shard)
        for span, weight, data in zip(spans, parts.weights, parts.parts, strict=True):
            values = decode(data, len(span), self.codec)
            if reason := refuse(values, len(span)):
                raise PeerLost(f"its part is unusable: {reason}", is_to_blame=True)
            taken[span.stage] = (values, weight)
        self.parts[sender.peer_id] = taken

    def reduce(self) -> tuple[dict[int, Bulk], Results]:
        """Reduce this node's spans of all parts, and encode each once: these bytes are the result for everybody.

        Raises:
            PeerLost: a sum overflowed.
        """
        assert self.sums is not None, "the round was sealed before it is reduced"
        own: dict[int, tuple[Tensor, int]] = {}
        for span in self.mine.spans:
            values = self.sums.gradients[span.stage][span.start : span.stop]
            # the own part takes the same way as the others', or a lossy codec would treat members differently
            values = values if self.codec == "none" else self._rounded(values)
            own[span.stage] = (values, self.sums.weights[span.stage])
        self.parts[self.me] = own
        reduced = {span.stage: self._reduce_span(span) for span in self.mine.spans}
        self.parts.clear()
        results = tuple(SpanResult(stage, self.me, as_text(bulk)) for stage, bulk in sorted(reduced.items()))
        return reduced, results

    def _reduce_span(self, span: Span) -> Bulk:
        brought = [self.parts[share.peer_id][span.stage] for share in self.shares if share.shard.holds(span.stage)]
        parts, weights = [part for part, _ in brought], [weight for _, weight in brought]
        # nothing was counted here at all: a step of this stage by its moments alone
        mean = weighted_mean(parts, weights) if sum(weights) else torch.zeros(len(span))
        result = mean if self.codec == "none" else self._rounded(mean)
        norm_sq = squared_norm(result)
        if reason := refuse_norm(norm_sq):  # NaN and infinity show in the norm too: one pass instead of two
            raise PeerLost(f"the mean is unusable: {reason}")
        self.spans[span.stage, self.me] = result
        data = encode(result, self.codec)
        return Bulk(data, digest_of(data), norm_sq)

    def _rounded(self, values: Tensor) -> Tensor:
        """Return what the others will decode; to encode that again gives the same bytes."""
        return decode(bytes(encode(values, self.codec)), len(values), self.codec)

    def take_spans(self, owner: Share, bulks: Sequence[Bulk]) -> Results:
        """Keep another member's reduced spans, and return what they are.

        Raises:
            PeerLost: they are unusable.
        """
        results = []
        for span, bulk in zip(spans_for(owner, self.mine.shard), bulks, strict=True):
            values = decode(bulk.data, len(span), self.codec)
            if reason := refuse(values, len(span)) or refuse_norm(bulk.norm_sq):
                raise PeerLost(f"its result is unusable: {reason}", is_to_blame=True)
            self.spans[span.stage, owner.peer_id] = values
            results.append(SpanResult(span.stage, owner.peer_id, as_text(bulk)))
        return tuple(results)

    def close(self) -> None:
        """End whatever is under way for this round; streams that wait for its result are cut off."""
        self.ended = True
        self.opened.set()
        if self.result is not None and not self.result.done():
            self.result.set_exception(PeerLost("the round is over"))
            self.result.exception()  # nobody may be waiting for it
        current = asyncio.current_task()
        for task in tuple(self.tasks):
            if task is not current:
                task.cancel()

    def mean(self, round: str, results: Results, *, base_hash: str) -> Mean:
        """Return the round's result, put together in the order of the members.

        Args:
            round: The round's id.
            results: Of all stages: their norms are summed in this order, and everywhere alike.
            base_hash: Of the lineage before the round.
        """
        norms = {key: parse_result(text)[1] for key, text in as_digests(results).items()}
        norm_sq = 0.0
        for key in sorted(norms):
            norm_sq += norms[key]
        by_stage = {
            stage: torch.cat([self.spans[stage, s.peer_id] for s in self.shares if s.shard.holds(stage)])
            for stage in self.mine.shard.stages
        }
        digest = round_digest(round, self.shares, results)
        tokens = sum(share.tokens for share in self.shares)
        return Mean(by_stage, norm_sq, tokens, next_base_hash(base_hash, digest))


def as_text(bulk: Bulk) -> str:
    """Return a span's result as the machine carries it."""
    return result_text(bulk.digest.hex(), bulk.norm_sq)


def refuse_sums(sealed: SealedStages) -> str:
    """Return why this node's own sums must not go into a round, or '' if they may.

    Whoever has NaN in the span that it reduces itself would otherwise spoil every round, and nobody could see who.
    """
    for stage, entry in sorted(sealed.by_stage.items()):
        if reason := refuse(entry.gradient, entry.gradient.numel()):
            return f"the gradient of stage {stage} is unusable: {reason}"
    return ""


def sum_of(sealed: Sequence[SealedStages], sizes: Mapping[int, int]) -> Sums:
    """Return the sum of several sealed sums, stage by stage; of one, that one itself; of none, zeros.

    Args:
        sealed: What is still to be brought, oldest first.
        sizes: Length of the flat vector of each stage held.
    """
    gradients, weights = {}, {}
    for stage, size in sizes.items():
        found = [entry.by_stage[stage] for entry in sealed]
        # zeros if there is nothing: the spans of the others are computed all the same
        total = found[0].gradient if found else torch.zeros(size)
        for number, entry in enumerate(found[1:]):
            total = total + entry.gradient if number == 0 else total.add_(entry.gradient)
        gradients[stage], weights[stage] = total, sum(entry.weight for entry in found)
    return Sums(gradients, weights)
