"""When a round is due and who calls it: the view and the clock in, calls to the averager out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from node.averaging.gradient import GradientStrategy
from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings
from node.core.events import EventBus, Fault
from node.core.lifecycle import Signal
from node.core.progress import leader, peer_ahead, replicas_of_one_state, tokens_towards_next, with_partners
from node.core.types import PeerId, PeerState, Progress, SwarmView
from node.enlist import Enlisted
from node.network.processes import RunningP2P
from node.network.rounds import PeerLost, RoundTransport
from node.swarm import Heartbeat
from node.training.state import AdapterState

_LOOK_EVERY_S = 0.25
_BEHIND_FOR_S = 1.5
"""A peer that stepped a moment earlier is not ahead: its COMMIT is on its way here too."""
_ASK_LEADER_AFTER_S = 2.0
_PASS_OVER_LEADER_AFTER_S = 10.0
_PAUSE_AFTER_CALL_S = 1.0
"""A call that was dropped is not repeated at once: whatever dropped it is still there."""


class Rounds:
    """The averaging of one stage, as the daemon sees it."""

    def __init__(
        self,
        *,
        strategy: GradientStrategy,
        num_values: int,
        running: RunningP2P,
        heartbeat: Heartbeat,
        enlisted: Enlisted,
        lineage: tuple[str, ...],
        events: EventBus,
        progress: Callable[[], Progress],
    ) -> None:
        self._averaging = enlisted.recipe.potluck.averaging
        self._max_steps = enlisted.recipe.max_steps or 1
        self._heartbeat = heartbeat
        self._events = events
        self._progress = progress
        self._me = running.peer_id
        self._transport = RoundTransport(running.p2p, fingerprint=enlisted.fingerprint, stage=0)
        self._averager = Averager(
            strategy,
            self._transport,
            AveragerSettings(stage=0, num_values=num_values, codec=self._averaging.compression),
            me=running.peer_id,
            lineage=lineage,
            events=events,
        )
        self._due_since: float | None = None
        self._behind_since: float | None = None
        self._not_before = 0.0
        self._passed_over: dict[PeerId, int] = {}

    async def open(self) -> None:
        """Begin to answer calls."""
        self._averager.begin_sync()
        await self._averager.open()

    async def close(self) -> None:
        """End whatever is under way."""
        await self._averager.close()

    async def settle(self) -> None:
        """Let a round that is under way come to its end, which its deadline bounds."""
        self._averager.begin_sync()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._averager.until_idle(), self._averaging.round_timeout_s + 2)

    @property
    def lineage(self) -> tuple[str, ...]:
        """The latest rounds behind the present bits, oldest first."""
        return self._averager.lineage

    @property
    def tokens_given(self) -> int:
        """Tokens of this node in rounds that it saw committed since it started."""
        return self._averager.tokens_given

    def view(self) -> SwarmView:
        """Return the swarm, with the members of the latest round counted as far as this node."""
        averager = self._averager
        return with_partners(
            self._heartbeat.view, self._progress(), averager.partners, stepped_at_s=averager.stepped_at_s
        )

    def tokens_towards_next(self) -> int:
        """Return what the replicas together have accumulated, as far as can be told."""
        total = tokens_towards_next(self.view(), self._progress(), now_s=time.time(), without=self._without())
        return total + self._averager.pending_tokens

    async def adopt(self, state: AdapterState, lineage: tuple[str, ...]) -> None:
        """Follow another lineage.

        Raises:
            CheckpointError: the state cannot be one of this stage.
        """
        lost = await self._averager.adopt(state, lineage)
        if lost:
            self._events.emit(Fault(f"{lost} tokens of this node were in rounds that the swarm did not keep."))

    def end_sync(self) -> None:
        """There is nothing to follow: take part from here on."""
        self._averager.give_up_sync()

    async def run(self, nudge: asyncio.Event) -> Signal:
        """Watch and call rounds until this node fell behind."""
        fallen = asyncio.ensure_future(self._averager.until_fallen_behind())
        try:
            while not fallen.done():
                waiting = asyncio.ensure_future(nudge.wait())
                await asyncio.wait({waiting, fallen}, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                nudge.clear()
                if self._is_behind():
                    break
                await self._look()
        finally:
            fallen.cancel()
        self._averager.begin_sync()
        self._behind_since = self._due_since = None
        return Signal.FELL_BEHIND

    async def _look(self) -> None:
        averager, mine = self._averager, self._progress()
        for peer in tuple(averager.dead):
            averager.dead.discard(peer)
            self._heartbeat.count_out(peer)
        view, without = self.view(), self._without()
        alive = self._alive(view)
        averager.saw(alive)
        has_work = mine.tokens + averager.pending_tokens > 0
        if (
            self._is_over(mine)
            or not averager.is_idle
            or not has_work
            or self.tokens_towards_next() < self._averaging.target_batch_tokens
        ):
            self._due_since = None
            return
        self._due_since = self._due_since or time.monotonic()
        members = {p.peer_id for p in replicas_of_one_state(view, mine, without=without)}
        if len(members) < max(2, self._averaging.min_replicas) and self._may_be_alone(alive):
            return
        first = leader(view, mine, without=without)
        if first == self._me and time.monotonic() > self._not_before:
            self._lead(alive - without, alive)  # also those that seem to be behind: what they announced may be old
        elif first == self._me:
            self._due_since = None
        else:
            await self._doubt_leader(first, mine.version)

    async def step_if_alone(self) -> None:
        """Make the step of a node that has no replicas, between two microbatches: exact, and free of any waiting.

        With replicas, training goes on while a round is under way; alone there is nothing to wait for.
        """
        averager, mine = self._averager, self._progress()
        alive = self._alive(self.view())
        is_due = mine.tokens + averager.pending_tokens >= self._averaging.target_batch_tokens
        if self._is_over(mine) or not is_due or not averager.is_idle:
            return
        if self._may_be_alone(alive) and self._averaging.min_replicas <= 1:
            averager.saw(alive)
            self._lead({self._me}, alive)
            await averager.until_idle()

    def _lead(self, members: set[PeerId], alive: set[PeerId]) -> None:
        self._averager.lead(members, alive, budget_s=self._averaging.round_timeout_s)
        self._due_since = None
        self._not_before = time.monotonic() + _PAUSE_AFTER_CALL_S

    def _alive(self, view: SwarmView) -> set[PeerId]:
        """Return the replicas that may step, whatever their version, this node included."""
        return {peer.peer_id for peer in view.replicas(0) if peer.state is PeerState.TRAINING} | {self._me}

    def _is_over(self, mine: Progress) -> bool:
        return mine.version >= self._max_steps

    def _may_be_alone(self, alive: set[PeerId]) -> bool:
        return alive == {self._me}

    async def _doubt_leader(self, first: PeerId, version: int) -> None:
        """A leader that does not call is asked whether it is there, and in the end passed over for this step."""
        assert self._due_since is not None
        overdue_s = time.monotonic() - self._due_since
        if overdue_s > _PASS_OVER_LEADER_AFTER_S:
            self._passed_over[first] = version
            self._due_since = None
        elif overdue_s > _ASK_LEADER_AFTER_S:
            try:
                await self._transport.ping(first)
            except PeerLost as error:
                if error.is_refused:
                    self._heartbeat.count_out(first)

    def _without(self) -> frozenset[PeerId]:
        version = self._progress().version
        passed = {peer for peer, at in self._passed_over.items() if at == version}
        left_out = self._averager.left_out()
        alive = self._alive(self.view())
        if 2 * len(alive - left_out) <= len(alive):
            left_out = frozenset()  # without them there is no quorum, so they are given another chance
        return left_out | passed

    def _is_behind(self) -> bool:
        if peer_ahead(self.view(), self._progress()) is None or not self._averager.is_idle:
            self._behind_since = None
            return False
        self._behind_since = self._behind_since or time.monotonic()
        return time.monotonic() - self._behind_since > _BEHIND_FOR_S
