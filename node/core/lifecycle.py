"""The node's life as a table: the only definition of which state may follow which.

The daemon performs one state's effect at a time and returns the signal that ended it; nothing else in the
program has a mode flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class State(Enum):
    """What a node is doing."""

    STARTING = "starting"
    JOINING = "joining"
    LOADING = "loading"
    SYNCING = "syncing"
    TRAINING = "training"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Signal(Enum):
    """What ended a state."""

    STARTED = "started"
    ASSIGNED = "assigned"
    LOADED = "loaded"
    SYNCED = "synced"
    PAUSE = "pause"
    RESUME = "resume"
    REASSIGNED = "reassigned"
    FELL_BEHIND = "fell behind"
    STOP_REQUESTED = "stop requested"
    DRAINED = "drained"
    FATAL = "fatal"


LIVE = (State.STARTING, State.JOINING, State.LOADING, State.SYNCING, State.TRAINING, State.PAUSED)

TRANSITIONS: Mapping[tuple[State, Signal], State] = MappingProxyType(
    {
        (State.STARTING, Signal.STARTED): State.JOINING,
        (State.JOINING, Signal.ASSIGNED): State.LOADING,
        (State.LOADING, Signal.LOADED): State.SYNCING,
        (State.SYNCING, Signal.SYNCED): State.TRAINING,
        (State.TRAINING, Signal.PAUSE): State.PAUSED,
        (State.PAUSED, Signal.RESUME): State.TRAINING,
        (State.TRAINING, Signal.FELL_BEHIND): State.SYNCING,
        (State.PAUSED, Signal.FELL_BEHIND): State.SYNCING,
        (State.TRAINING, Signal.REASSIGNED): State.LOADING,
        **{(state, Signal.STOP_REQUESTED): State.DRAINING for state in LIVE},
        (State.DRAINING, Signal.DRAINED): State.STOPPED,
        **{(state, Signal.FATAL): State.FAILED for state in (*LIVE, State.DRAINING)},
    }
)


def next_state(state: State, signal: Signal) -> State:
    """Return the state that follows; a pair outside the table is a bug of ours."""
    try:
        return TRANSITIONS[state, signal]
    except KeyError:
        raise AssertionError(f"{state.value} does not know the signal '{signal.value}'") from None


def diagram() -> str:
    """Return the table as lines of a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> starting"]
    lines += [f"    {a.value} --> {b.value}: {signal.value}" for (a, signal), b in TRANSITIONS.items()]
    lines += ["    stopped --> [*]", "    failed --> [*]"]
    return "\n".join(lines)
