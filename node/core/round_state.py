"""The averaging round as data: the state of one peer, what can happen to it, and what it wants done.

`round_step.step(state, event, now_s)` is the machine; nothing here knows a clock, a network or a tensor. One machine
runs beside the node's own, for all stages together: all of them move from version to version in one round, or none.

    IDLE ─ Lead ──> CALLING ──┐                    ┌─> VOTED ─────────> APPLYING ─> IDLE      committed
      └─── Call ──> ANSWERED ─┴─ Open ─> EXCHANGING ┘     └─> DOUBTING ──┘    └───> IDLE      dropped, or given up
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from node.core.round_messages import Answer, Call, Doubts, Knowledge, Message, Results, Share, SpanResult
from node.core.round_shares import Key
from node.core.types import PeerId, RoundStatus, Shard, Standing

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
    """Leader: comes to a rest, and waits for the answers."""
    ANSWERED = "answered"
    """Member: comes to a rest, answers, and waits for the round to open."""
    EXCHANGING = "exchanging"
    """Sealed; parts and results are under way. Has not voted: may drop without asking."""
    VOTED = "voted"
    """Holds all spans of its stages and said so. From here on only a verdict ends it."""
    DOUBTING = "doubting"
    """Voted, and the leader is gone or silent: asks the others."""
    APPLYING = "applying"
    """Committed; the optimizer steps."""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a leader starts from."""

    members: frozenset[PeerId]
    """Whom to call, the leader included: also those that seem to be behind, since what they announced may be old.
    One that has caught up takes part; one that has not learns it at once, and does not count for the quorum."""
    alive: Mapping[PeerId, Shard]
    """All peers that may step and are held for alive, whatever their version, and their stages (for the quorum)."""
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
    answers: Mapping[PeerId, Answer] = field(default_factory=dict)
    """Of everybody who came to a rest, this peer included."""
    dead: frozenset[PeerId] = frozenset()
    """Leader: refused the connection, or will not step before syncing. Not counted in the quorum."""
    failed: frozenset[PeerId] = frozenset()
    """Leader: called, but not taking part."""
    stalled: frozenset[PeerId] = frozenset()
    """Leader: called, reachable, and silent until the answers were due."""
    shares: tuple[Share, ...] = ()
    is_sealed: bool = False
    parts: frozenset[PeerId] = frozenset()
    """Whose parts of this peer's spans are complete here."""
    is_reducing: bool = False
    spans: Mapping[Key, str] = field(default_factory=dict)
    """Digest of each result that is complete here; once committed, of those of all stages."""
    votes: Mapping[PeerId, Results] = field(default_factory=dict)
    unheard: frozenset[PeerId] = frozenset()
    """In doubt: who was asked and has not answered."""
    askers: frozenset[PeerId] = frozenset()
    """Who asked this replica for the verdict and is to be told when it is known."""

    @property
    def members(self) -> frozenset[PeerId]:
        """Who takes part; empty until the round is open."""
        return frozenset(share.peer_id for share in self.shares)

    @property
    def results(self) -> Results:
        """The results that are known here, in order."""
        return tuple(SpanResult(stage, owner, digest) for (stage, owner), digest in sorted(self.spans.items()))

    @property
    def tokens(self) -> int:
        """Tokens of all members together."""
        return sum(share.tokens for share in self.shares)


@dataclass(frozen=True, slots=True)
class Doubt:
    """A round that this peer voted in and gave up; honoured if a COMMIT comes to light before the next opens."""

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
    """Everything that one peer remembers about the rounds of a run."""

    me: PeerId
    standing: Standing
    settings: str
    num_stages: int
    """Of the run."""
    shard: Shard
    sizes: tuple[tuple[int, int], ...]
    """(stage, length of its vector) of each stage held, in order."""
    base_round: str = ""
    """The round that made the current bits; empty for those that the run began with."""
    alive: Mapping[PeerId, Shard] = field(default_factory=dict)
    """The peers that may step and that this node holds for alive, itself included, and their stages."""
    must_sync: bool = False
    """A heavier lineage exists: takes no part until `Synced` or `SyncFailed`."""
    phase: Phase = Phase.IDLE
    round: Round | None = None
    ended: tuple[tuple[str, Knowledge, Results], ...] = ()
    """The latest rounds: id, how it ended, the results of a commit."""
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
class PrepareDone:
    """This peer rests, and brings this; what it has in doubt, others must not bring."""

    round: str
    weight: int
    tokens: int
    session: str = ""
    doubts: Doubts = frozenset()


@dataclass(frozen=True, slots=True)
class SealDone:
    """The sums of all stages are sealed, and noted as carried by this round."""

    round: str


@dataclass(frozen=True, slots=True)
class PartIn:
    """A member's parts of this peer's spans are complete and were checked."""

    round: str
    sender: PeerId


@dataclass(frozen=True, slots=True)
class Reduced:
    """This peer's spans are reduced and encoded."""

    round: str
    results: Results


@dataclass(frozen=True, slots=True)
class SpanIn:
    """The results of another member's spans, in the stages in common, are complete and were checked."""

    round: str
    owner: PeerId
    results: Results


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
    """Another peer's state is about to be loaded; takes no part meanwhile."""


@dataclass(frozen=True, slots=True)
class Synced:
    """Another peer's state was loaded."""

    standing: Standing
    base_round: str


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """No state could be fetched; go on from what is here."""


@dataclass(frozen=True, slots=True)
class Saw:
    """The membership's view changed."""

    alive: Mapping[PeerId, Shard]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Lead
    | Received
    | Lost
    | PrepareDone
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
class Prepare:
    """Come to a rest, then feed `PrepareDone`."""

    round: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """Seal and feed `SealDone`; send the others their parts and fetch results: `PartIn` there, `SpanIn` or `Broken`."""

    round: str
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """All parts of this peer's spans are here: reduce and encode them, then feed `Reduced`."""

    round: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Hand the encoded results of this peer's spans to all members that hold these stages."""

    round: str


@dataclass(frozen=True, slots=True)
class Apply:
    """The round is committed: step with its mean, then feed `Applied`. The sealed sums are spent."""

    round: str
    shares: tuple[Share, ...]
    results: Results
    """Of all stages."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Others have this peer's sums in doubt: forget them, and take a new session."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The round is over. Unless committed, the sealed sums are still this peer's."""

    round: str
    status: RoundStatus
    members: frozenset[PeerId]
    tokens: int
    reason: str = ""
    culprits: frozenset[PeerId] = frozenset()
    """Who kept it from committing by what it sent or broke off: to be left out for some rounds."""
    stalled: frozenset[PeerId] = frozenset()
    """Who was called, could be reached, and had not answered in time: slow, or hanging."""
    late: frozenset[PeerId] = frozenset()
    """When time ran out: whose parts were missing here."""
    unsure: frozenset[PeerId] = frozenset()
    """Who may be at fault, or somebody else: when time ran out and all parts were here, whose result or vote was
    missing, for want of a part perhaps; or whom another member accuses."""
    dead: frozenset[PeerId] = frozenset()
    """Who refused the connection."""
    is_in_doubt: bool = False
    """Dropped here, but perhaps committed by a leader that nobody can reach: keep the mean until the next opens."""
    shares: tuple[Share, ...] = ()
    """Empty if it never opened here."""


@dataclass(frozen=True, slots=True)
class FellBehind:
    """A peer's lineage is heavier: fetch its state, then feed `Synced` (or `SyncFailed`)."""

    peer: PeerId
    standing: Standing


Effect = Send | Prepare | Scatter | Reduce | Publish | Apply | Discard | Ended | FellBehind
