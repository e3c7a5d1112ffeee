"""When to save, and saving without holding up the training.

A checkpoint tells of exactly one committed version: the adapter as it was then, and the data cursor of what is in
it. Without `save_steps` a node saves after every step as long as saving takes less than a hundredth of its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from node.core.errors import NodeError, OutOfDisk
from node.core.events import CheckpointSaved, EventBus, Fault
from node.data.stream import Cursor
from node.training.checkpoint import Checkpoint, CheckpointStore

_SHARE_OF_TIME = 0.01
_PAUSES = "Training pauses, and goes on by itself as soon as a checkpoint can be saved."


@dataclass(frozen=True)
class Snapshot:
    """One committed version, copied."""

    version: int
    adapters: Mapping[int, bytes]
    cursor: Cursor
    counters: Mapping[str, int]
    lineage: tuple[str, ...]
    """Ids of the latest rounds behind this version, oldest first."""
    base_hash: str
    """Of the lineage."""


class Saver:
    """Writes snapshots off the event loop, one at a time; a newer one replaces one that still waits."""

    def __init__(
        self, store: CheckpointStore, *, fingerprint: str, data_digest: str, every_steps: int | None, events: EventBus
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._data_digest = data_digest
        self._every_steps = every_steps
        self._events = events
        self._lock = asyncio.Lock()
        self._cost_s = 0.0
        self._saved_at = float("-inf")
        self._refused: NodeError | None = None
        self._needed_bytes = 0
        self.saved_version = -1

    @property
    def is_blocked(self) -> bool:
        """Whether the latest save failed: no step may be made that could not be saved either."""
        return self._refused is not None

    def has_room(self) -> bool:
        """Return whether another attempt may succeed: a full disk is not filled again and again by trying."""
        return not isinstance(self._refused, OutOfDisk) or self._store.free_bytes() >= self._needed_bytes

    def is_due(self, version: int) -> bool:
        """Return whether the version that was just committed should be saved."""
        if self._lock.locked() or version <= max(self.saved_version, 0):  # version 0 can be made again from the seed
            return False
        if self._every_steps is not None:
            return version % self._every_steps == 0
        return time.monotonic() - self._saved_at >= self._cost_s / _SHARE_OF_TIME

    async def save(self, snapshot: Snapshot) -> None:
        """Save; a failure is told once, and `is_blocked` until a save succeeds.

        The cost that `is_due` weighs counts from the call, copying included.
        """
        was_blocked = self.is_blocked
        try:
            await self.save_or_raise(snapshot)
        except NodeError as error:
            if not was_blocked:
                self._events.emit(Fault(f"{error.message} {_PAUSES}", error.hint))

    async def save_or_raise(self, snapshot: Snapshot) -> None:
        """Save, and let the caller see what goes wrong.

        Raises:
            OutOfDisk: the disk is full or read-only.
            CheckpointError: the folder cannot be written.
        """
        async with self._lock:
            started = time.monotonic()
            checkpoint = Checkpoint(
                fingerprint=self._fingerprint,
                version=snapshot.version,
                adapters=snapshot.adapters,
                cursor=snapshot.cursor.as_json(),
                counters=snapshot.counters,
                random={
                    "data": self._data_digest,
                    "lineage": " ".join(snapshot.lineage),
                    "base_hash": snapshot.base_hash,
                },
            )
            self._needed_bytes = sum(len(data) for data in snapshot.adapters.values())
            try:
                size = await asyncio.to_thread(self._store.save, checkpoint)
            except NodeError as error:
                self._refused = error
                raise
            self._refused = None
            self._saved_at = time.monotonic()
            self._cost_s = self._saved_at - started
            self.saved_version = snapshot.version
        self._events.emit(CheckpointSaved(snapshot.version, self._cost_s, size))
