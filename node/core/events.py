"""Facts that a running node tells about itself, and the bus that carries them.

Sinks (the terminal, the log, `status`, tests) read events; code never logs and emits the same fact. No
event holds training text.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from node.core.types import PeerId, RoundResult


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; `kind` on the wire and in logs is the class's name."""


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """The node's lifecycle moved."""

    before: str
    after: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The node can be reached."""

    peer_id: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Holding(Event):
    """The node has decided which stages to hold; half-open, both 0 for none."""

    first_stage: int
    stop_stage: int
    num_stages: int
    layers: str
    """For people."""


@dataclass(frozen=True, slots=True)
class MicrobatchDone(Event):
    """One microbatch of this node's own data went forward and backward."""

    id: int
    loss: float
    tokens: int
    labels: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MicrobatchRetried(Event):
    """A microbatch goes on with other peers, or is done again; it still counts once."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class StagesMissing(Event):
    """Nobody holds some layers: this node's training waits until somebody brings them."""

    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class StagesFound(Event):
    """Somebody brought the layers that were missing: training goes on."""


@dataclass(frozen=True, slots=True)
class RoundStarted(Event):
    """An averaging round was opened."""

    version: int
    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class RoundFinished(Event):
    """An averaging round ended, one way or the other."""

    result: RoundResult


@dataclass(frozen=True, slots=True)
class Stepped(Event):
    """The optimizer made one step; `version` is the one after it."""

    version: int
    learning_rate: float
    gradient_norm: float
    adapter_hash: str
    epoch: float


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """The held-out split was scored."""

    version: int
    loss: float
    labels: int


@dataclass(frozen=True, slots=True)
class AdapterSynced(Event):
    """The adapter and the optimizer's state were fetched from a peer."""

    peer_id: PeerId
    version: int
    bytes_received: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkLost(Event):
    """This node follows another lineage, in which some of what it had brought to rounds is missing for good."""

    tokens: int
    """Of this node's own data."""


@dataclass(frozen=True, slots=True)
class CheckpointSaved(Event):
    """A checkpoint is on disk, synced."""

    version: int
    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PeerSeen(Event):
    """A peer appeared in the swarm."""

    peer_id: PeerId
    name: str


@dataclass(frozen=True, slots=True)
class PeerLost(Event):
    """A peer left, or its record expired."""

    peer_id: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class CoordinatorFound(Event):
    """The coordinator is there, for the first time or again."""

    target: str
    """HOST:PORT."""


@dataclass(frozen=True, slots=True)
class CoordinatorLost(Event):
    """The coordinator is not there; the node looks for it again and again, and trains on meanwhile."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class OperatorSaid(Event):
    """The run's operator lets it rest, lets it go on, or has ended it."""

    what: str
    """`paused`, `resumed` or `finished`."""


@dataclass(frozen=True, slots=True)
class Fault(Event):
    """Something went wrong that the node survived."""

    what: str
    hint: str = ""


def as_record(event: Event) -> dict[str, object]:
    """Return the event as plain JSON-ready values, its class's name under `event`."""
    return {"event": type(event).__name__, **_plain(dataclasses.asdict(event))}  # type: ignore[dict-item]


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


class EventBus:
    """Fan events out to sinks, synchronously and from any thread.

    A sink must not block. A sink that raises is a bug and the error is the emitter's.
    """

    def __init__(self) -> None:
        self._sinks: list[Callable[[Event], None]] = []
        self._lock = threading.Lock()

    def subscribe(self, sink: Callable[[Event], None]) -> None:
        """Call `sink` with every later event."""
        with self._lock:
            self._sinks.append(sink)

    def emit(self, event: Event) -> None:
        """Hand `event` to every sink."""
        with self._lock:
            sinks = tuple(self._sinks)
        for sink in sinks:
            sink(event)
