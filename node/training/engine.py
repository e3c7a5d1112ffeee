"""The one thread that touches the model.

The device has a single owner, so `model/` and the adapter need no locks: whatever else happens in the process,
their code runs here, one job at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from typing import ParamSpec, TypeVar

import torch

from node.core.errors import OutOfDeviceMemory

P = ParamSpec("P")
R = TypeVar("R")


class Priority(IntEnum):
    """Who goes first; first come, first served within one priority.

    A backward frees what its forward holds, and a neighbour waits for both, so others' work goes before our own. The
    next word of a text is little work, and a person waits for it.
    """

    WORD = 0
    BACKWARD = 1
    FORWARD = 2
    OWN = 3


_CLOSING = len(Priority)
"""Below every priority, so that closing runs what is queued first."""

_Job = tuple[int, int, Callable[[], None]]


class Engine:
    """A thread with a priority queue in front of it, for use from asyncio."""

    def __init__(self, *, num_threads: int | None = None, name: str = "engine") -> None:
        """Start the thread.

        Args:
            num_threads: Threads that torch may use inside one operation; None leaves torch's own choice.
            name: Name of the thread, as debuggers and `top -H` show it.
        """
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._order = itertools.count()
        self._closed = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._work, args=(num_threads,), name=name, daemon=True)
        self._thread.start()

    async def run(self, priority: Priority, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function(*args, **kwargs)` on the engine's thread and return its result.

        Cancelling the caller drops a job that has not begun. A job that has begun runs to its end, and its result
        is thrown away.

        Raises:
            OutOfDeviceMemory: The device has no room for what `function` wanted.
            RuntimeError: The engine is closed.
            Exception: Whatever `function` raised.
        """
        return await asyncio.wrap_future(self.submit(priority, function, *args, **kwargs))

    def submit(self, priority: Priority, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queue a job from any thread and return its future; otherwise as `run`."""
        future: Future[R] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it belongs to the awaiter, whatever it is
                future.set_exception(_as_ours(error))
            else:
                future.set_result(result)

        with self._gate:
            if self._closed:
                raise RuntimeError("The engine is closed and takes no more work.")
            self._jobs.put((priority, next(self._order), job))
        return future

    @property
    def num_queued(self) -> int:
        """Jobs that have not begun, about (other threads may be adding some)."""
        return self._jobs.qsize()

    async def close(self) -> None:
        """Run what is queued, then end the thread. Closing twice is harmless."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._jobs.put((_CLOSING, next(self._order), lambda: None))
        await asyncio.to_thread(self._thread.join)

    def _work(self, num_threads: int | None) -> None:
        if num_threads is not None:
            # From inside: the OpenMP setting belongs to the thread that makes it.
            torch.set_num_threads(num_threads)
        while True:
            priority, _, job = self._jobs.get()
            job()
            # The last job's arguments and result may be large tensors: let go of them before waiting.
            del job
            if priority == _CLOSING:
                return


def _as_ours(error: BaseException) -> BaseException:
    """Turn torch's ways of saying "out of memory" into an error with a hint; return any other as it is."""
    is_cuda = isinstance(error, torch.OutOfMemoryError)
    is_host = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator has no class
    )
    if not (is_cuda or is_host):
        return error
    reason = str(error).strip().split("\n")[0]
    if is_cuda:
        # What the failed step left in the cache is in the way of whoever tries something smaller.
        torch.cuda.empty_cache()
    where = "the GPU" if is_cuda else "this machine"
    ours = OutOfDeviceMemory(
        f"A training step does not fit into the memory of {where}. {reason}",
        hint="Lower `micro_batch_size` or `sequence_len`, set `gradient_checkpointing: true`, or close other "
        "programs that use this memory. `potluck plan` shows what a recipe needs.",
    )
    # Only the text is kept: the traceback's frames hold the very tensors that did not fit.
    ours.__suppress_context__ = True
    return ours
