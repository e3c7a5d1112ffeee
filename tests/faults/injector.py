"""Strikes at named points, and knows how often each was passed."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import fnmatch
import functools
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from faults.damage import damaged
from faults.fault import Fault


class Points(Protocol):
    """A family of points."""

    def install(self, injector: Injector) -> contextlib.AbstractContextManager[None]:
        """Let the injector see each passing until the context ends."""


class Injector:
    """Counts passings by thread-safe means and carries out the faults that are due."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self.passed: collections.Counter[str] = collections.Counter()
        """Passings of each point."""
        self.struck: list[tuple[str, str]] = []
        """Point and action of each fault that struck."""
        self.unnamed: set[str] = set()
        """Steps that were seen in the code under test and that no generated name covers: must stay empty."""
        self.on_write: Callable[[int], None] | None = None
        """Told the descriptor of a file of ours that was just written to."""
        self._counts: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()

    def due(self, point: str, this: Any = None) -> list[Fault]:
        """Note that `point` is passed, by a method of `this`; return the faults that strike now."""
        due = []
        with self._lock:
            self.passed[point] += 1
            for number, fault in enumerate(self.faults):
                if not fnmatch.fnmatchcase(point, fault.point) or (fault.where is not None and not fault.where(this)):
                    continue
                self._counts[number] += 1
                if fault.strikes(self._counts[number]):
                    due.append(fault)
                    self.struck.append((point, fault.action))
        return due

    def wrap(self, point: str | Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` as a step that faults can strike.

        Args:
            point: Its name, or a function that makes it of the arguments.
            function: A function, a method or a coroutine function.
        """

        def due(arguments: tuple[Any, ...]) -> list[Fault]:
            name = point if isinstance(point, str) else point(*arguments)
            return self.due(name, arguments[0] if arguments else None)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def step_async(*arguments: Any, **options: Any) -> Any:
                faults = due(arguments)
                with _ending_anyway(faults):
                    for fault in (f for f in faults if f.when == "before"):
                        if fault.action == "delay":
                            await asyncio.sleep(fault.seconds)
                        arguments = before(fault, arguments)
                    result = await function(*arguments, **options)
                    for _ in (f for f in faults if f.action == "repeat"):
                        result = await function(*arguments, **options)
                for fault in (f for f in faults if f.when == "after"):
                    if fault.action == "delay":
                        await asyncio.sleep(fault.seconds)
                    result = after(fault, result)
                return result

            return step_async

        @functools.wraps(function)
        def step(*arguments: Any, **options: Any) -> Any:
            faults = due(arguments)
            with _ending_anyway(faults):
                for fault in (f for f in faults if f.when == "before"):
                    if fault.action == "delay" and _is_on_a_loop():
                        # a loop must not be blocked: the step is done later, and its caller is told nothing
                        later = functools.partial(function, *arguments, **options)
                        asyncio.get_running_loop().call_later(fault.seconds, later)
                        return None
                    if fault.action == "delay":
                        time.sleep(fault.seconds)
                    arguments = before(fault, arguments)
                result = function(*arguments, **options)
                for _ in (f for f in faults if f.action == "repeat"):
                    result = function(*arguments, **options)
            for fault in (f for f in faults if f.when == "after"):
                if fault.action == "delay":
                    time.sleep(fault.seconds)
                result = after(fault, result)
            return result

        return step


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _ending_anyway(faults: Sequence[Fault]) -> Iterator[None]:
    """What ends the process after a step does so after one that failed, too."""
    try:
        yield
    except Exception:
        for fault in faults:
            if fault.when == "after" and fault.action in ("kill", "exit", "stop"):
                strike(fault)
        raise


def strike(fault: Fault) -> None:
    """Do what needs no data: fail, or end or stop this process."""
    match fault.action:
        case "fail":
            if fault.error is not None:
                raise fault.error()
            code = getattr(errno, fault.code)
            raise OSError(code, os.strerror(code))
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(77)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)


def before(fault: Fault, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Strike before a step, and return the arguments that it gets."""
    strike(fault)
    if fault.action == "change":
        assert fault.change is not None
        assert fault.argument is not None
        changed = fault.change(arguments[fault.argument])
        return (*arguments[: fault.argument], changed, *arguments[fault.argument + 1 :])
    if fault.action not in ("truncate", "corrupt", "nan"):
        return arguments
    if fault.argument is not None:
        new, found = damaged(arguments[fault.argument], fault.action)
        assert found, f"argument {fault.argument} at {fault.point} holds nothing to {fault.action}"
        return (*arguments[: fault.argument], new, *arguments[fault.argument + 1 :])
    new, found = damaged(arguments[1:], fault.action)  # never the object itself
    assert found, f"the arguments at {fault.point} hold nothing to {fault.action}"
    return (*arguments[:1], *new)


def after(fault: Fault, result: Any) -> Any:
    """Strike after a step, and return the result that its caller gets."""
    strike(fault)
    if fault.action == "change":
        assert fault.change is not None
        return fault.change(result)
    if fault.action not in ("truncate", "corrupt", "nan"):
        return result
    new, found = damaged(result, fault.action)
    assert found, f"the result at {fault.point} holds nothing to {fault.action}"
    return new


@contextlib.contextmanager
def injected(*parts: Fault | Points) -> Iterator[Injector]:
    """Let faults strike at the points of the given families until the context ends."""
    injector = Injector([part for part in parts if isinstance(part, Fault)])
    with contextlib.ExitStack() as stack:
        for family in parts:
            if not isinstance(family, Fault):
                stack.enter_context(family.install(injector))
        yield injector
