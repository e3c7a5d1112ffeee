"""The points where a node changes the disk, generated from the code: `module:function:operation`.

`names()` reads the sources and names every call that opens a file for writing, writes, syncs, renames or removes.
While the family is installed the primitives behind those calls (`os.fsync`, `os.rename`, `io.open`, ...) look up the
stack for the line of `node/` that they serve, and that line's name is the point. A primitive that serves a line without
a name is noted in `Injector.unnamed`, so the list cannot fall behind the code unseen.

Two calls of one operation in one function are told apart by `#2`, in the order of their lines.
"""

from __future__ import annotations

import _io
import ast
import builtins
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from faults.injector import Injector

ROOT = Path(__file__).parent.parent.parent / "node"
_OPERATIONS = {
    "fsync", "flush", "rename", "mkdir", "makedirs", "unlink", "remove", "rmdir", "rmtree", "write", "write_bytes",
    "write_text", "truncate", "mkdtemp", "NamedTemporaryFile", "fdopen", "save_pretrained",
}  # fmt: skip
_NO_STATE = {
    "v1": "generated",
    "cli": "writes recipes for people, and refuses to replace one",
    "demo": "writes a folder of its own that is made anew",
    "observe": "the log; what is lost of it is told by nothing else, and nothing depends on it",
    "doctor": "a file without a name, to see whether there is room",
    "data/demo_data.py": "writes the demo's rows, made anew from a seed",
    "control/server.py": "a pointer and a socket of a running node, made anew at each start",
    "dashboard.py": "the page's address, of a running node, made anew at each start",
    "core/sockets.py": "sockets of a running node, made anew at each start",
}
"""Rooms and files that keep no state of a run, and why."""
_STREAMS = {"writer", "reader", "stream", "sys", "stdout"}
"""Receivers of a `write` that are no files."""


class DurablePoints:
    """The family of these points."""

    @contextlib.contextmanager
    def install(self, injector: Injector) -> Iterator[None]:
        """Let the injector see each passing."""
        with contextlib.ExitStack() as stack:
            for name in ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir"):
                stack.enter_context(swapped(os, name, _primitive(injector, name, getattr(os, name))))
            stack.enter_context(swapped(os, "open", _os_open(injector, os.open)))
            opened = _io_open(injector, io.open)
            for module in (io, _io, builtins):
                stack.enter_context(swapped(module, "open", opened))
            yield


def durable_steps() -> DurablePoints:
    """Return the family, for `injected`."""
    return DurablePoints()


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all points in `node/`, in the order of the code."""
    return tuple(dict.fromkeys(name for path in _sources() for name in _named_lines(path).values()))


def _sources() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if not _keeps_no_state(path)]


def _keeps_no_state(path: Path) -> bool:
    inside = path.relative_to(ROOT)
    return inside.parts[0] in _NO_STATE or inside.as_posix() in _NO_STATE


@functools.cache
def _named_lines(path: Path) -> dict[int, str]:
    """Return the points of a source file by line; a call over several lines is there with each."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    lines: dict[int, str] = {}
    seen: dict[str, int] = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entered = {id(item.context_expr) for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items}
    for where, call in sorted(_calls(tree), key=lambda found: found[1].lineno):
        if (operation := _operation(call, is_entered=id(call) in entered)) is None:
            continue
        name = f"{module}:{where}:{operation}"
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}#{seen[name]}"
        lines.update(dict.fromkeys(range(call.lineno, (call.end_lineno or call.lineno) + 1), name))
    return lines


def _calls(tree: ast.AST, where: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the qualified name of the function or method around it."""
    for node in ast.iter_child_nodes(tree):
        inner = where
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{where}.{node.name}".lstrip(".")
        if isinstance(node, ast.Call):
            yield where, node
        yield from _calls(node, inner)


def _operation(call: ast.Call, *, is_entered: bool) -> str | None:
    """Return what a call does to the disk, or None."""
    function = call.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if owner.split(".")[-1].strip("_") in _STREAMS:
        return None
    if name == "open":
        return "open" if _is_for_writing(call, owner) else None
    if name == "replace":  # of a string or a dataclass has another form
        is_file = owner == "os" or (len(call.args) == 1 and not call.keywords and owner != "dataclasses")
        return "replace" if is_file else None
    if (name == "FileLock" and is_entered) or (name == "acquire" and owner.endswith("lock")):
        return "lock"
    if name == "remove" and owner != "os":  # of a list
        return None
    return name if name in _OPERATIONS and isinstance(function, ast.Attribute) else None


def _is_for_writing(call: ast.Call, owner: str) -> bool:
    if owner == "os":
        return any("O_CREAT" in ast.unparse(argument) for argument in call.args)
    modes = [argument for argument in call.args if isinstance(argument, ast.Constant)]
    return any(isinstance(mode.value, str) and set("wax+") & set(mode.value) for mode in modes)


def _point(injector: Injector, primitive: str) -> str | None:
    """Return the point that the present call serves; None for a caller outside `node/` or in another room.

    A finalizer serves no line: it runs wherever the garbage collector happens to (hivemind's removes its sockets).
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "__del__":
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            if _keeps_no_state(path):
                return None
            point = _named_lines(path).get(frame.f_lineno)
            if point is None:
                injector.unnamed.add(f"{path.relative_to(ROOT)}:{frame.f_lineno} {primitive}")
            return point
        frame = frame.f_back
    return None


@contextlib.contextmanager
def swapped(module: Any, name: str, new: Any) -> Iterator[None]:
    old = getattr(module, name)
    setattr(module, name, new)
    try:
        yield
    finally:
        setattr(module, name, old)


def _primitive(injector: Injector, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        point = _point(injector, name)
        return (
            original(*arguments, **options) if point is None else injector.wrap(point, original)(*arguments, **options)
        )

    return call


def _os_open(injector: Injector, original: Callable[..., int]) -> Callable[..., int]:
    def call(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        point = _point(injector, "os.open") if flags & os.O_CREAT else None
        step = original if point is None else injector.wrap(point, original)
        return step(path, flags, *arguments, **options)

    return call


def _io_open(injector: Injector, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set("wax+") & set(mode):
            return original(file, mode, *arguments, **options)
        point = _point(injector, "open")
        if point is None:
            return original(file, mode, *arguments, **options)
        return _File(injector, injector.wrap(point, original)(file, mode, *arguments, **options))

    return call


class _File:
    """A file that was opened for writing by `node/`: its writes are points too."""

    def __init__(self, injector: Injector, file: Any) -> None:
        self._injector = injector
        self._file = file

    def write(self, data: Any) -> int:
        point = _point(self._injector, "write")
        if point is None:
            return int(self._file.write(data))
        return int(self._injector.wrap(point, _File._write_through)(self, data))

    def _write_through(self, data: Any) -> int:
        """Write to the kernel at once: a process that is killed right after has written it."""
        written = self._file.write(data)
        self._file.flush()
        if self._injector.on_write is not None:
            self._injector.on_write(self._file.fileno())
        return int(written)

    def flush(self) -> None:
        point = _point(self._injector, "flush")
        (self._file.flush if point is None else self._injector.wrap(point, self._file.flush))()

    def truncate(self, *size: int) -> int:
        point = _point(self._injector, "truncate")
        step = self._file.truncate if point is None else self._injector.wrap(point, self._file.truncate)
        return int(step(*size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)
