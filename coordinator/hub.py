"""All runs of a coordinator, its watchers and its memory: messages in, changes out to whoever watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from coordinator.bounds import RunFacts
from coordinator.run_state import HEARTBEAT_S, Change, Gone, Member, Refused, RunState, Seen, State, refreshed
from coordinator.store import Batch, Store, StoreError
from coordinator.tally import Tally
from coordinator.watchers import Watcher

MAX_RUNS = 64
_MAX_WATCHERS = 1024
_SAVE_EVERY_S = 1.0
_MOST_HEARTBEATS_PER_S = 20
_LONGEST_HEARTBEAT_S = 12.0
"""Less than after what a member of a small run is taken for gone, so that none is when a large one shrinks."""


class Hub:
    """Everything that a coordinator knows; touched on the event loop alone."""

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        """Take up what the memory holds.

        Raises:
            StoreError: it is damaged.
        """
        self._store = store
        self._say = say
        self._watchers: dict[str, set[Watcher]] = {}
        self._unsaved_runs: set[str] = set()
        self._unsaved_members: dict[tuple[str, str], Member | None] = {}
        self._wake = asyncio.Event()
        self._due: dict[str, float] = {}
        """The Unix time at which something happens by itself in a run, by fingerprint."""
        self._is_closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._has_told_of_disk = False
        self.listeners: list[Callable[[str, Change], None]] = []
        """Called with each run's fingerprint and what has changed."""
        self.tally = Tally()
        now = time.time()
        self.runs: dict[str, RunState] = {}
        for run in store.load():
            run.members = {id: refreshed(member, now) for id, member in run.members.items()}
            self.runs[run.facts.fingerprint] = run
            self._due[run.facts.fingerprint] = run.next_tick(now)

    def start(self) -> None:
        """Begin to let time pass, and to save."""
        self._tasks = [asyncio.create_task(self._tick_on()), asyncio.create_task(self._save_on())]

    async def close(self) -> None:
        """Save what there is, and end."""
        self._is_closing.set()  # not cancelled: a transaction may be under way in its thread
        for task in self._tasks[:-1]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._save()
        self._store.close()

    def enter(self, fingerprint: str, told: RunFacts | None) -> RunState:
        """Return the run that a caller means, founded if it is new and the caller tells it.

        Raises:
            Refused: there is none, or the caller has to choose.
        """
        if fingerprint in self.runs:
            return self.runs[fingerprint]
        if told is not None and told.fingerprint == fingerprint:
            return self._found(told)
        if fingerprint:
            raise Refused("this coordinator does not know that run")
        open_runs = [run for run in self.runs.values() if run.state is not State.FINISHED]
        if not open_runs:
            raise Refused("it has no run yet: start one with `potluck start RECIPE --coordinator ADDRESS`")
        if len(open_runs) > 1:
            names = "; ".join(f"{run.facts.name or run.facts.base_model}" for run in open_runs[:8])
            raise Refused(f"it has {len(open_runs)} runs ({names}): join by the address of one of the swarm's nodes")
        return open_runs[0]

    def _found(self, facts: RunFacts) -> RunState:
        if len(self.runs) >= MAX_RUNS:
            left = [run for run in self.runs.values() if not run.members and (run.is_finished or not run.version)]
            if not left:
                raise Refused(f"this coordinator has {MAX_RUNS} runs, which is all that it takes")
            forgotten = min(left, key=lambda run: not run.is_finished).facts.fingerprint
            del self.runs[forgotten]
            self._due.pop(forgotten, None)
            self._unsaved_runs.add(forgotten)
        run = self.runs[facts.fingerprint] = RunState(facts)
        self._unsaved_runs.add(facts.fingerprint)
        self._say(f"New run {facts.name or facts.base_model} ({facts.fingerprint[:12]}).")
        return run

    def changed(self, run: RunState, changes: list[Change]) -> None:
        """Pass on what has changed, and remember it."""
        fingerprint = run.facts.fingerprint
        for change in changes:
            if isinstance(change, Seen):
                self._unsaved_members[fingerprint, change.member.peer_id] = change.member
            elif isinstance(change, Gone):
                self._unsaved_members[fingerprint, change.peer_id] = None
            for watcher in self._watchers.get(fingerprint, ()):
                watcher.tell(change)
            for listener in self.listeners:
                listener(fingerprint, change)
        self._unsaved_runs.add(fingerprint)
        run.heartbeat_s = self._heartbeat_s()
        due = run.next_tick(time.time())
        if due < min(self._due.values(), default=float("inf")):
            self._wake.set()
        self._due[fingerprint] = due

    def _heartbeat_s(self) -> float:
        """Return how often members are to call: less often where there are many, of all runs together."""
        num_members = sum(len(run.members) for run in self.runs.values())
        return min(_LONGEST_HEARTBEAT_S, max(HEARTBEAT_S, num_members / _MOST_HEARTBEATS_PER_S))

    @contextlib.contextmanager
    def watching(self, run: RunState) -> Iterator[Watcher]:
        """Let somebody watch a run.

        Raises:
            Refused: too many do.
        """
        if self.num_watchers >= _MAX_WATCHERS:
            raise Refused("too many are watching")
        watcher = Watcher(run)
        watchers = self._watchers.setdefault(run.facts.fingerprint, set())
        watchers.add(watcher)
        try:
            yield watcher
        finally:
            watchers.discard(watcher)

    @property
    def num_watchers(self) -> int:
        """How many watch, all runs together."""
        return sum(map(len, self._watchers.values()))

    async def _tick_on(self) -> None:
        """Let each run know the time when something is due in it."""
        while True:
            now = time.time()
            for fingerprint in [fingerprint for fingerprint, due in self._due.items() if due <= now]:
                run = self.runs[fingerprint]
                self.changed(run, run.tick(now))
            due = min(self._due.values(), default=float("inf"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(60.0, max(0.002, due - time.time()))):
                    await self._wake.wait()
            self._wake.clear()

    async def _save_on(self) -> None:
        while not self._is_closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_EVERY_S):
                    await self._is_closing.wait()
            try:
                await self._save()
                self._has_told_of_disk = False
            except StoreError as error:  # the swarm needs no memory of ours: go on, and try again
                if not self._has_told_of_disk:
                    self._has_told_of_disk = True
                    self._say(f"{error}. Going on; what is known is written when there is room.")

    async def _save(self) -> None:
        runs, members = self._unsaved_runs, self._unsaved_members
        if not runs and not members:
            return
        self._unsaved_runs, self._unsaved_members = set(), {}
        rows = [(fingerprint, peer_id, member) for (fingerprint, peer_id), member in members.items()]
        known = [self.runs[fingerprint] for fingerprint in runs if fingerprint in self.runs]
        forgotten = [fingerprint for fingerprint in runs if fingerprint not in self.runs]
        try:
            await asyncio.to_thread(self._store.write, Batch(known, rows, forgotten))
        except StoreError:
            self._unsaved_runs |= runs
            self._unsaved_members = {**members, **self._unsaved_members}
            raise
