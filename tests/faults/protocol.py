"""The points of an averaging round, generated from the code: steps of its classes, and each word sent or received.

A public method of `Exchange`, `Streams` or `RoundTransport` is a step; what sends or takes in a word of the round has
one point for each kind of word. A new method or word is a new point, and `test_protocol_points.py` says so when no
test of the matrix strikes there.

    Exchange.parts_for       the parts that go to another member       while sending, truncate or NaN: `when="after"`
    RoundTransport.exchange  the stream to another member              while sending and gathering
    Exchange.take_parts      parts that came in                        while reducing (argument 2)
    Exchange.reduce          this node's spans                         while reducing; its result is (bulks, results)
    Exchange.take_spans      reduced spans that came back              while gathering (argument 2)
    RoundTransport.send:Vote, Averager.received:Vote                   while voting; and so for each word
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from faults.injector import Injector
from node.averaging.exchange import Exchange
from node.averaging.round import Averager
from node.averaging.streams import Streams
from node.core.round_messages import Message
from node.network.rounds import RoundTransport

WORDS = tuple(kind.__name__ for kind in get_args(Message))
_CLASSES: tuple[type, ...] = (Exchange, Streams, RoundTransport)
_CARRIES_WORD = {"RoundTransport.send", "Averager.received"}
"""Methods whose last argument is a word of the round."""
_NO_STEPS = {
    "Exchange.share_of": "looks something up",
    "Exchange.close": "ends a round that has ended",
    "Streams.forget": "ends a round that has ended",
    "RoundTransport.rpc_word": "hivemind reads the signature of its handlers; what it does has the points of `received`",
    "RoundTransport.open": "start-up, before any round",
    "RoundTransport.close": "shut-down, after any round",
}


@dataclass(frozen=True)
class Step:
    """One method, and the names of its points."""

    owner: type
    method: str

    @property
    def name(self) -> str:
        """Of the point, without a word."""
        return f"{self.owner.__name__}.{self.method}"

    @property
    def points(self) -> tuple[str, ...]:
        """The names of all its points."""
        return tuple(f"{self.name}:{word}" for word in WORDS) if self.name in _CARRIES_WORD else (self.name,)

    @property
    def point_of(self) -> str | Callable[..., str]:
        """The point's name, or what makes it of the arguments."""
        return (
            (lambda *arguments: f"{self.name}:{type(arguments[-1]).__name__}")
            if self.name in _CARRIES_WORD
            else self.name
        )


def steps() -> tuple[Step, ...]:
    """Return all steps of a round, from the code."""
    methods = [(owner, name) for owner in _CLASSES for name, value in vars(owner).items() if inspect.isfunction(value)]
    found = [Step(owner, name) for owner, name in methods if not name.startswith("_")]
    return (*(step for step in found if step.name not in _NO_STEPS), Step(Averager, "received"))


class ProtocolPoints:
    """The family of these points."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all points."""
        return tuple(point for step in steps() for point in step.points)

    @contextlib.contextmanager
    def install(self, injector: Injector) -> Iterator[None]:
        """Let the injector see each passing; handlers must be registered (`open`) within the context."""
        originals: list[tuple[type, str, Any]] = []
        try:
            for step in steps():
                function = vars(step.owner)[step.method]
                originals.append((step.owner, step.method, function))
                setattr(step.owner, step.method, injector.wrap(step.point_of, function))
            yield
        finally:
            for owner, method, function in originals:
                setattr(owner, method, function)


def protocol_steps() -> ProtocolPoints:
    """Return the family, for `injected`."""
    return ProtocolPoints()
