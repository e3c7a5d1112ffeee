"""When a round is due and who calls it: the view and the clock in, calls to the averager out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from node.averaging.gradient import GradientStrategy
from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings
from node.core.events import EventBus, WorkLost
from node.core.lifecycle import Signal
from node.core.newcomers import Newcomers
from node.core.orders import Orders
from node.core.progress import (
    leader,
    missing_stages,
    peer_ahead,
    peers_of_one_state,
    tokens_towards_next,
    with_partners,
)
from node.core.types import PeerId, PeerState, Progress, Shard, Standing, SwarmView
from node.enlist import Enlisted
from node.network.dht import RECORD_LIFETIME_S
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
_NEARLY = 0.9
"""Of the tokens of a step: what this node knows of the others' is up to a second old."""


class Rounds:
    """The averaging of a run, as the daemon sees it."""

    def __init__(
        self,
        *,
        strategy: GradientStrategy,
        num_stages: int,
        running: RunningP2P,
        heartbeat: Heartbeat,
        enlisted: Enlisted,
        lineage: tuple[str, ...],
        events: EventBus,
        orders: Orders,
        progress: Callable[[], Progress],
    ) -> None:
        self._averaging = enlisted.recipe.potluck.averaging
        self._max_steps = enlisted.recipe.max_steps or 1
        self._heartbeat = heartbeat
        self._events = events
        self._orders = orders
        self._progress = progress
        self._me = running.peer_id
        self._shard, self._num_stages = strategy.shard, num_stages
        self._transport = RoundTransport(running.p2p, fingerprint=enlisted.fingerprint, told=running.told)
        self._averager = Averager(
            strategy,
            self._transport,
            AveragerSettings(num_stages=num_stages, codec=self._averaging.compression),
            me=running.peer_id,
            lineage=lineage,
            events=events,
        )
        self._due_since: float | None = None
        self._behind_since: float | None = None
        self._not_before = 0.0
        self._passed_over: dict[PeerId, int] = {}
        self._counted_out: dict[PeerId, float] = {}
        self._newcomers = Newcomers()

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
            async with asyncio.timeout(self._averaging.round_timeout_s + 2):
                await self._averager.until_idle()

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

    def missing_stages(self) -> tuple[int, ...]:
        """Return the stages that nobody holds who trains from where this node is; no round is called meanwhile."""
        return missing_stages(peers_of_one_state(self.view(), self._progress()), self._num_stages)

    async def adopt(self, states: Mapping[int, AdapterState], standing: Standing, lineage: tuple[str, ...]) -> None:
        """Follow another lineage.

        Args:
            states: By stage; stages of this node that are not among them keep their bits.
            standing: Of the peers that sent them.
            lineage: The latest rounds behind it, oldest first.

        Raises:
            CheckpointError: a state cannot be one of its stage.
        """
        lost = await self._averager.adopt(states, standing, lineage)
        if lost:
            self._events.emit(WorkLost(lost))

    async def reset(self) -> None:
        """Discard this node's sums, since some may be counted elsewhere too; drivers send what was in them again."""
        await self._averager.reset()

    def expect_newcomer(self) -> None:
        """Take no step for a moment, since somebody fetches this node's state, and would be behind again at once."""
        self._newcomers.expect(time.monotonic())

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
            self._counted_out[peer] = time.monotonic() + RECORD_LIFETIME_S
        view, without = self.view(), self._without()
        alive = self._alive(view)
        averager.saw(alive)
        # in a run of several stages one that only holds some brings what others have trained
        has_work = self._num_stages > 1 or mine.tokens + averager.pending_tokens > 0
        if (
            self._is_over(mine)
            or not averager.is_idle
            or not has_work
            or self._awaits_newcomer
            or self.tokens_towards_next() < self._tokens_due(mine)
        ):
            self._due_since = None
            return
        self._due_since = self._due_since or time.monotonic()
        peers = peers_of_one_state(view, mine, without=without)
        if len(peers) < max(2, self._averaging.min_replicas) and self._may_be_alone(alive):
            return
        # also those that seem to be behind: what they announced may be old
        called = (alive.keys() | self._still_counted(alive)) - without
        if len(called) < self._averaging.min_replicas:
            return
        if missing_stages(peers, self._num_stages):
            self._due_since = None  # training waits for whoever brings them
            return
        first = leader(view, mine, without=without)
        if first == self._me and time.monotonic() > self._not_before:
            self._lead(called, alive)
        elif first == self._me:
            self._due_since = None
        else:
            await self._doubt_leader(first, mine.version)

    async def step_if_alone(self) -> None:
        """Make the step of a node that is alone and holds all stages, between two microbatches, free of any waiting.

        With others, training goes on while a round is under way; alone there is nothing to wait for.
        """
        averager, mine = self._averager, self._progress()
        alive = self._alive(self.view())
        is_due = mine.tokens + averager.pending_tokens >= self._averaging.target_batch_tokens
        if self._is_over(mine) or not is_due or not averager.is_idle or self._awaits_newcomer:
            return
        if self._may_be_alone(alive) and self._averaging.min_replicas <= 1:
            averager.saw(alive)
            self._lead({self._me}, alive)
            await averager.until_idle()

    def _lead(self, members: set[PeerId], alive: Mapping[PeerId, Shard]) -> None:
        self._averager.lead(members, alive, budget_s=self._averaging.round_timeout_s)
        self._due_since = None
        self._not_before = time.monotonic() + _PAUSE_AFTER_CALL_S

    def _alive(self, view: SwarmView) -> dict[PeerId, Shard]:
        """Return the peers that may step, whatever their version, with their stages; this node included."""
        peers = {peer.peer_id: peer.shard for peer in view.peers if peer.state is PeerState.TRAINING}
        return {**peers, self._me: self._shard}

    @property
    def _awaits_newcomer(self) -> bool:
        return self._newcomers.are_awaited(time.monotonic())

    def _still_counted(self, alive: Mapping[PeerId, Shard]) -> set[PeerId]:
        """Return peers that this node has counted out and whose records others may still go by.

        A round asks them once more, since who is dead or behind must show it to the round, or the quorum counts it.
        """
        now = time.monotonic()
        self._counted_out = {p: until for p, until in self._counted_out.items() if until > now and p not in alive}
        return set(self._counted_out)

    def _is_over(self, mine: Progress) -> bool:
        return mine.version >= self._max_steps or self._orders.is_paused or self._orders.is_finished

    def _tokens_due(self, mine: Progress) -> int:
        """Return how many tokens make a step due; nearly as many will do when the coordinator says so."""
        target = self._averaging.target_batch_tokens
        return int(_NEARLY * target) if self._orders.due == (mine.version, mine.base_hash) else target

    def _may_be_alone(self, alive: Mapping[PeerId, Shard]) -> bool:
        return set(alive) == {self._me} and len(self._shard) == self._num_stages

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
        for stage in range(self._num_stages):
            holders = {peer for peer, shard in alive.items() if shard.holds(stage)}
            if 2 * len(holders - left_out) <= len(holders):
                left_out = frozenset()  # without them there is no quorum, so they are given another chance
        return left_out | passed

    def _is_behind(self) -> bool:
        if peer_ahead(self.view(), self._progress()) is None or not self._averager.is_idle:
            self._behind_since = None
            return False
        self._behind_since = self._behind_since or time.monotonic()
        return time.monotonic() - self._behind_since > _BEHIND_FOR_S
