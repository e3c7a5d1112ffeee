"""What this node knows of itself and the swarm, gathered from events, for `status`, the terminal and checkpoints."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from node.config.recipe import Recipe
from node.core.events import (
    AdapterSynced,
    CoordinatorFound,
    CoordinatorLost,
    Evaluated,
    Event,
    OperatorSaid,
    RoundFinished,
    Stepped,
)
from node.core.progress import totals
from node.core.types import HASH_CHARS, Progress, RoundResult, RoundStatus, StagePlan, SwarmView
from node.network.dht import RECORD_LIFETIME_S
from node.v1 import control_pb2

_SHOWN_ROUNDS = 20
_STEP_TIMES = 12


class Board:
    """Counts what events tell; asks nobody."""

    def __init__(self, *, name: str, home: Path) -> None:
        self._name = name
        self._home = home
        self._started_at = time.monotonic()
        self._rounds: deque[RoundResult] = deque(maxlen=_SHOWN_ROUNDS)
        self._step_at: deque[float] = deque(maxlen=_STEP_TIMES)
        self._first_held_out: float | None = None
        self._held_out: float | None = None
        self._coordinator, self._has_coordinator, self._is_paused = "", False, False
        self.tokens_given = 0
        self.rounds_committed = 0
        self.rounds_dropped = 0
        self.bytes_sent = 0
        self.contributors: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case RoundFinished(result):
                self._rounds.append(result)
                self.bytes_sent += result.bytes_sent
                if result.status is RoundStatus.DROPPED:
                    self.rounds_dropped += 1
                else:
                    self.rounds_committed += 1
                    self.contributors.update(result.members)
            case Stepped():
                self._step_at.append(time.monotonic())
            case AdapterSynced():
                self._step_at.clear()
            case CoordinatorFound(target):
                self._coordinator, self._has_coordinator = target, True
            case CoordinatorLost(target):
                self._coordinator, self._has_coordinator = target, False
            case OperatorSaid(what):
                self._is_paused = what == "paused"
            case Evaluated(_, loss, _):
                self._first_held_out = loss if self._first_held_out is None else self._first_held_out
                self._held_out = loss

    @property
    def held_out_loss(self) -> float | None:
        """The latest score of the held-out split, in nats per token."""
        return self._held_out

    def counters(self) -> dict[str, int]:
        """Return what a checkpoint keeps of it."""
        return {
            "tokens_given": self.tokens_given,
            "rounds_committed": self.rounds_committed,
            "rounds_dropped": self.rounds_dropped,
            "bytes_sent": self.bytes_sent,
            "contributors": max(1, len(self.contributors)),
        }

    def restore(self, counters: dict[str, int]) -> None:
        """Go on counting from a checkpoint."""
        self.tokens_given = counters.get("tokens_given", 0)
        self.rounds_committed = counters.get("rounds_committed", 0)
        self.rounds_dropped = counters.get("rounds_dropped", 0)
        self.bytes_sent = counters.get("bytes_sent", 0)

    def seconds_left(self, version: int, max_steps: int) -> float | None:
        """Return the time that the rest of the run takes at the latest steps' pace, or None before it is known."""
        if len(self._step_at) < 2:
            return None
        pace = (self._step_at[-1] - self._step_at[0]) / (len(self._step_at) - 1)
        return max(0.0, pace * (max_steps - version) - (time.monotonic() - self._step_at[-1]))

    def status(
        self,
        *,
        state: str,
        view: SwarmView,
        mine: Progress | None,
        recipe: Recipe | None,
        plan: StagePlan | None,
        fingerprint: str,
        addresses: tuple[str, ...],
        tokens_seen: int,
        towards_next: int,
        hidden_bytes: tuple[int, int],
    ) -> control_pb2.GetStatusResponse:
        """Return the swarm as this node sees it."""
        swarm = totals(view)
        answer = control_pb2.GetStatusResponse(
            peer_id=view.me,
            name=self._name,
            state=state,
            addresses=addresses,
            fingerprint=fingerprint,
            home=str(self._home),
            tokens_per_s=swarm.tokens_per_s,
            tokens_towards_next=towards_next,
            uptime_s=time.monotonic() - self._started_at,
            coordinator=self._coordinator,
            has_coordinator=self._has_coordinator,
            is_paused=self._is_paused,
            given=control_pb2.Given(
                tokens_seen=tokens_seen,
                tokens_committed=self.tokens_given,
                rounds_committed=self.rounds_committed,
                rounds_dropped=self.rounds_dropped,
                bytes_sent=self.bytes_sent,
                hidden_bytes_sent=hidden_bytes[0],
                hidden_bytes_received=hidden_bytes[1],
            ),
        )
        if recipe is not None:
            answer.base_model = recipe.base_model
            answer.run_name = recipe.potluck.name or ""
            answer.max_steps = recipe.max_steps or 0
            answer.target_batch_tokens = recipe.potluck.averaging.target_batch_tokens
        if mine is not None:
            answer.version, answer.adapter_hash = mine.version, _hash_of(mine, view)
            left = self.seconds_left(mine.version, answer.max_steps)
            if left is not None:
                answer.seconds_left = left
        if swarm.loss is not None:
            answer.loss = swarm.loss
        if self._held_out is not None and self._first_held_out is not None:
            answer.held_out_loss, answer.held_out_loss_before = self._held_out, self._first_held_out
        _add_peers(answer, view, plan)
        for result in self._rounds:
            answer.rounds.add(
                version=result.version,
                status=result.status.value,
                members=len(result.members),
                tokens=result.tokens,
                seconds=result.seconds,
                bytes_sent=result.bytes_sent,
                reason=result.reason,
            )
        return answer


def _add_peers(answer: control_pb2.GetStatusResponse, view: SwarmView, plan: StagePlan | None) -> None:
    if plan is not None:
        answer.num_stages, answer.num_layers = plan.num_stages, plan.num_layers
    now = time.time()
    for peer in view.peers:
        entry = answer.peers.add(
            peer_id=peer.peer_id,
            name=peer.name,
            state=peer.state.value,
            is_me=peer.peer_id == view.me,
            tokens_given=peer.tokens_given,
            addresses=peer.addresses,
            first_stage=peer.shard.first_stage,
            stop_stage=peer.shard.stop_stage,
            drives=peer.drives,
            stage_tokens_per_s=peer.stage_tokens_per_s,
            capacity_stages=peer.capacity_stages,
            heard_s_ago=0.0 if peer.peer_id == view.me else max(0.0, now + RECORD_LIFETIME_S - peer.expires_at_s),
        )
        if plan is not None and len(peer.shard) and peer.shard.stop_stage <= plan.num_stages:
            layers = peer.shard.layers(plan)
            assert layers is not None, "a shard with stages has layers"
            entry.first_layer, entry.stop_layer = layers.start, layers.stop
        if peer.loss is not None:
            entry.loss = peer.loss
        if peer.progress is not None:
            entry.version = peer.progress.version
            entry.adapter_hash = _hash_of(peer.progress, view)
            entry.tokens_per_s = peer.progress.tokens_per_s


def _hash_of(progress: Progress, view: SwarmView) -> str:
    """Return what can be compared in this swarm: the bits where all hold the same stages, else the lineage."""
    is_one_shard = len({peer.shard for peer in view.peers if peer.progress is not None}) <= 1
    return progress.standing.bits if is_one_shard else progress.base_hash[:HASH_CHARS]
