"""What the watchers of a run are still to be told: the latest of each member, so that a slow one costs little."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from coordinator.run_state import Change, Gone, Member, Plan, Planned, RunState, Seen
from coordinator.v1 import coordinator_pb2 as pb

_GAP_S = 0.2
"""Between two batches; a plan goes at once."""


class Watcher:
    """One stream."""

    def __init__(self, run: RunState) -> None:
        """Begin with all of a run."""
        self._run = run
        self._members: dict[str, Member | bool] = dict(run.members.items())
        """To be told: a member, or whether one that is gone was evicted."""
        self._members.update(dict.fromkeys(run.evicted, True))
        self._plan: Plan | None = None
        self._is_status_due = True
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()

    def tell(self, change: Change) -> None:
        """Note what is to be told."""
        match change:
            case Seen(member, is_marked):
                if not is_marked:
                    return  # how far it is they know from the DHT, and that it lives as long as nobody says otherwise
                self._members[member.peer_id] = member
            case Gone(peer_id, is_evicted):
                self._members[peer_id] = is_evicted
            case Planned(plan):
                self._plan = plan
                self._hurry.set()
            case _:
                self._is_status_due = True
        self._wake.set()

    async def changes(self) -> AsyncIterator[pb.WatchRunResponse]:
        """Yield what is to be told, for ever."""
        while True:
            if (plan := self._take_plan()) is not None:
                yield pb.WatchRunResponse(plan=_plan(plan))
            for peer_id, told in self._take_members():
                if isinstance(told, bool):
                    yield pb.WatchRunResponse(gone=pb.Gone(peer_id=peer_id, is_evicted=told))
                else:
                    heard_s_ago = max(0.0, time.time() - told.heard_at)
                    member = pb.Member(peer_id=peer_id, record=told.record, heard_s_ago=heard_s_ago)
                    yield pb.WatchRunResponse(member=member)
            if self._is_status_due:
                self._is_status_due = False
                state = self._run.state.value
                status = pb.RunStatus(state=pb.RunState.Name(state), by_operator=self._run.is_ended)
                yield pb.WatchRunResponse(status=status)
            await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GAP_S):
                    await self._hurry.wait()
            self._wake.clear()
            self._hurry.clear()

    def _take_plan(self) -> Plan | None:
        plan, self._plan = self._plan, None
        return plan if plan is not None and plan is self._run.plan else None

    def _take_members(self) -> list[tuple[str, Member | bool]]:
        taken, self._members = self._members, {}
        return list(taken.items())


def _plan(plan: Plan) -> pb.RoundPlan:
    return pb.RoundPlan(
        id=plan.id,
        version=plan.version,
        base_hash=plan.base_hash,
        members=[pb.Planned(peer_id=id, first_stage=first, stop_stage=stop) for id, first, stop in plan.members],
        leader=plan.leader,
        begin_at_s=plan.begin_at,
        deadline_s=plan.deadline,
    )
