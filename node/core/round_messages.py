"""What the members of an averaging round say to each other.

These are the machine's own words (`round_state.py`); `network/round_words.py` turns them into protobuf and checks
every bound on the way in. The bulk (parts and results) never passes through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from node.core.types import PeerId, Shard, Standing


class Reason(Enum):
    """Why a call is refused; the values are the ones on the wire."""

    BUSY = 1
    """I am in another round, or I lead one; call again in a moment."""
    BEHIND = 2
    """You are further than I am: I fetch your state first, and open no round of my own before that."""
    AHEAD = 3
    """I am further than you are: fetch my state."""
    UNKNOWN_RUN = 4
    """I do not train that."""
    SYNCING = 5
    """I am fetching a state just now."""
    UNEQUAL_SETTINGS = 6
    """Your codec, rule or number of stages is not mine."""


class Knowledge(Enum):
    """What a peer knows of the end of a round; the values are the ones on the wire."""

    UNKNOWN = 1
    """Never heard of it (or restarted since): says nothing."""
    PENDING = 2
    """I have voted, and I wait for the verdict too."""
    COMMITTED = 3
    """It was committed."""
    DROPPED = 4
    """I know for certain that it was dropped: I never voted, or the leader said so."""
    GAVE_UP = 5
    """I voted, heard nothing from anybody, and went on without it: says nothing about the leader."""


@dataclass(frozen=True, slots=True)
class Span:
    """Values `[start, stop)` of one stage's flat vector."""

    stage: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Share:
    """One member's place in a round: what it brings, and the spans that it reduces."""

    peer_id: PeerId
    weight: int
    """Labels of its own microbatches. What its sums weigh, stage by stage, travels with its parts."""
    tokens: int
    """Tokens of its own microbatches."""
    shard: Shard
    session: str
    """Of its sums: what it has counted in this session is in the round."""
    spans: tuple[Span, ...]
    """One a stage that it holds, in order; they may be empty."""


@dataclass(frozen=True, slots=True, order=True)
class SpanResult:
    """What a member holds as the result of one span."""

    stage: int
    owner: PeerId
    digest: str
    """Of the result's bytes and the squared norm of its mean, in the caller's own form."""


Results = tuple[SpanResult, ...]
"""In the order of stages, then of owners."""
Doubts = frozenset[tuple[PeerId, str]]
"""Holders, with the session of the sums that are in doubt."""


@dataclass(frozen=True, slots=True)
class Call:
    """Leader to member: come to a rest, and tell me what you bring."""

    round: str
    standing: Standing
    base_round: str
    """The round that made the base, so that a member who is in doubt about that round knows its end."""
    budget_s: float
    """Seconds until the round ends, one way or the other. A duration, because clocks differ."""
    settings: str
    """Codec, rule and number of stages in one string; must be equal everywhere."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Member to leader: this node rests, and brings this."""

    round: str
    weight: int
    tokens: int
    shard: Shard
    session: str
    hashes: tuple[tuple[int, str], ...]
    """(stage, hash of the bits) of each stage held, as in its standing."""
    sizes: tuple[tuple[int, int], ...]
    """(stage, length of its vector) of each stage held."""
    alive: Mapping[PeerId, Shard]
    """The peers that may step and that this member holds for alive, itself included (for the quorum)."""
    doubts: Doubts = frozenset()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Member to leader: not this time."""

    round: str
    reason: Reason
    standing: Standing


@dataclass(frozen=True, slots=True)
class Open:
    """Leader to member: these are the members and the spans; send your parts."""

    round: str
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    """Member to leader: I cannot finish this round. `suspect` is whom I blame, or None."""

    round: str
    suspect: PeerId | None
    reason: str


@dataclass(frozen=True, slots=True)
class Vote:
    """Member to leader: I hold all spans of my stages, and these are their digests."""

    round: str
    results: Results


@dataclass(frozen=True, slots=True)
class Verdict:
    """Leader to member: the end of the round."""

    round: str
    committed: bool
    reason: str
    results: Results = ()
    """Of a commit: those of all stages."""
    must_discard: bool = False
    """The receiver is left out because its sums are in doubt: it forgets them, or it would be in doubt for ever."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Member in doubt to any member: how did it end?"""

    round: str


@dataclass(frozen=True, slots=True)
class Tell:
    """The answer to `Ask`, sent again when more is known."""

    round: str
    knowledge: Knowledge
    results: Results = ()
    """Of a commit: those of all stages."""


Message = Call | Answer | Refusal | Open | Fail | Vote | Verdict | Ask | Tell
