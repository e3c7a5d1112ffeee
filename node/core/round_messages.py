"""What the members of an averaging round say to each other, and how a round's vector is cut into spans.

These are the machine's own words (`round_state.py`); `network/rounds.py` turns them into protobuf and checks
every bound on the way in. The bulk (parts and results) never passes through here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from node.core.types import PeerId


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a replica is: the bits it holds, and how much work is behind them."""

    version: int
    """Optimizer steps behind the adapter."""
    base_hash: str
    """Digest of the adapter's and the moments' bits, lower-case hex."""
    committed_tokens: int
    """Tokens of all peers behind `version`: the heavier lineage wins."""

    def is_heavier_than(self, other: Standing) -> bool:
        """Whether `other` has to follow this one; the same order as `progress.peer_ahead`, total over all pairs."""
        mine = (self.committed_tokens, self.version)
        theirs = (other.committed_tokens, other.version)
        return mine > theirs or (mine == theirs and self.base_hash < other.base_hash)

    def shares_bits_with(self, other: Standing) -> bool:
        """Whether both hold the same bits, so that one mean moves both to the same place."""
        return (self.version, self.base_hash) == (other.version, other.base_hash)


class Reason(Enum):
    """Why a call is refused; the values are the ones on the wire."""

    BUSY = 1
    """I am in another round, or I lead one; call again in a moment."""
    BEHIND = 2
    """You are further than I am: I fetch your state first, and open no round of my own before that."""
    AHEAD = 3
    """I am further than you are: fetch my state."""
    UNKNOWN_RUN = 4
    """I do not train that, or I hold no such stage."""
    SYNCING = 5
    """I am fetching a state just now."""
    UNEQUAL_SETTINGS = 6
    """Your vector, codec or rule is not the one that I have for this stage."""


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
class Share:
    """One member's place in a round: what it brings, and the span that it reduces."""

    peer_id: PeerId
    weight: int
    """Label tokens behind its gradient sum."""
    tokens: int
    start: int
    stop: int
    """Its span is `[start, stop)` of the flat vector."""


@dataclass(frozen=True, slots=True)
class Call:
    """Leader to member: seal what you have, and tell me what it weighs."""

    round: str
    standing: Standing
    base_round: str
    """The round that made the base, so that a member who is in doubt about that round knows its end."""
    budget_s: float
    """Seconds until the round ends, one way or the other. A duration, because clocks differ."""
    settings: str
    """Length, codec and rule in one string; must be equal everywhere."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Member to leader: sealed."""

    round: str
    weight: int
    tokens: int
    alive: frozenset[PeerId]
    """The replicas that may step and that this member holds for alive, itself included (for the quorum)."""


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
    """Member to leader: I hold all spans, and this is their digest."""

    round: str
    digest: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Leader to member: the end of the round."""

    round: str
    committed: bool
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Member in doubt to any member: how did it end?"""

    round: str


@dataclass(frozen=True, slots=True)
class Tell:
    """The answer to `Ask`, sent again when more is known."""

    round: str
    knowledge: Knowledge
    digest: str


Message = Call | Answer | Refusal | Open | Fail | Vote | Verdict | Ask | Tell


def cut(num_values: int, speeds: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Cut `[0, num_values)` into one span a member, as long as its speed; spans may be empty.

    Args:
        num_values: Length of the flat vector.
        speeds: One positive number a member, such as its uplink; all equal for equal spans.
    """
    assert speeds, "a round has at least one member"
    assert all(speed > 0 for speed in speeds), f"speeds must be positive: {speeds}"
    total, done, edges = sum(speeds), 0.0, [0]
    for speed in speeds[:-1]:
        done += speed
        edges.append(min(num_values, round(num_values * done / total)))
    edges.append(num_values)
    return tuple((start, max(start, stop)) for start, stop in itertools.pairwise(edges))


def has_quorum(members: frozenset[PeerId], alive: Sequence[frozenset[PeerId]], dead: frozenset[PeerId]) -> bool:
    """Whether `members` are more than half of what each of them holds for alive.

    Args:
        members: Who takes part, the leader included.
        alive: For each member, the replicas that it holds for alive.
        dead: Replicas that refused the leader's connection, or that said that they will not step without syncing.
    """
    return all(2 * len(members) > len((seen | members) - dead) for seen in alive)
