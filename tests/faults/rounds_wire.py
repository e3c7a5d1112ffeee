"""Faults in the middle of a stream: it is cut off or stands still half-way, or its checksum is wrong.

What is to happen is a context variable, which the step that is struck sets: so it happens to that task's stream alone,
though all nodes of a test share one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

from node.network import frames, rounds

T = TypeVar("T")
_mischief: ContextVar[str] = ContextVar("mischief", default="")


def cut_off(value: T) -> T:
    """Let this task's stream break off half-way."""
    _mischief.set("cut off")
    return value


def stall(value: T) -> T:
    """Let this task's stream stand still half-way."""
    _mischief.set("stall")
    return value


def wrong_checksum(value: T) -> T:
    """Let this task tell a wrong checksum of what it sends."""
    _mischief.set("wrong checksum")
    return value


class SlowLine:
    """What a node sends over all its streams together is not faster than this."""

    def __init__(self, mbit_per_s: float) -> None:
        self.bytes_per_s = mbit_per_s * 1e6 / 8
        self._free_at_s = 0.0

    def through(self, value: T) -> T:
        """Let this task's stream go over the line."""
        _line.set(self)
        return value

    async def carry(self, num_bytes: int) -> None:
        """Wait until so many bytes more have gone."""
        self._free_at_s = max(self._free_at_s, time.monotonic()) + num_bytes / self.bytes_per_s
        await asyncio.sleep(self._free_at_s - time.monotonic())


_line: ContextVar[SlowLine | None] = ContextVar("line", default=None)


class _LyingChecksum(rounds._Checksum):
    def digest(self) -> bytes:
        digest = super().digest()
        return bytes(byte ^ 1 for byte in digest) if _mischief.get() == "wrong checksum" else digest


async def _write_bulk(writer, data, *notes, **named):
    if (line := _line.get()) is not None:
        for start in range(0, len(data), frames.CHUNK_BYTES):
            chunk = data[start : start + frames.CHUNK_BYTES]
            await line.carry(len(chunk))
            await frames.write_bulk(writer, chunk, *notes, **named)
        return
    if _mischief.get() not in ("cut off", "stall"):
        await frames.write_bulk(writer, data, *notes, **named)
        return
    await frames.write_bulk(writer, data[: len(data) // 2], *notes, **named)
    if _mischief.get() == "stall":
        await asyncio.sleep(1e9)
    writer.close()
    raise ConnectionResetError("the fault under test")


@contextlib.contextmanager
def mischief_on_the_wire(monkeypatch) -> Iterator[None]:
    """Make these faults possible."""
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write_bulk", _write_bulk)
        patch.setattr(rounds, "_Checksum", _LyingChecksum)
        yield
