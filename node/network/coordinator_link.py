"""A node's link to the optional coordinator: lost and found again in the background, waited for by nobody.

It brings three things: members' records (which their own peers signed), hints that a round is due, and the operator's
word. Each is bounded and checked here; a coordinator that lies can hide peers that the DHT would have to find, and
nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from coordinator.client import CoordinatorBusy, CoordinatorClient, CoordinatorError, CoordinatorRefused
from coordinator.v1 import coordinator_pb2 as pb
from node.core.orders import Orders
from node.core.text import printable
from node.core.types import NO_SHARD, Peer, PeerId, RoundResult, Shard, marks
from node.network.addresses import is_peer_id
from node.network.dht import RECORD_LIFETIME_S
from node.network.records import MAX_RECORD_BYTES, decode_peer, encode_peer
from node.trust.identity import Identity

_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 10.0
_LEAST_GAP_S, _LEAST_REPORT_GAP_S = 0.2, 0.4
"""Between two heartbeats, and between two reports: a node that steps often does not flood."""
_MAX_REPORTS = 4
"""That wait to be sent; the latest rounds are told of, and seldom is there one within a gap."""
_HELD_BACK_S = 1.0
_HEARTBEAT_S = (1.0, 60.0)
"""However often the coordinator would like to be told."""
_MAX_MEMBERS = 512
_LEAVE_S = 1.0
Reply = TypeVar("Reply")


class _Evicted(Exception):
    """The operator has taken this node out of the run."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """Whom the link tells."""

    found: Callable[[], None]
    """The coordinator is there, for the first time or again."""
    lost: Callable[[str], None]
    """It is not there, and why; told once until it is found again."""
    ordered: Callable[[], None]
    """The orders have changed."""
    evicted: Callable[[], None]
    """The operator has taken this node out of the run."""


class CoordinatorLink:
    """Keeps in touch with one coordinator about one run."""

    def __init__(
        self, client: CoordinatorClient, identity: Identity, run: pb.Run, orders: Orders, watch: Watch
    ) -> None:
        """Set up; nothing is called before `start`.

        Args:
            client: Of the coordinator; closed with the link.
            identity: This node's.
            run: What all members share; whoever tells a coordinator first founds the run there.
            orders: Where the operator's word goes.
            watch: Whom to tell of what changes.
        """
        self._client = client
        self._identity = identity
        self._run = run
        self._orders = orders
        self._watch = watch
        self._me: Peer | None = None
        self._held_out_loss: float | None = None
        self._bytes_sent = 0
        self._last_at_s = 0.0
        self._wake = asyncio.Event()
        self._reports: deque[RoundResult] = deque(maxlen=_MAX_REPORTS)
        self._has_report = asyncio.Event()
        self._plan: tuple[int, str] = (-1, "")
        self._task: asyncio.Task[None] | None = None
        self.members: dict[PeerId, Peer] = {}
        """Who the coordinator says is there; nobody while it is not there itself."""
        self.evicted: set[PeerId] = set()
        self.suggested = NO_SHARD
        """Stages that the swarm lacks most, by the coordinator's reckoning; perhaps not of the run."""
        self.is_connected = False

    def start(self) -> None:
        """Begin to look for the coordinator."""
        self._task = asyncio.create_task(self._keep_in_touch(), name="coordinator")

    def announce(self, me: Peer, *, held_out_loss: float | None, bytes_sent: int) -> None:
        """Tell the coordinator of this node: at once if something has changed that others wait for, else in time."""
        before, self._me = self._me, me
        self._held_out_loss, self._bytes_sent = held_out_loss, bytes_sent
        if before is None or marks(before) != marks(me):
            self._wake.set()

    def report(self, result: RoundResult) -> None:
        """Tell what came of a round, if there is anybody to tell and not too much to be told."""
        if self.is_connected:
            self._reports.append(result)
            self._has_report.set()

    async def close(self) -> None:
        """Say goodbye, if that takes no time, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.is_connected:
            with contextlib.suppress(CoordinatorError, TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    await self._client.leave(pb.LeaveRequest(fingerprint=self._run.fingerprint))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._client.close()

    async def _keep_in_touch(self) -> None:
        wait_s, has_told = _FIRST_RETRY_S, False
        while True:
            try:
                await self._stay()
                reason = "it has ended the connection"
            except _Evicted:
                self._watch.evicted()
                return
            except CoordinatorError as error:
                reason = str(error)
                if isinstance(error, CoordinatorRefused) and reason == "evicted":
                    self._watch.evicted()
                    return
            was_connected, self.is_connected = self.is_connected, False
            self.members.clear()
            self._orders.stand_down()
            self._watch.ordered()
            if was_connected or not has_told:
                wait_s, has_told = _FIRST_RETRY_S, True
                self._watch.lost(printable(reason)[:300])
            await self._client.close()  # the next try looks at the certificate anew
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # not all nodes at the same moment
            wait_s = min(_LAST_RETRY_S, wait_s * 1.6)

    async def _stay(self) -> None:
        """Enter the run and stay until the connection ends."""
        me = self._me
        reply = await self._client.join(
            pb.JoinRequest(
                fingerprint=self._run.fingerprint,
                run=self._run,
                capacity_stages=me.capacity_stages if me else 0,
                addresses=me.addresses if me else (),
            )
        )
        self.suggested = Shard(reply.first_stage, reply.stop_stage)
        self.is_connected = True
        self._watch.found()
        self._wake.set()
        parts = [
            asyncio.create_task(part) for part in (self._beat(reply.heartbeat_every_s), self._look(), self._tell())
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _beat(self, every_s: float) -> None:
        """Send heartbeats until the coordinator does not know the run any more."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_bounded(every_s)):
                    await self._wake.wait()
            self._wake.clear()
            if self._me is None:
                continue
            reply = await _spared(self._client.heartbeat(self._heartbeat(self._me)))
            if reply is None:
                self._wake.set()
                continue
            if not reply.is_known:
                return
            every_s = reply.next_in_s
            await asyncio.sleep(_LEAST_GAP_S)

    def _heartbeat(self, me: Peer) -> pb.HeartbeatRequest:
        fingerprint, progress = self._run.fingerprint, me.progress
        self._last_at_s = max(time.time(), self._last_at_s + 1e-3)
        facts = pb.Facts(
            name=me.name,
            state=me.state.value,
            first_stage=me.shard.first_stage,
            stop_stage=me.shard.stop_stage,
            capacity_stages=me.capacity_stages,
            drives=me.drives,
            loss=me.loss,
            held_out_loss=self._held_out_loss,
            tokens_given=me.tokens_given,
            bytes_sent=self._bytes_sent,
            addresses=me.addresses,
        )
        if progress is not None:
            facts.version, facts.base_hash = progress.version, progress.base_hash
            facts.committed_tokens, facts.tokens = progress.committed_tokens, progress.tokens
            facts.tokens_per_s = progress.tokens_per_s
        record = encode_peer(me, fingerprint=fingerprint, at_s=self._last_at_s, identity=self._identity)
        return pb.HeartbeatRequest(fingerprint=fingerprint, record=record, facts=facts)

    async def _tell(self) -> None:
        while True:
            while not self._reports:
                self._has_report.clear()
                await self._has_report.wait()
            await _spared(self._client.report_round(self._report(self._reports.popleft())))
            await asyncio.sleep(_LEAST_REPORT_GAP_S)

    def _report(self, result: RoundResult) -> pb.ReportRoundRequest:
        version, plan_id = self._plan
        return pb.ReportRoundRequest(
            fingerprint=self._run.fingerprint,
            plan_id=plan_id if version == result.version else "",
            version=result.version,
            outcome=result.status.value,
            num_members=len(result.members),
            tokens=result.tokens,
            seconds=result.seconds,
            bytes_sent=result.bytes_sent,
            reason=result.reason[:200],
        )

    async def _look(self) -> None:
        """Take in what changes until the stream ends."""
        async for change in self._client.watch(self._run.fingerprint):
            match change.WhichOneof("change"):
                case "member":
                    self._see(change.member)
                case "gone" if is_peer_id(change.gone.peer_id):
                    self._miss(PeerId(change.gone.peer_id), is_evicted=change.gone.is_evicted)
                case "plan":
                    self._plan = (change.plan.version, change.plan.id[:64])
                    self._orders.due = (change.plan.version, change.plan.base_hash)
                    self._watch.ordered()
                case "status":
                    self._orders.is_paused = change.status.state == pb.RUN_STATE_PAUSED
                    is_finished = change.status.state == pb.RUN_STATE_FINISHED
                    self._orders.is_finished |= is_finished and change.status.by_operator
                    self._watch.ordered()

    def _see(self, member: pb.Member) -> None:
        if not is_peer_id(member.peer_id) or len(member.record) > MAX_RECORD_BYTES:
            return
        left_s = RECORD_LIFETIME_S - min(max(member.heard_s_ago, 0.0), RECORD_LIFETIME_S)
        peer = decode_peer(member.record, fingerprint=self._run.fingerprint, expires_at_s=time.time() + left_s)
        if peer is None or peer.peer_id != member.peer_id or peer.peer_id == self._identity.peer_id:
            return
        if peer.peer_id in self.members or len(self.members) < _MAX_MEMBERS:
            self.members[peer.peer_id] = peer
            self.evicted.discard(peer.peer_id)

    def _miss(self, peer_id: PeerId, *, is_evicted: bool) -> None:
        self.members.pop(peer_id, None)
        if not is_evicted:
            return
        if peer_id == self._identity.peer_id:
            raise _Evicted
        if len(self.evicted) < _MAX_MEMBERS:
            self.evicted.add(peer_id)


async def _spared(call: Awaitable[Reply]) -> Reply | None:
    """Await a call; None, a moment later, if it was one too many, which is no reason to lose the coordinator."""
    try:
        return await call
    except CoordinatorBusy:
        await asyncio.sleep(_HELD_BACK_S)
        return None


def _bounded(seconds: float) -> float:
    least, most = _HEARTBEAT_S
    return min(max(seconds, least), most) if seconds == seconds else most
