"""A folder for the sockets of a running process, which goes when the process does, however it ends.

Its path is short, since a socket's has at most 107 bytes and a home may be deep. A process that is killed removes
nothing; so a shell beside it waits at a pipe that this process alone holds open, and removes the folder at its end. If
even that one is killed, as when the machine goes down, the next start under the same home removes the folder. A lock
in it says whether its process lives: a home that was copied names the folder of the node it was copied from.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from node.core.errors import OutOfDisk

_PREFIX = "potluck-"
_POINTER = "sockets"
_LOCK = "lock"
_UNTIL_THE_END = 'read -r _; rm -rf -- "$1"'
_CLOSE_S = 5.0


class SocketFolder:
    """The folder; one process at a time under one home."""

    def __init__(self, home: Path) -> None:
        """Make it, and remove what the process before has left.

        Raises:
            OutOfDisk: there is no room for temporary files.
        """
        pointer = home / _POINTER
        _remove_stale(pointer)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise OutOfDisk(
                f"Cannot make a folder for sockets in {tempfile.gettempdir()}: {error.strerror}.",
                hint="Make room there, or name another place in the variable TMPDIR.",
            ) from error
        with contextlib.suppress(OSError):  # it is needed only if the watcher, too, was killed
            pointer.parent.mkdir(parents=True, exist_ok=True)
            pointer.write_text(str(self.path), encoding="utf-8")
        self._watcher = _watch(self.path)

    def close(self) -> None:
        """Remove it with all sockets in it."""
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watcher.wait(_CLOSE_S)
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _watch(folder: Path) -> subprocess.Popen[bytes] | None:
    """Start what removes `folder` when this process ends; in a session of its own, so that no terminal ends it."""
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _UNTIL_THE_END, "potluck-sockets", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError:
        return None  # the next start removes it


def _remove_stale(pointer: Path) -> None:
    """Remove the folder that `pointer` names, if it can be one of ours and nobody lives in it."""
    try:
        stale = Path(pointer.read_text(encoding="utf-8", errors="replace")[:200])
        if stale.parent != Path(tempfile.gettempdir()) or not stale.name.startswith(_PREFIX):
            return
        lock = os.open(stale / _LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        if _is_free(lock):
            shutil.rmtree(stale, ignore_errors=True)
    finally:
        os.close(lock)


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
