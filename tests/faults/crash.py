"""Crash a step in a forked child: the process is killed, or the whole machine loses its power.

A child costs a fork and no import, so that hundreds of crashes are cheap.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.durable import durable_steps, swapped
from faults.fault import Fault
from faults.injector import Injector, Points, injected

DONE, REFUSED, BROKEN = 0, 3, 4


def crashed(act: Callable[[], object], *parts: Fault | Points, also: Callable[[], object] = lambda: None) -> int:
    """Do `act` in a child in which the faults strike, and return how it ended.

    Args:
        act: What to do.
        parts: Faults at durable steps, and families beside those.
        also: Called in the child before, to switch a guard off.

    Returns:
        The negative number of the signal that killed it; `DONE`; `BROKEN` if it raised.
    """
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            also()
            with injected(*parts, durable_steps()):
                act()
            code = DONE
        except BaseException as error:  # noqa: BLE001 - a child tells and ends, whatever it was
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class PowerCut:
    """A family that sees no fault but knows which bytes no `fsync` has made durable; `strike` loses them.

    The worst that a disk may do: of a file that was not synced nothing is left but its name and zeros.
    """

    def __init__(self) -> None:
        self._dirty: dict[tuple[int, int], int] = {}
        """Inode of a file with unsynced bytes, and a descriptor of it."""

    @contextlib.contextmanager
    def install(self, injector: Injector) -> Iterator[None]:
        """Watch writes and syncs."""
        injector.on_write = self.wrote
        with swapped(os, "fsync", self._fsync(os.fsync)):
            yield

    def wrote(self, descriptor: int) -> None:
        """Note that a file has bytes that are not durable."""
        stat = os.fstat(descriptor)
        if (stat.st_dev, stat.st_ino) not in self._dirty:
            self._dirty[stat.st_dev, stat.st_ino] = os.dup(descriptor)

    def _fsync(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int) -> None:
            original(descriptor)
            stat = os.fstat(descriptor)
            self._dirty.pop((stat.st_dev, stat.st_ino), None)

        return call

    def strike(self) -> BaseException:
        """Lose what is not durable and kill this process; for `Fault(error=...)`."""
        for descriptor in self._dirty.values():
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, size)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
