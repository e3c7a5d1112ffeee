"""The nouns that the rooms hand to each other. Immutable, torch-free, nothing here validates outside input.

Layer and stage ranges are half-open, everywhere and always.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58, authenticated by the transport's handshake."""

IGNORED_LABEL = -100
"""A label that takes no part in the loss (the value that transformers and torch use)."""


class PeerState(Enum):
    """What a peer announces about itself; the values are the ones on the wire and in `status`."""

    JOINING = "joining"
    LOADING = "loading"
    SYNCING = "syncing"
    TRAINING = "training"
    PAUSED = "paused"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Decoder layers `[start, stop)`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        assert 0 <= self.start < self.stop, f"empty or negative layer range [{self.start}, {self.stop})"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The run's only cut of the model into stages: covers all decoder layers, no gap, no overlap."""

    ranges: tuple[LayerRange, ...]

    @classmethod
    def even(cls, num_layers: int, num_stages: int) -> StagePlan:
        """Cut `num_layers` into `num_stages` runs whose lengths differ by one at most, longer ones first."""
        assert 1 <= num_stages <= num_layers, f"cannot cut {num_layers} layers into {num_stages} stages"
        base, extra = divmod(num_layers, num_stages)
        ranges, start = [], 0
        for stage in range(num_stages):
            stop = start + base + (stage < extra)
            ranges.append(LayerRange(start, stop))
            start = stop
        return cls(tuple(ranges))

    def __post_init__(self) -> None:
        edges = [0, *(r.stop for r in self.ranges)]
        assert all(r.start == edge for r, edge in zip(self.ranges, edges, strict=False)), "stages must touch"

    @property
    def num_stages(self) -> int:
        """Stages of the run."""
        return len(self.ranges)

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return self.ranges[-1].stop


@dataclass(frozen=True, slots=True)
class Shard:
    """The contiguous stages `[first_stage, stop_stage)` that a node holds; `NO_SHARD` for a driver without any."""

    first_stage: int
    stop_stage: int

    def __len__(self) -> int:
        return max(0, self.stop_stage - self.first_stage)

    @property
    def stages(self) -> range:
        """The stages' indices."""
        return range(self.first_stage, self.stop_stage)

    def holds(self, stage: int) -> bool:
        """Whether `stage` is one of these."""
        return self.first_stage <= stage < self.stop_stage

    def overlaps(self, other: Shard) -> bool:
        """Whether some stage is in both."""
        return max(self.first_stage, other.first_stage) < min(self.stop_stage, other.stop_stage)

    def layers(self, plan: StagePlan) -> LayerRange | None:
        """Return the decoder layers of this shard under the run's plan, or None if it is empty."""
        if not len(self):
            return None
        return LayerRange(plan.ranges[self.first_stage].start, plan.ranges[self.stop_stage - 1].stop)


NO_SHARD = Shard(0, 0)


@dataclass(frozen=True, slots=True)
class Document:
    """One example after tokenisation, at most `sequence_len` tokens long.

    `labels[t]` belongs to `input_ids[t]` (the shift is the loss's business, as in transformers);
    `IGNORED_LABEL` where there is no loss. The first label of a document is always ignored.
    """

    input_ids: array[int]
    labels: array[int]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Whole documents laid end to end, without padding: T tokens, D documents.

    There is no batch dimension. Attention and loss never cross a document's border, so the split into
    rows that other trainers pad would only add work.
    """

    id: int
    """The position of this microbatch in the node's stream; also the cursor's currency."""
    input_ids: array[int]  # [T]
    labels: array[int]  # [T]
    lengths: tuple[int, ...]  # [D], sums to T

    @classmethod
    def of(cls, id: int, documents: Sequence[Document]) -> Microbatch:
        """Lay `documents` end to end."""
        input_ids, labels = array("i"), array("i")
        for document in documents:
            input_ids.extend(document.input_ids)
            labels.extend(document.labels)
        return cls(id, input_ids, labels, tuple(len(d) for d in documents))

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.input_ids)

    @property
    def num_labels(self) -> int:
        """Tokens that take part in the loss: the weight of this microbatch in an average."""
        return len(self.labels) - self.labels.count(IGNORED_LABEL)


START_HASH = hashlib.sha256(b"start").hexdigest()
"""The lineage's hash before the first round."""
HASH_CHARS = 16
"""Characters of an adapter's hash that standings and records carry: enough to tell two apart, not to prove them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a peer is in the run: its lineage, how much work is behind it, and the bits of the stages it holds.

    Equal lineages should mean equal bits; `hashes` prove it for the stages that two peers have in common.
    """

    version: int
    """Optimizer steps behind the adapters."""
    base_hash: str
    """Of the lineage, lower-case hex: `START_HASH`, then with each committed round the hash of the one before and of
    the round's digest."""
    committed_tokens: int
    """Tokens of all peers behind `version`: the heavier lineage wins."""
    hashes: tuple[tuple[int, str], ...] = ()
    """(stage, first `HASH_CHARS` of the digest of the adapter's and the moments' bits) of each stage held, in order."""

    @property
    def bits(self) -> str:
        """One hash for the bits of all stages held; of none, for the lineage."""
        if len(self.hashes) == 1:
            return self.hashes[0][1]
        text = "|".join(bits for _, bits in self.hashes) or self.base_hash
        return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS]

    def is_heavier_than(self, other: Standing) -> bool:
        """Whether `other` has to follow this one.

        More committed tokens, then the higher version, then the lower hash of the lineage. Of one lineage with
        unequal bits (which takes a defect) the lower hash of the first stage in common that differs.
        """
        mine, theirs = (self.committed_tokens, self.version), (other.committed_tokens, other.version)
        if mine != theirs:
            return mine > theirs
        if self.base_hash != other.base_hash:
            return self.base_hash < other.base_hash
        return next((a < b for a, b in self._in_common(other) if a != b), False)

    def shares_bits_with(self, other: Standing) -> bool:
        """Whether both are at the same place, so that one mean moves both to the same next one."""
        is_one_lineage = (self.version, self.base_hash) == (other.version, other.base_hash)
        return is_one_lineage and all(a == b for a, b in self._in_common(other))

    def _in_common(self, other: Standing) -> list[tuple[str, str]]:
        theirs = dict(other.hashes)
        return [(bits, theirs[stage]) for stage, bits in self.hashes if stage in theirs]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one peer is in the run, and what it has done since its last committed round."""

    version: int
    base_hash: str
    committed_tokens: int
    tokens: int
    """Tokens of its own data, accumulated towards the next version."""
    tokens_per_s: float
    at_s: float
    """The peer's own clock (Unix time) when it wrote this."""
    hashes: tuple[tuple[int, str], ...] = ()

    @property
    def standing(self) -> Standing:
        """The part that others compare with theirs."""
        return Standing(self.version, self.base_hash, self.committed_tokens, self.hashes)


@dataclass(frozen=True, slots=True)
class Peer:
    """What a peer announces about itself."""

    peer_id: PeerId
    name: str
    addresses: tuple[str, ...]
    shard: Shard
    state: PeerState
    loss: float | None
    """Mean training loss of its latest microbatches, in nats per token."""
    tokens_given: int
    """Tokens of its own that are in committed rounds, since it first joined the run."""
    progress: Progress | None
    """None before it has loaded anything."""
    expires_at_s: float
    session: str = ""
    """Of its sums (hex): another one, which sorts later, whenever it has lost or discarded what it had counted."""
    drives: bool = True
    """Whether it has data of its own and sends microbatches through the stages."""
    stage_tokens_per_s: float = 0.0
    """Through one stage, forward and backward, if it did nothing else; 0 before it is measured."""
    capacity_stages: int = 0
    """Stages that it has memory for."""


def marks(peer: Peer) -> tuple[object, ...]:
    """Return what others wait for in a peer's announcements; the rest they can reckon for a while."""
    standing = peer.progress.standing if peer.progress is not None else None
    return peer.state, peer.shard, peer.session, peer.capacity_stages, peer.addresses, peer.name, standing


@dataclass(frozen=True, slots=True)
class SwarmView:
    """An immutable snapshot of the peers that are alive as far as this node knows, itself included."""

    me: PeerId
    peers: tuple[Peer, ...]

    def peer(self, peer_id: PeerId) -> Peer | None:
        """Return the peer with that id, or None."""
        return next((p for p in self.peers if p.peer_id == peer_id), None)

    def replicas(self, stage: int) -> tuple[Peer, ...]:
        """Return the peers that hold `stage`, in the order of their ids."""
        return tuple(sorted((p for p in self.peers if p.shard.holds(stage)), key=lambda p: p.peer_id))


class RoundStatus(Enum):
    """How an averaging round ended."""

    COMMITTED = "committed"
    ALONE = "alone"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class RoundResult:
    """The end of one averaging round, as the person sees it."""

    version: int
    """The version before the round."""
    status: RoundStatus
    members: tuple[PeerId, ...]
    tokens: int
    """Tokens of all members together that went into it (0 when dropped)."""
    seconds: float
    bytes_sent: int
    reason: str = ""
    """Why it was dropped; empty otherwise."""
