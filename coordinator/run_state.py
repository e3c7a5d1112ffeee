"""One run as the coordinator sees it: who is there, when a round is due, what the operator wants. Pure.

Nothing here waits, sends or looks at a clock: messages and the time are handed in, what has changed comes out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum

from coordinator.bounds import MemberFacts, RoundReport, RunFacts

HEARTBEAT_S = 5.0
ROUND_S = 60.0
"""A plan that nobody reports on is closed after so long."""
MAX_MEMBERS = 512
_EXPIRES_AFTER = 3
"""A member that was silent for so many heartbeats is gone."""
_EXTRAPOLATED = 2
"""A heartbeat older than so many says nothing about the tokens done since."""
_AFTER_DROP_S = 2.0
_KEPT_ROUNDS, _KEPT_LOSSES, _MAX_EVICTED = 100, 500, 1024


class State(Enum):
    """What a run does; derived from what is known, so that it cannot contradict it."""

    WAITING = 1
    WARMUP = 2
    TRAINING = 3
    ROUND_OPEN = 4
    PAUSED = 5
    FINISHED = 6


@dataclass(frozen=True, slots=True)
class Member:
    """A peer of the run."""

    peer_id: str
    record: bytes
    """What it announces to the others, signed by itself and opaque here."""
    facts: MemberFacts
    heard_at: float
    """Unix time of its latest heartbeat."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A round that is due."""

    id: str
    version: int
    base_hash: str
    members: tuple[tuple[str, int, int], ...]
    """(peer id, first stage, stop stage), by id."""
    begin_at: float
    deadline: float

    @property
    def leader(self) -> str:
        """Who calls it."""
        return self.members[0][0]


@dataclass(frozen=True, slots=True)
class Seen:
    """A member is new, or says something new."""

    member: Member
    is_marked: bool
    """It is something that others wait for."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A member left, was silent for too long, or was evicted."""

    peer_id: str
    is_evicted: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """A round is due."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """The operator has said something, or the run is finished."""


Change = Seen | Gone | Planned | StatusChanged


class Refused(Exception):
    """A message is in order and not wanted; the text says why."""


@dataclass
class RunState:
    """One run."""

    facts: RunFacts
    members: dict[str, Member] = field(default_factory=dict)
    evicted: list[str] = field(default_factory=list)
    is_paused: bool = False
    is_ended: bool = False
    """By the operator."""
    is_done: bool = False
    """All steps are made, by the word of at least half of the members."""
    version: int = 0
    """The highest that a member has told of."""
    plan: Plan | None = None
    num_plans: int = 0
    rounds: deque[tuple[float, RoundReport]] = field(default_factory=lambda: deque(maxlen=_KEPT_ROUNDS))
    """(Unix time, report), oldest first."""
    losses: deque[tuple[int, float, float | None]] = field(default_factory=lambda: deque(maxlen=_KEPT_LOSSES))
    """(version, training loss, held-out loss), oldest first."""
    heartbeat_s: float = HEARTBEAT_S
    """How often members are asked to call; not kept."""
    _spent: tuple[tuple[int, str] | None, float] = (None, 0.0)
    """A standing of which a plan has ended, and the Unix time before which there is no other one."""

    @property
    def expires_s(self) -> float:
        """A member that was silent for so long is gone."""
        return _EXPIRES_AFTER * self.heartbeat_s

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.is_ended or self.is_done

    @property
    def state(self) -> State:
        """What the run does now."""
        if self.is_finished:
            return State.FINISHED
        if self.is_paused:
            return State.PAUSED
        if self.plan is not None:
            return State.ROUND_OPEN
        if any(member.facts.state == "training" for member in self.members.values()):
            return State.TRAINING
        return State.WARMUP if self.members else State.WAITING

    # --- messages ------------------------------------------------------------------------------------------------

    def heartbeat(self, peer_id: str, record: bytes, facts: MemberFacts, now: float) -> list[Change]:
        """Take in what a member says of itself.

        Raises:
            Refused: it was evicted, or there are too many members.
        """
        self.refuse_evicted(peer_id)
        before = self.members.get(peer_id)
        if before is None and len(self.members) >= MAX_MEMBERS:
            raise Refused(f"this run has {MAX_MEMBERS} members, which is all that a coordinator takes")
        was_finished = self.is_finished
        member = self.members[peer_id] = Member(peer_id, record, facts, now)
        if facts.version > self.version:
            self.version = facts.version
            if (loss := self._mean_loss()) is not None:
                self.losses.append((facts.version, loss, facts.held_out_loss))
        told = [m.facts.version >= self.facts.max_steps for m in self.members.values() if m.facts.base_hash]
        self.is_done |= 2 * sum(told) >= max(1, len(told))
        is_marked = before is None or before.facts.marks != facts.marks
        changes: list[Change] = [Seen(member, is_marked)]
        if self.is_finished and not was_finished:
            changes.append(StatusChanged())
        return changes + self.tick(now)

    def leave(self, peer_id: str) -> list[Change]:
        """A member says goodbye."""
        return [Gone(peer_id)] if self.members.pop(peer_id, None) is not None else []

    def report(self, report: RoundReport, now: float) -> list[Change]:
        """Take in what came of a round; of several members' words the first counts."""
        known = {(r.version, r.outcome) for _, r in list(self.rounds)[-8:]}
        if report.outcome == "dropped" or (report.version, report.outcome) not in known:
            self.rounds.append((now, report))
        if self.plan is not None and report.version >= self.plan.version:
            # after a round that came about, the others' heartbeats still tell of the version before it
            self._end_plan(now + (_AFTER_DROP_S if report.outcome == "dropped" else self.expires_s))
        return self.tick(now)

    def pause(self) -> list[Change]:
        """Let the run rest."""
        self.is_paused, self.plan = True, None
        return [StatusChanged()]

    def resume(self) -> list[Change]:
        """Let it go on."""
        self.is_paused = False
        return [StatusChanged()]

    def finish(self) -> list[Change]:
        """End it: what there is is the result."""
        self.is_ended, self.plan = True, None
        return [StatusChanged()]

    def evict(self, peer_id: str) -> list[Change]:
        """Take a member out for good."""
        if peer_id not in self.evicted:
            self.evicted = [*self.evicted, peer_id][-_MAX_EVICTED:]
        self.members.pop(peer_id, None)
        self.plan = None
        return [Gone(peer_id, is_evicted=True)]

    def refuse_evicted(self, peer_id: str) -> None:
        """Raise Refused for a peer that the operator has taken out."""
        if peer_id in self.evicted:
            raise Refused("evicted")

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Change]:
        """Let the time be `now`: members expire, plans end, a round becomes due."""
        changes: list[Change] = []
        for member in list(self.members.values()):
            if now - member.heard_at > self.expires_s:
                del self.members[member.peer_id]
                changes.append(Gone(member.peer_id))
        if self.plan is not None and self._is_passed(self.plan):
            self._end_plan(now + self.expires_s)
        elif self.plan is not None and now >= self.plan.deadline:
            self._end_plan(now + _AFTER_DROP_S)
        if self._due_in(now) == 0.0:
            self.plan = self._make_plan(now)
            changes.append(Planned(self.plan))
        return changes

    def next_tick(self, now: float) -> float:
        """Return the Unix time at which something happens by itself; infinity if nothing does."""
        times = [member.heard_at + self.expires_s + 1e-3 for member in self.members.values()]
        if self.plan is not None:
            times.append(self.plan.deadline)
        if (due_in := self._due_in(now)) is not None:
            times.append(now + due_in)
        return min(times, default=float("inf"))

    def tokens_of(self, member: Member, now: float) -> float:
        """Return a member's tokens towards the next version, counted on to `now` by its rate."""
        age = min(max(now - member.heard_at, 0.0), _EXTRAPOLATED * self.heartbeat_s)
        return member.facts.tokens + member.facts.tokens_per_s * age

    def _end_plan(self, not_before: float) -> None:
        """Close the plan; none of the same standing comes before that time."""
        if self.plan is not None:
            self._spent = (self.plan.version, self.plan.base_hash), not_before
            self.plan = None

    def _is_passed(self, plan: Plan) -> bool:
        return any(member.facts.version > plan.version for id, _, _ in plan.members if (member := self.members.get(id)))

    def _front(self) -> list[Member]:
        """Return the members that train from the standing of most of them, by id; of two, the heavier one."""
        groups: dict[tuple[int, str], list[Member]] = {}
        for member in self.members.values():
            if member.facts.state == "training" and member.facts.base_hash:
                groups.setdefault(member.facts.standing, []).append(member)
        if not groups:
            return []
        most = {standing: max(m.facts.committed_tokens for m in group) for standing, group in groups.items()}
        first = max(groups, key=lambda standing: (len(groups[standing]), most[standing], standing))
        return sorted(groups[first], key=lambda m: m.peer_id)

    def _due_in(self, now: float) -> float | None:
        """Return the seconds until a round is due, 0 for now, or None if none is in sight."""
        if self.is_paused or self.is_finished or self.plan is not None:
            return None
        front = self._front()
        has_all = all(any(m.facts.holds(s) for m in front) for s in range(self.facts.num_stages))
        if len(front) < 2 or not has_all:  # a node alone needs nobody to tell it
            return None
        missing = self.facts.target_batch_tokens - sum(self.tokens_of(m, now) for m in front)
        standing, not_before = self._spent
        wait = max(0.0, not_before - now) if front[0].facts.standing == standing else 0.0
        if missing <= 0:
            return wait
        rate = sum(m.facts.tokens_per_s for m in front if now - m.heard_at < _EXTRAPOLATED * self.heartbeat_s)
        return max(wait, missing / rate, 1e-3) if rate > 0 else None

    def _make_plan(self, now: float) -> Plan:
        front = self._front()
        self.num_plans += 1
        version, base_hash = front[0].facts.standing
        members = tuple((m.peer_id, m.facts.first_stage, m.facts.stop_stage) for m in front)
        name = f"{self.facts.fingerprint[:8]}-{version}-{self.num_plans}"
        return Plan(name, version, base_hash, members, begin_at=now, deadline=now + ROUND_S)

    def _mean_loss(self) -> float | None:
        """Return the members' mean loss, weighted by their rates."""
        told = [(m.facts.loss, max(m.facts.tokens_per_s, 1e-9)) for m in self.members.values() if m.facts.loss]
        weight = sum(rate for _, rate in told)
        return sum(loss * rate for loss, rate in told) / weight if told else None

    # --- what a joiner is told -----------------------------------------------------------------------------------

    def suggest(self, capacity: int) -> tuple[int, int]:
        """Return the stages [first, stop) that the swarm lacks most, as many as `capacity` (1 if that is not known).

        The window with the fewest holders of its least-held stage, then the fewest in all, then the first.
        """
        num_stages = self.facts.num_stages
        size = min(max(capacity, 1), num_stages)
        held = [sum(m.facts.holds(stage) for m in self.members.values()) for stage in range(num_stages)]
        first = min(range(num_stages - size + 1), key=lambda a: (min(held[a : a + size]), sum(held[a : a + size]), a))
        return first, first + size

    def addresses(self, *, but: str, most: int = 64) -> list[str]:
        """Return the members' addresses, of those heard last first."""
        latest = sorted(self.members.values(), key=lambda m: -m.heard_at)
        return [a for m in latest if m.peer_id != but for a in m.facts.addresses[:4]][:most]


def refreshed(member: Member, now: float) -> Member:
    """Return a member as it was stored, with the time to show that it lives: the coordinator was away itself."""
    return replace(member, heard_at=now)
