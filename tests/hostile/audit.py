"""What code must never do because of what came in: run a text, unpickle, start a program, write outside its folders.

A hook of the interpreter cannot be removed, so this one is made once and watches while it is told to.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_ALWAYS = {
    "pickle.find_class",
    "marshal.loads",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
}
_CODE = {"exec", "compile"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TREES = tuple(str(Path(path).resolve()) for path in {sys.prefix, sys.base_prefix, Path(__file__).parent.parent.parent})
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}


class Audit:
    """The hook: `seen` has what happened, while `watching`."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._roots: tuple[str, ...] | None = None
        self._busy = threading.local()
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def watching(self, *roots: Path) -> Iterator[list[str]]:
        """Note all that is not allowed; writing is, below `roots`."""
        self.seen = []
        self._roots = tuple(os.path.realpath(root) for root in roots)
        try:
            yield self.seen
        finally:
            self._roots = None

    def _hook(self, event: str, arguments: tuple) -> None:
        if self._roots is None or getattr(self._busy, "now", False):
            return
        if event not in _ALWAYS and event not in _CODE and event != "open" and event not in _CHANGES:
            return
        self._busy.now = True
        try:
            if what := self._wrong(event, arguments):
                self.seen.append(what)
        finally:
            self._busy.now = False

    def _wrong(self, event: str, arguments: tuple) -> str:
        if event in _ALWAYS:
            return "" if event == "marshal.loads" and _is_importing() else f"{event} {arguments!r:.200}"
        if event in _CODE:
            name = getattr(arguments[0], "co_filename", "") if event == "exec" else str(arguments[1])
            return "" if _is_ours(name) else f"{event} of {name!r:.100}"
        if event == "open":
            path, mode, flags = arguments
            is_written = bool((flags or 0) & _WRITES) or any(letter in (mode or "") for letter in "wax+")
            if not is_written or isinstance(path, int):
                return ""
            return self._outside(event, path)
        return self._outside(event, arguments[0])

    def _outside(self, event: str, path: object) -> str:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return ""
        real = os.path.realpath(os.fsdecode(path))
        if os.path.basename(real).startswith("p2pclient-"):  # a daemon of an earlier test, of which the rest goes late
            return ""
        is_inside = any(real == root or real.startswith(root + os.sep) for root in self._roots or ())
        return "" if is_inside or real in ("/dev/null", f"/proc/{os.getpid()}/clear_refs") else f"{event} {real}"


def _is_ours(name: str) -> bool:
    """Whether code comes from a file of this program, its libraries or its tests: an import."""
    return name.startswith("<frozen") or (os.path.isabs(name) and os.path.realpath(name).startswith(_TREES))


def _is_importing() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


AUDIT = Audit()
