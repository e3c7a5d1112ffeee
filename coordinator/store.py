"""The coordinator's memory: one SQLite file, so that a restart goes on where it was.

Written in one transaction a second at most, away from the event loop; a `kill -9` loses that second, which the next
heartbeats bring back.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from coordinator.bounds import MemberFacts, RoundReport, RunFacts
from coordinator.run_state import Member, RunState

FORMAT = 1
FILE = "coordinator.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (fingerprint TEXT PRIMARY KEY, sealed BLOB NOT NULL, facts TEXT NOT NULL,
    state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (fingerprint TEXT, peer_id TEXT, record BLOB NOT NULL, facts TEXT NOT NULL,
    heard_at REAL NOT NULL, PRIMARY KEY (fingerprint, peer_id));
"""


class StoreError(Exception):
    """The memory cannot be used; the text says why and what to do."""


class Batch:
    """Rows to be written, made where the runs do not change meanwhile."""

    def __init__(
        self,
        runs: Iterable[RunState],
        members: Iterable[tuple[str, str, Member | None]],
        forgotten: Iterable[str] = (),
    ) -> None:
        """Take runs, members by (fingerprint, peer id), None for one that is gone, and runs that are gone."""
        told = list(members)
        self.runs = [_row(run) for run in runs]
        self.members = [_member_row(fingerprint, member) for fingerprint, _, member in told if member is not None]
        self.forgotten = [(fingerprint,) for fingerprint in forgotten]
        self.gone = [(fingerprint, peer_id) for fingerprint, peer_id, member in told if member is None]


class Store:
    """One file; used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Open or make it.

        Raises:
            StoreError: it is damaged, of a later version, or cannot be written.
        """
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            self._path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found > FORMAT:
                raise StoreError(
                    f"{self._path} was written by a newer Potluck (format {found}, this one reads {FORMAT}). "
                    "Upgrade with `pip install --upgrade potluck`, or give another --state folder."
                )
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={FORMAT}; COMMIT;")
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{self._path} cannot be used: {error}. Make room or give another --state folder; if the file is "
                "damaged, move it away: nodes tell a coordinator all it needs when they come back."
            ) from error

    def load(self) -> list[RunState]:
        """Return all runs with their members, as they were.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            return [self._run(*row) for row in self._db.execute("SELECT fingerprint, sealed, facts, state FROM runs")]
        except (sqlite3.Error, ValueError, KeyError, TypeError, ValidationError) as error:
            raise StoreError(
                f"{self._path} is damaged: {str(error)[:200]}. Move it away: nodes tell a coordinator all that it "
                "needs when they come back."
            ) from error

    def write(self, batch: Batch) -> None:
        """Write all of a batch, or nothing.

        Raises:
            StoreError: it was not written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", batch.runs)
            self._db.executemany("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)", batch.members)
            self._db.executemany("DELETE FROM members WHERE fingerprint = ? AND peer_id = ?", batch.gone)
            self._db.executemany("DELETE FROM runs WHERE fingerprint = ?", batch.forgotten)
            self._db.executemany("DELETE FROM members WHERE fingerprint = ?", batch.forgotten)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(f"{self._path} was not written: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _run(self, fingerprint: str, sealed: bytes, facts: str, state: str) -> RunState:
        told = json.loads(state)
        run = RunState(RunFacts.model_validate({**json.loads(facts), "sealed": sealed}))
        run.evicted = [str(peer) for peer in told["evicted"]]
        run.is_paused, run.is_ended, run.is_done = bool(told["paused"]), bool(told["ended"]), bool(told["done"])
        run.version, run.num_plans = int(told["version"]), int(told["plans"])
        run.rounds.extend((float(at), RoundReport.model_validate(report)) for at, report in told["rounds"])
        run.losses = deque(((int(v), float(a), b) for v, a, b in told["losses"]), maxlen=run.losses.maxlen)
        rows = self._db.execute(
            "SELECT peer_id, record, facts, heard_at FROM members WHERE fingerprint = ?", (fingerprint,)
        )
        for peer_id, record, member, heard_at in rows:
            facts_of = MemberFacts.model_validate_json(member)
            run.members[peer_id] = Member(peer_id, record, facts_of, float(heard_at))
        return run


def _row(run: RunState) -> tuple[str, bytes, str, str]:
    state = {
        "evicted": run.evicted,
        "paused": run.is_paused,
        "ended": run.is_ended,
        "done": run.is_done,
        "version": run.version,
        "plans": run.num_plans,
        "rounds": [(at, report.model_dump()) for at, report in run.rounds],
        "losses": list(run.losses),
    }
    facts = run.facts.model_dump(exclude={"sealed"})
    return run.facts.fingerprint, run.facts.sealed, json.dumps(facts), json.dumps(state)


def _member_row(fingerprint: str, member: Member) -> tuple[str, str, bytes, str, float]:
    return fingerprint, member.peer_id, member.record, member.facts.model_dump_json(), member.heard_at
