"""Hands a run's figures to the trackers that the machine's owner asked for: TensorBoard, Weights & Biases, trackio.

Figures have the names that Hugging Face's Trainer gives them, so that curves of both lie over each other. A tracker's
library does as it likes with time and errors: it runs in a thread of its own, and when it fails, the node says so
once and trains on. No text, no name of a file and no peer's name is in what it gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coordinator.scrape import from_other_threads
from node.core.events import Evaluated, Event, EventBus, Fault, MicrobatchDone, RoundFinished, Stepped
from node.core.text import brief
from node.core.types import RoundStatus
from node.core.versions import software
from node.observe.metrics_read import StatusSource
from node.v1 import control_pb2

_MAX_WAITING = 10_000
_END_S = 20.0
_RUN_CHARS = 12
_WANTED = (MicrobatchDone, Stepped, Evaluated, RoundFinished)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tracked: one life of this node in a run."""

    run: str
    """The beginning of the run's fingerprint: the same on all nodes of the run."""
    name: str
    """This node's name and the time at which it began."""
    folder: Path
    """Where a tracker's files may lie, under the node's home."""
    config: Mapping[str, str | int]
    """What is trained, and how."""


class Tracker(Protocol):
    """One library, in one run."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Put points on curves; `step` may be one that was before."""

    def close(self) -> None:
        """Write and send what is left."""


OpenTracker = Callable[[Subject], Tracker]


class Figures:
    """Turns events into points of curves; losses are means in nats per token."""

    def __init__(self) -> None:
        self._loss_sum = 0.0
        self._labels = 0
        self._dropped = 0

    def take(self, event: Event) -> tuple[int, dict[str, float]] | None:
        """Return the step and the figures that `event` completes, or None."""
        match event:
            case MicrobatchDone(_, loss, _, labels, _):
                self._loss_sum += loss * labels
                self._labels += labels
            case Stepped(version, rate, norm, _, epoch):
                figures = {"train/learning_rate": rate, "train/grad_norm": norm, "train/epoch": epoch}
                if self._labels:
                    figures["train/loss"] = self._loss_sum / self._labels
                self._loss_sum, self._labels = 0.0, 0
                return version, figures
            case Evaluated(version, loss, _):
                return version, {"eval/loss": loss}
            case RoundFinished(result) if result.status is RoundStatus.COMMITTED:
                return result.version + 1, {
                    "round/members": len(result.members),
                    "round/seconds": result.seconds,
                    "round/tokens": result.tokens,
                    "round/bytes_sent": result.bytes_sent,
                }
            case RoundFinished(result) if result.status is RoundStatus.DROPPED:
                self._dropped += 1
                return result.version, {"round/dropped": self._dropped}
        return None


class Pump:
    """An event sink that feeds one tracker from a thread of its own."""

    def __init__(
        self, name: str, open_tracker: OpenTracker, status: StatusSource, folder: Path, emit: Callable[[Event], None]
    ) -> None:
        """Start the thread; the tracker is opened at the first figures, when it is known what is trained.

        Args:
            name: The tracker's, as the owner wrote it.
            open_tracker: Begins to track; whatever it raises ends the tracking alone.
            status: The node's status; called from the thread.
            folder: Where the tracker's files may lie.
            emit: Takes the fault, if there is one.
        """
        self._name = name
        self._open = open_tracker
        self._status = status
        self._folder = folder
        self._emit = emit
        self._began = time.strftime("%Y%m%d-%H%M%S")
        self._events: queue.Queue[Event | None] = queue.Queue(_MAX_WAITING)
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"track-{name}", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take in an event; never waits."""
        if isinstance(event, _WANTED) and not self._has_ended.is_set():
            # a full queue is a tracker that has stood still for long: it misses points, and training none
            with contextlib.suppress(queue.Full):
                self._events.put_nowait(event)

    def close(self) -> None:
        """Let the tracker finish, but not for longer than a few seconds; blocks."""
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self._emit(Fault(f"{self._name} has not taken the last figures within {_END_S:.0f} s."))

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                self._feed(stack)
        except Exception as error:  # noqa: BLE001  a library's error of any kind; the training must not end with it
            self._emit(
                Fault(f"{self._name} no longer tracks this run: {brief(error)}.", "Training goes on without it.")
            )
        finally:
            self._has_ended.set()

    def _feed(self, stack: contextlib.ExitStack) -> None:
        figures, tracker = Figures(), None
        while (event := self._events.get()) is not None:
            point = figures.take(event)
            if point is None:
                continue
            try:
                status = self._status()
            except TimeoutError:  # the event loop is busy: this point is not worth a wait
                continue
            step, values = point
            if tracker is None:
                tracker = self._open(self._subject(status))
                stack.callback(tracker.close)
            if isinstance(event, Stepped):
                values |= _swarm(status)
            tracker.log(step, values)

    def _subject(self, status: control_pb2.GetStatusResponse) -> Subject:
        config: dict[str, str | int] = {
            "base_model": status.base_model,
            "max_steps": status.max_steps,
            "target_batch_tokens": status.target_batch_tokens,
            "num_stages": status.num_stages,
            "potluck": software(),
        }
        return Subject(status.fingerprint[:_RUN_CHARS], f"{status.name}-{self._began}", self._folder, config)


def _swarm(status: control_pb2.GetStatusResponse) -> dict[str, float]:
    figures: dict[str, float] = {
        "train/num_input_tokens_seen": status.given.tokens_seen,
        "swarm/peers": len(status.peers),
        "swarm/tokens_per_second": status.tokens_per_s,
    }
    if status.HasField("loss"):
        figures["swarm/loss"] = status.loss
    return figures


@contextlib.asynccontextmanager
async def tracking(
    trackers: Sequence[tuple[str, OpenTracker]], status: StatusSource, events: EventBus, home: Path
) -> AsyncIterator[None]:
    """Feed trackers with what the node tells while inside; at the end give them some seconds to finish."""
    ask = from_other_threads(status, asyncio.get_running_loop())
    pumps = [Pump(name, open_tracker, ask, home / "tracked" / name, events.emit) for name, open_tracker in trackers]
    for pump in pumps:
        events.subscribe(pump)
    try:
        yield
    finally:
        await asyncio.gather(*(asyncio.to_thread(pump.close) for pump in pumps))
