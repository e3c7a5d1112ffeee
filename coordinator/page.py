"""The coordinator's own web page: maps its runs to what `coordinator.web` shows."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncIterator
from itertools import pairwise

from coordinator.hub import Hub
from coordinator.run_state import Change, Gone, Member, RunState, Seen
from coordinator.web.hints import with_hints
from coordinator.web.snapshot import MAX_RUNS, Commands, PeerView, RoundView, RunView, Snapshot, plain

_INTERVAL_S = 1.0
_KEPT_LEFT = 32
_SLOW_STEPS = 2


class RunsSource:
    """What the page of a coordinator shows."""

    def __init__(self, hub: Hub, address: str) -> None:
        """Begin to note who leaves.

        Args:
            hub: Has the runs.
            address: What nodes join with; whoever may see the page may have it.
        """
        self._hub = hub
        self._address = address
        self._seen: dict[tuple[str, str], Member] = {}
        self._left: dict[str, dict[str, Member]] = {}
        self._latest: tuple[float, Snapshot] | None = None
        self._end = asyncio.Event()
        hub.listeners.append(self._note)

    def snapshot(self) -> Snapshot:
        """Return what there is to see, at most a second old."""
        now = time.monotonic()
        if self._latest is None or now - self._latest[0] >= 0.9 * _INTERVAL_S:
            self._latest = (now, self._take())
        return self._latest[1]

    async def changes(self) -> AsyncIterator[Snapshot]:
        """Yield what there is to see each second, and once more at the end."""
        while not self._end.is_set():
            yield self.snapshot()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._end.wait()

    def end(self) -> None:
        """Let all viewers go."""
        self._end.set()

    def _note(self, fingerprint: str, change: Change) -> None:
        if isinstance(change, Seen):
            self._seen[fingerprint, change.member.peer_id] = change.member
            self._left.get(fingerprint, {}).pop(change.member.peer_id, None)
        elif isinstance(change, Gone) and (last := self._seen.pop((fingerprint, change.peer_id), None)) is not None:
            left = self._left.setdefault(fingerprint, {})
            left[change.peer_id] = last
            for peer_id in list(left)[:-_KEPT_LEFT]:
                del left[peer_id]

    def _take(self) -> Snapshot:
        """Show the runs that are alive first."""
        self._left = {key: left for key, left in self._left.items() if key in self._hub.runs}
        runs = sorted(self._hub.runs.values(), key=lambda run: (run.is_finished, not run.members))
        num_open = sum(not run.is_finished for run in runs)
        views = [run_view(run, self._left.get(run.facts.fingerprint, {}), self._join(run, num_open)) for run in runs]
        return Snapshot(runs=tuple(with_hints(view) for view in views[:MAX_RUNS]))

    def _join(self, run: RunState, num_open: int) -> str:
        """Return the line that brings a node in: a coordinator alone is enough to name its only run."""
        if run.is_finished:
            return ""
        if num_open == 1:
            return f"potluck join '{self._address}'"
        there = run.addresses(but="", most=1)
        return f"potluck join {plain(there[0], 300)} --coordinator '{self._address}'" if there else ""


def run_view(run: RunState, left: dict[str, Member], join: str) -> RunView:
    """Return a run as the page shows it.

    Args:
        run: It.
        left: Members that are gone.
        join: The line that brings a node in.
    """
    now, facts = time.time(), run.facts
    members = sorted(run.members.values(), key=lambda member: member.peer_id)
    total = sum(member.facts.tokens_given for member in (*members, *left.values())) or 1
    rate = sum(member.facts.tokens_per_s for member in members)
    version = min(run.version, facts.max_steps)
    latest = run.losses[-1] if run.losses else None
    held_out = [(v, loss) for v, _, loss in run.losses if loss is not None]
    held_out = held_out[:1] + [after for before, after in pairwise(held_out) if after[1] != before[1]]
    short = shlex.quote(facts.fingerprint[:12])
    return RunView(
        fingerprint=facts.fingerprint,
        name=facts.name or facts.base_model,
        base_model=facts.base_model,
        state=run.state.name.lower().replace("_", " "),
        version=version,
        max_steps=facts.max_steps,
        seconds_left=(facts.max_steps - version) * facts.target_batch_tokens / rate if rate else None,
        target_tokens=facts.target_batch_tokens,
        tokens_towards_next=int(sum(run.tokens_of(m, now) for m in members if m.facts.version == run.version)),
        tokens_per_s=rate,
        loss=latest[1] if latest else None,
        held_out_loss=held_out[-1][1] if held_out else None,
        held_out_loss_before=held_out[0][1] if held_out else None,
        training=tuple((v, loss) for v, loss, _ in run.losses),
        held_out=tuple(held_out),
        num_stages=facts.num_stages,
        num_layers=facts.num_layers,
        peers=(
            *(_peer_view(member, run, total, now) for member in members),
            *(
                _peer_view(member, run, total, now).model_copy(update={"mark": "left", "tokens_per_s": 0.0})
                for member in left.values()
            ),
        ),
        rounds=tuple(
            RoundView(
                version=report.version,
                status=report.outcome,
                members=report.num_members,
                tokens=report.tokens,
                seconds=report.seconds,
                bytes_sent=report.bytes_sent,
                reason=report.reason,
            )
            for _, report in run.rounds
        ),
        commands=Commands(
            join=join, stop=f"potluck coordinator finish {short}", export="potluck export peft --output adapter"
        ),
    )


def _peer_view(member: Member, run: RunState, total: int, now: float) -> PeerView:
    facts = member.facts
    is_slow = facts.state == "training" and facts.version + _SLOW_STEPS <= run.version
    return PeerView(
        id=member.peer_id,
        name=facts.name,
        state=facts.state,
        mark="slow" if is_slow else "",
        first_stage=facts.first_stage,
        stop_stage=facts.stop_stage,
        first_layer=_first_layer(run, facts.first_stage),
        stop_layer=_first_layer(run, facts.stop_stage),
        drives=facts.drives,
        tokens_per_s=facts.tokens_per_s,
        tokens_given=facts.tokens_given,
        share=facts.tokens_given / total,
        loss=facts.loss,
        version=facts.version,
        heard_s_ago=now - member.heard_at,
    )


def _first_layer(run: RunState, stage: int) -> int:
    """Return the layer that a stage begins with: stages differ by one layer at most, longer ones first."""
    base, extra = divmod(run.facts.num_layers, run.facts.num_stages)
    return base * stage + min(stage, extra)
