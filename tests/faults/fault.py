"""What a fault is: where, what, on which passing. As data, so that a test can hand it to a daemon in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter

Action = Literal["fail", "delay", "repeat", "truncate", "corrupt", "nan", "change", "kill", "exit", "stop"]
"""
fail      raise `OSError(code)`, or `error` if there is one
delay     wait `seconds` (a coroutine sleeps on its loop; a thread blocks); `seconds=1e9` is a stall
repeat    do the step twice; the second one's result counts
truncate  the second half of the first bytes, text or tensor in the step's data is gone
corrupt   one bit of it is flipped (one character of a text, one element of a tensor)
nan       one element of the first tensor is NaN
change    `change` makes something else of the step's `argument`, or of its result
kill      SIGKILL to the own process
exit      `os._exit`: no handler and no `finally` runs, but the kernel closes files in order
stop      SIGSTOP to the own process
"""


@dataclass(frozen=True)
class Fault:
    """One fault at one point."""

    point: str
    """A point's name, or a pattern of `fnmatch`."""
    action: Action
    nth: int = 1
    """The passing on which it strikes first, from 1."""
    times: int = 1
    """Passings that it strikes; 0 for all that follow."""
    when: Literal["before", "after"] = "before"
    """Before: the step's arguments are damaged, or the step is not done. After: it was done; its result is damaged."""
    code: str = "EIO"
    """Of the OSError."""
    seconds: float = 0.0
    argument: int | None = None
    """Which positional argument is damaged; None: the first that holds bytes, a text or a tensor."""
    error: Callable[[], BaseException] | None = field(default=None, metadata={"in_process": True})
    """Makes the error of `fail` (in a process only)."""
    change: Callable[[Any], Any] | None = field(default=None, metadata={"in_process": True})
    """Returns what is handed on instead (in a process only)."""
    where: Callable[[Any], bool] | None = field(default=None, metadata={"in_process": True})
    """Strikes, and counts, for this object alone: it is given the method's `self` (in a process only)."""

    def strikes(self, passing: int) -> bool:
        """Return whether it strikes on this passing of the point, counted from 1."""
        return passing >= self.nth and (self.times == 0 or passing < self.nth + self.times)


@dataclass(frozen=True)
class _Stored:
    point: str
    action: Action
    nth: int = Field(default=1, ge=1)
    times: int = Field(default=1, ge=0)
    when: Literal["before", "after"] = "before"
    code: str = "EIO"
    seconds: float = 0.0
    argument: int | None = None


_FILE = TypeAdapter(list[_Stored])


def write_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Write faults for a daemon."""
    assert not any(fault.where or fault.error or fault.change for fault in faults), "a function cannot go into a file"
    names = _Stored.__dataclass_fields__
    path.write_bytes(_FILE.dump_json([_Stored(**{name: getattr(fault, name) for name in names}) for fault in faults]))


def read_faults(path: Path) -> tuple[Fault, ...]:
    """Read them back."""
    return tuple(Fault(**vars(stored)) for stored in _FILE.validate_json(path.read_bytes()))
