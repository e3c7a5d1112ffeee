"""The calls of nodes and of the operator: opened, checked, handed to the hub."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from coordinator.access import STAMP_S, Limiter, Nonces
from coordinator.bounds import (
    MAX_BODY_BYTES,
    MAX_RECORD_BYTES,
    MAX_SEALED_BYTES,
    Malformed,
    MemberFacts,
    RoundReport,
    RunFacts,
    fingerprint_of,
)
from coordinator.client import PROTOCOL
from coordinator.hub import Hub
from coordinator.run_state import HEARTBEAT_S, Change, Refused, RunState
from coordinator.signing import caller_of, is_peer_id
from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as rpc

_Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request", bound=Message)
_NONCE_BYTES = 16
_MAX_PEER_ID = 100


class Refusals:
    """How a call is turned away, the same in both services."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def refuse(self, context: _Context, code: grpc.StatusCode, why: str, *, kind: str = "request") -> NoReturn:
        """End the call; it is counted under `kind`."""
        self._hub.tally.refused[kind] += 1
        await context.abort(code, why)
        raise AssertionError("abort raises")


class CoordinatorServicer(Refusals, rpc.CoordinatorServicer):
    """What nodes call."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._nonces = Nonces()
        self._of_peer = Limiter(per_s=8, burst=40)
        self._of_connection = Limiter(per_s=16, burst=80)
        """Counted before the signature is looked at, which costs a tenth of a millisecond."""

    async def Join(self, request: pb.SignedCall, context: _Context) -> pb.JoinResponse:  # noqa: N802
        """Enter a run, or found it."""
        peer_id, asked = await self._open(request, context, "Join", pb.JoinRequest, MAX_SEALED_BYTES + MAX_BODY_BYTES)
        try:
            fingerprint = fingerprint_of(asked.fingerprint) if asked.fingerprint else ""
            run = self._hub.enter(fingerprint, RunFacts.read(asked.run) if asked.HasField("run") else None)
            run.refuse_evicted(peer_id)
        except Malformed as error:
            await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as error:
            await self.refuse(context, _code(error), str(error))
        first, stop = run.suggest(asked.capacity_stages)
        return pb.JoinResponse(
            run=run.facts.wire(),
            addresses=run.addresses(but=peer_id),
            first_stage=first,
            stop_stage=stop,
            heartbeat_every_s=HEARTBEAT_S,
            clock_s=time.time(),
        )

    async def Heartbeat(self, request: pb.SignedCall, context: _Context) -> pb.HeartbeatResponse:  # noqa: N802
        """Take in what a node says of itself."""
        peer_id, told = await self._open(request, context, "Heartbeat", pb.HeartbeatRequest)
        run = self._hub.runs.get(told.fingerprint)
        if run is None:
            return pb.HeartbeatResponse(next_in_s=HEARTBEAT_S, is_known=False)
        try:
            if not 0 < len(told.record) <= MAX_RECORD_BYTES:
                raise Malformed(f"record: {len(told.record)} bytes")
            changes = run.heartbeat(peer_id, told.record, MemberFacts.read(told.facts), time.time())
        except Malformed as error:
            await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as error:
            await self.refuse(context, _code(error), str(error))
        self._hub.changed(run, changes)
        return pb.HeartbeatResponse(next_in_s=run.heartbeat_s, is_known=True)

    async def Leave(self, request: pb.SignedCall, context: _Context) -> pb.LeaveResponse:  # noqa: N802
        """A node says goodbye."""
        peer_id, told = await self._open(request, context, "Leave", pb.LeaveRequest)
        run = self._hub.runs.get(told.fingerprint)
        if run is not None:
            self._hub.changed(run, run.leave(peer_id))
        return pb.LeaveResponse()

    async def ReportRound(self, request: pb.SignedCall, context: _Context) -> pb.ReportRoundResponse:  # noqa: N802
        """Take in what came of a round."""
        peer_id, told = await self._open(request, context, "ReportRound", pb.ReportRoundRequest)
        run = self._hub.runs.get(told.fingerprint)
        if run is not None and peer_id in run.members:
            try:
                report = RoundReport.read(told)
            except Malformed as error:
                await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
            self._hub.tally.rounds[report.outcome] += 1
            self._hub.changed(run, run.report(report, time.time()))
        return pb.ReportRoundResponse()

    async def WatchRun(  # noqa: N802
        self, request: pb.SignedCall, context: _Context
    ) -> AsyncIterator[pb.WatchRunResponse]:
        """Tell a node of the run's members, and of what changes."""
        peer_id, asked = await self._open(request, context, "WatchRun", pb.WatchRunRequest)
        try:
            run = self._hub.enter(fingerprint_of(asked.fingerprint), None)
            run.refuse_evicted(peer_id)
            with self._hub.watching(run) as watcher:
                async for change in watcher.changes():
                    yield change
                    run.refuse_evicted(peer_id)  # it has just been told so, and learns no more
        except Malformed as error:
            await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as error:
            await self.refuse(context, _code(error), str(error))

    async def ListRuns(self, request: pb.ListRunsRequest, context: _Context) -> pb.ListRunsResponse:  # noqa: ARG002, N802
        """List the runs for whoever has a token."""
        self._hub.tally.calls["ListRuns"] += 1
        return pb.ListRunsResponse(runs=[summary_of(run) for run in self._hub.runs.values()])

    async def _open(
        self, call: pb.SignedCall, context: _Context, method: str, kind: type[Request], most: int = MAX_BODY_BYTES
    ) -> tuple[str, Request]:
        """Return who calls, and the request, or turn the call away."""
        now = time.monotonic()
        await self._hold_back(context, self._of_connection.wait_s(context.peer(), now))
        if len(call.body) > most:
            await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"a request of {len(call.body)} bytes")
        peer_id = caller_of(call, method)
        if peer_id is None:
            await self.refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, "the signature does not hold", kind="signature"
            )
        await self._hold_back(context, self._of_peer.wait_s(peer_id, now))
        request = kind()
        try:
            request.ParseFromString(call.body)
        except DecodeError:
            await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"no request for {method}")
        await self._check_stamp(request.stamp, peer_id, context)  # type: ignore[attr-defined]
        self._hub.tally.calls[method] += 1
        return peer_id, request

    async def _check_stamp(self, stamp: pb.Stamp, peer_id: str, context: _Context) -> None:
        if stamp.protocol != PROTOCOL:
            why = f"it speaks protocol {PROTOCOL} and you speak {stamp.protocol}: use the same version of Potluck"
            await self.refuse(context, grpc.StatusCode.FAILED_PRECONDITION, why)
        if not math.isfinite(stamp.at_s) or abs(stamp.at_s - time.time()) > STAMP_S:
            why = f"your clock and the coordinator's differ by more than {STAMP_S:.0f} s: set it"
            await self.refuse(context, grpc.StatusCode.FAILED_PRECONDITION, why)
        if len(stamp.nonce) != _NONCE_BYTES or not self._nonces.is_new(peer_id, stamp.nonce, time.time()):
            await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "this call was made before")

    async def _hold_back(self, context: _Context, wait_s: float) -> None:
        if wait_s > 0:
            context.set_trailing_metadata((("retry-after", f"{wait_s:.1f}"),))
            why = f"too many calls: wait {wait_s:.1f} s"
            await self.refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, why, kind="rate")


class OperatorServicer(Refusals, rpc.OperatorServicer):
    """What whoever runs the coordinator calls; the gatekeeper has looked at the token."""

    async def Pause(self, request: pb.PauseRequest, context: _Context) -> pb.PauseResponse:  # noqa: N802
        """Let a run rest."""
        run = await self._run(request.fingerprint, context)
        self._hub.changed(run, run.pause())
        return pb.PauseResponse()

    async def Resume(self, request: pb.ResumeRequest, context: _Context) -> pb.ResumeResponse:  # noqa: N802
        """Let it go on."""
        run = await self._run(request.fingerprint, context)
        self._hub.changed(run, run.resume())
        return pb.ResumeResponse()

    async def Evict(self, request: pb.EvictRequest, context: _Context) -> pb.EvictResponse:  # noqa: N802
        """Take a member out for good."""
        run = await self._run(request.fingerprint, context)
        changes: list[Change] = []
        if not request.peer_id or len(request.peer_id) > _MAX_PEER_ID:
            await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "whom to evict?")
        found = [peer for peer in run.members if peer.endswith(request.peer_id)]
        if not found and is_peer_id(request.peer_id):  # it may come back
            found = [request.peer_id]
        if not found:
            await self.refuse(context, grpc.StatusCode.NOT_FOUND, "no member's id ends like this")
        if len(found) > 1:
            await self.refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "several members' ids end like this")
        changes += run.evict(found[0])
        self._hub.changed(run, changes)
        return pb.EvictResponse()

    async def Finish(self, request: pb.FinishRequest, context: _Context) -> pb.FinishResponse:  # noqa: N802
        """End a run."""
        run = await self._run(request.fingerprint, context)
        self._hub.changed(run, run.finish())
        return pb.FinishResponse()

    async def _run(self, fingerprint: str, context: _Context) -> RunState:
        """Return the run whose fingerprint begins so; without any, the only one."""
        found = [run for key, run in self._hub.runs.items() if key.startswith(fingerprint)]
        if len(found) != 1:
            why = "say which run: several fit" if found else "no run's fingerprint begins so"
            why = why if self._hub.runs else "it has no run yet"
            await self.refuse(context, grpc.StatusCode.NOT_FOUND, why)
        return found[0]


def summary_of(run: RunState) -> pb.RunSummary:
    """Return a run in one line's worth."""
    return pb.RunSummary(
        fingerprint=run.facts.fingerprint,
        name=run.facts.name,
        base_model=run.facts.base_model,
        state=pb.RunState.Name(run.state.value),
        num_peers=len(run.members),
        version=min(run.version, run.facts.max_steps),
        max_steps=run.facts.max_steps,
    )


def _code(error: Refused) -> grpc.StatusCode:
    return grpc.StatusCode.PERMISSION_DENIED if str(error) == "evicted" else grpc.StatusCode.FAILED_PRECONDITION
