"""The averaging round as data: the state of one replica, what can happen to it, and what it wants done.

`round_step.step(state, event, now_s)` is the machine; nothing here knows a clock, a network or a tensor. One machine
runs beside the node's own for each stage that it holds, whether this replica leads the round or was called.

    IDLE ─ Lead ──> CALLING ──┐                    ┌─> VOTED ─────────> APPLYING ─> IDLE      committed
      └─── Call ──> ANSWERED ─┴─ Open ─> EXCHANGING ┘     └─> DOUBTING ──┘    └───> IDLE      dropped, or given up
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from node.core.round_messages import Call, Knowledge, Message, Share, Standing
from node.core.types import PeerId, RoundStatus

GRACE_S = 0.5
"""How long a member waits for the verdict beyond the leader's deadline, for the message's way."""
DOUBT_S = 1.0
"""How long a member that voted and heard nothing asks the others before it goes on without the round."""
SETTLE_S = 0.25
"""How long a doubt goes on when all others answered that they do not know either: a verdict may be on its way."""
REMEMBERED_ROUNDS = 16


class Phase(Enum):
    """Where this replica is in its current round."""

    IDLE = "idle"
    CALLING = "calling"
    """Leader: seals, and waits for the answers."""
    ANSWERED = "answered"
    """Member: seals, answers, and waits for the round to open."""
    EXCHANGING = "exchanging"
    """Parts and results are under way. Has not voted: may drop without asking."""
    VOTED = "voted"
    """Holds all spans and said so. From here on only a verdict ends it."""
    DOUBTING = "doubting"
    """Voted, and the leader is gone or silent: asks the others."""
    APPLYING = "applying"
    """Committed; the optimizer steps."""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a leader starts from."""

    stage: int
    members: frozenset[PeerId]
    """Whom to call, the leader included: also those that seem to be behind, since what they announced may be old.
    One that has caught up takes part; one that has not learns it at once, and does not count for the quorum."""
    alive: frozenset[PeerId]
    """All replicas of the stage that may step and are held for alive, whatever their version (for the quorum)."""
    budget_s: float
    """The round ends, one way or the other, this many seconds after the call."""
    answer_s: float
    """Who has not answered the call after this many seconds is left out, if the quorum allows."""


@dataclass(frozen=True, slots=True)
class Round:
    """The current round, as far as this replica knows it. Digests are hex strings made by the caller."""

    id: str
    leader: PeerId
    deadline_s: float
    answer_by_s: float = 0.0
    called: frozenset[PeerId] = frozenset()
    """Leader: who was called, itself excluded."""
    weights: Mapping[PeerId, tuple[int, int]] = field(default_factory=dict)
    """(weight, tokens) of everybody who sealed, this replica included."""
    views: Mapping[PeerId, frozenset[PeerId]] = field(default_factory=dict)
    """Leader: for each member, the replicas that it holds for alive."""
    dead: frozenset[PeerId] = frozenset()
    """Leader: refused the connection, or will not step before syncing. Not counted in the quorum."""
    failed: frozenset[PeerId] = frozenset()
    """Leader: called, but not taking part."""
    stalled: frozenset[PeerId] = frozenset()
    """Leader: called, reachable, and silent until the answers were due."""
    shares: tuple[Share, ...] = ()
    parts: frozenset[PeerId] = frozenset()
    """Whose part of this replica's span is complete here."""
    is_reducing: bool = False
    spans: Mapping[PeerId, str] = field(default_factory=dict)
    """Digest of each owner's result, of those that are complete here."""
    digest: str = ""
    """Of all spans in order: this replica's vote."""
    votes: Mapping[PeerId, str] = field(default_factory=dict)
    unheard: frozenset[PeerId] = frozenset()
    """In doubt: who was asked and has not answered."""
    askers: frozenset[PeerId] = frozenset()
    """Who asked this replica for the verdict and is to be told when it is known."""

    @property
    def members(self) -> frozenset[PeerId]:
        """Who takes part; empty until the round is open."""
        return frozenset(share.peer_id for share in self.shares)

    @property
    def tokens(self) -> int:
        """Tokens of all members together."""
        return sum(share.tokens for share in self.shares)


@dataclass(frozen=True, slots=True)
class Doubt:
    """A round that this replica voted in and gave up; honoured if a COMMIT comes to light before the next opens."""

    round: Round
    standing: Standing


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call for the version that this replica is about to reach; answered as soon as it is there."""

    caller: PeerId
    call: Call
    until_s: float


@dataclass(frozen=True, slots=True)
class RoundState:
    """Everything that one replica remembers about the rounds of one stage."""

    me: PeerId
    standing: Standing
    settings: str
    num_values: int
    base_round: str = ""
    """The round that made the current bits; empty for those that the run began with."""
    alive: frozenset[PeerId] = frozenset()
    """The replicas that may step and that this node holds for alive, itself included."""
    must_sync: bool = False
    """A heavier lineage exists: takes no part until `Synced` or `SyncFailed`."""
    phase: Phase = Phase.IDLE
    round: Round | None = None
    ended: tuple[tuple[str, Knowledge, str], ...] = ()
    """The latest rounds: id, how it ended, digest."""
    doubt: Doubt | None = None
    held: HeldCall | None = None


# --- what can happen -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lead:
    """Call a round. `round` is an id that was never used before."""

    round: str
    plan: RoundPlan


@dataclass(frozen=True, slots=True)
class Received:
    """A message came in from an authenticated peer."""

    sender: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Lost:
    """The way to a peer broke. `refused`: nobody listens there, so it is dead and not only slow."""

    peer: PeerId
    refused: bool = False


@dataclass(frozen=True, slots=True)
class SealDone:
    """The accumulated gradient is sealed."""

    round: str
    weight: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PartIn:
    """A member's part of this replica's span is complete and was checked."""

    round: str
    sender: PeerId


@dataclass(frozen=True, slots=True)
class Reduced:
    """This replica's span is reduced and encoded."""

    round: str
    digest: str


@dataclass(frozen=True, slots=True)
class SpanIn:
    """The result of another member's span is complete and was checked."""

    round: str
    owner: PeerId
    digest: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The exchange cannot be finished: a part or a result failed, was cut off, or is unusable."""

    round: str
    suspect: PeerId | None
    reason: str


@dataclass(frozen=True, slots=True)
class Applied:
    """The optimizer stepped."""

    round: str
    standing: Standing


@dataclass(frozen=True, slots=True)
class ApplyFailed:
    """The optimizer could not step, though the round is committed."""

    round: str
    reason: str


@dataclass(frozen=True, slots=True)
class SyncStarted:
    """Another replica's state is about to be loaded; takes no part meanwhile."""


@dataclass(frozen=True, slots=True)
class Synced:
    """Another replica's state was loaded."""

    standing: Standing
    base_round: str


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """No state could be fetched; go on from what is here."""


@dataclass(frozen=True, slots=True)
class Saw:
    """The membership's view changed."""

    alive: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Lead
    | Received
    | Lost
    | SealDone
    | PartIn
    | Reduced
    | SpanIn
    | Broken
    | Applied
    | ApplyFailed
    | SyncStarted
    | Synced
    | SyncFailed
    | Saw
    | Tick
)


# --- what the machine wants done -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; if it cannot be delivered, feed `Lost`."""

    to: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Seal:
    """Seal the accumulated gradient, then feed `SealDone`."""

    round: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """Send each other member its part and fetch its result: `PartIn` there, `SpanIn` or `Broken` here."""

    round: str
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """All parts of this replica's span are here: reduce and encode them, then feed `Reduced`."""

    round: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Hand the encoded result of this replica's span to all members."""

    round: str


@dataclass(frozen=True, slots=True)
class Apply:
    """The round is committed: step with its mean, then feed `Applied`. The sealed sums are spent."""

    round: str
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The round is over. Unless committed, the sealed sums are still this replica's."""

    round: str
    status: RoundStatus
    members: frozenset[PeerId]
    tokens: int
    reason: str = ""
    culprits: frozenset[PeerId] = frozenset()
    """Who kept it from committing, as far as can be told: to be left out for some rounds."""
    dead: frozenset[PeerId] = frozenset()
    """Who refused the connection."""
    is_in_doubt: bool = False
    """Dropped here, but perhaps committed by a leader that nobody can reach: keep the mean until the next opens."""


@dataclass(frozen=True, slots=True)
class FellBehind:
    """A peer's lineage is heavier: fetch its state, then feed `Synced` (or `SyncFailed`)."""

    peer: PeerId
    standing: Standing


Effect = Send | Seal | Scatter | Reduce | Publish | Apply | Ended | FellBehind
