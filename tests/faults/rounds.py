"""The matrix of round faults: what strikes, at which step of the protocol, in whose act.

A node is member, reducer and leader at once; the role says in which capacity it errs: a member in what it brings and
says, a reducer in what it takes in and gives out, a leader in what it says to all (and in what it brings and reduces).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from faults.fault import Fault
from faults.rounds_wire import cut_off, stall, wrong_checksum
from node.core.round_messages import SpanResult
from node.network.rounds import Bulk, Parts, PeerLost, digest_of

FAULTS = ("fail", "stall", "repeat", "wrong shape", "NaN", "wrong hash")
POINTS = ("before", "while sending", "while reducing", "while gathering", "while voting")
ROLES = ("member", "reducer", "leader")
SIZES = (3, 4, 5)
FOREVER_S = 1e9

IMPOSSIBLE = {
    ("NaN", "before", "reducer"): "it says how many bytes it expects, which are whole numbers",
    ("wrong hash", "before", "reducer"): "it has no digest to tell yet",
    **{(fault, "while reducing", "member"): "what reduces is a reducer" for fault in FAULTS},
    **{
        (fault, "while voting", "reducer"): "to vote is a member's act; a reducer's is what the vote says of its span"
        for fault in ("fail", "stall", "repeat")
    },
}
"""Cells that cannot be, and why."""

UNSEEN = {("wrong hash", "while sending", "reducer")}
"""A bit that flips in a reducer's memory after its checksum: nobody can know, and all hold the same (wrong) mean."""
ALONE_ASTRAY = {("wrong hash", "while gathering", "member")}
"""A bit that flips in a member's memory after the digest was checked: it votes for what it does not hold, steps to
other bits, and is told apart by its hash."""


@dataclass(frozen=True)
class Cell:
    """One fault at one point in one role, struck at one step of the code."""

    fault: str
    point: str
    role: str
    step: str
    """A name of `faults.protocol`; empty for sums that are bad before a round begins."""
    strike: Fault | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Its place in the matrix."""
        return self.fault, self.point, self.role

    @property
    def id(self) -> str:
        """For people."""
        step = self.step.removeprefix("RoundTransport.")
        return f"{self.fault}, {self.point}, {self.role} ({step or 'sums'})"


def cells() -> tuple[Cell, ...]:
    """Return all that can be, in the order of the matrix."""
    found = [cell for role in ROLES for cell in (*_before(role), *_bulk(role), *_votes(role))]
    return tuple(sorted(found, key=lambda c: (FAULTS.index(c.fault), POINTS.index(c.point), ROLES.index(c.role))))


def _before(role: str) -> Iterator[Cell]:
    if role == "reducer":
        yield from _cells("before", role, "Streams.expect_parts", {
            "fail": _fail(),
            "stall": {"action": "delay", "seconds": FOREVER_S},
            "repeat": {"action": "repeat"},
            "wrong shape": _after(lambda sizes: tuple(size + 4 for size in sizes)),
        })  # fmt: skip
        return
    if role == "member":
        yield from _cells("before", role, "RoundTransport.send:Answer", {
            **_words(),
            "wrong shape": _word(lambda answer: replace(answer, sizes=tuple((s, n + 1) for s, n in answer.sizes))),
            "wrong hash": _word(lambda answer: replace(answer, hashes=tuple((s, "0bad") for s, _ in answer.hashes))),
        })  # fmt: skip
        yield Cell("NaN", "before", role, "")
        return
    yield from _cells("before", role, "RoundTransport.send:Call", {
        **_words(),
        "wrong shape": _word(lambda call: replace(call, settings=call.settings + "1")),
        "NaN": _word(lambda call: replace(call, budget_s=float("nan"))),
        "wrong hash": _word(lambda call: replace(call, standing=replace(call.standing, base_hash="0bad"))),
    })  # fmt: skip
    yield from _cells("before", role, "RoundTransport.send:Open", {
        **_words(),
        "wrong shape": _word(lambda opened: replace(opened, shares=opened.shares[:-1])),
        "wrong hash": _word(lambda opened: replace(opened, shares=_other_sessions(opened.shares))),
    })  # fmt: skip


def _bulk(role: str) -> Iterator[Cell]:
    if role in ("member", "leader"):
        yield from _cells("while sending", role, "RoundTransport.exchange", {
            "fail": _argument(3, cut_off),
            "stall": _argument(3, stall),
            "repeat": {"action": "repeat"},
            "wrong hash": _argument(3, wrong_checksum),
        })  # fmt: skip
        yield from _cells("while sending", role, "Exchange.parts_for", {
            "wrong shape": {"action": "truncate", "when": "after"},
            "NaN": _after(_nan_parts),
        })  # fmt: skip
    else:
        yield from _cells("while sending", role, "Streams.take_parts", {
            "fail": _fail(),
            "stall": {"action": "delay", "seconds": FOREVER_S},
            "repeat": {"action": "repeat"},
            "wrong shape": {"action": "truncate", "argument": 3},
            "NaN": _argument(3, _nan_parts),
            "wrong hash": {"action": "corrupt", "argument": 3},
        })  # fmt: skip
    if role in ("reducer", "leader"):
        yield from _cells("while reducing", role, "Exchange.reduce", {
            "fail": _fail(),
            "wrong shape": {"action": "truncate", "when": "after"},
            "NaN": _after(lambda result: ({stage: _nan_bulk(b) for stage, b in result[0].items()}, result[1])),
            "wrong hash": {"action": "corrupt", "when": "after"},
        })  # fmt: skip
        yield from _cells("while reducing", role, "Streams.reduce", {
            "stall": {"action": "delay", "seconds": FOREVER_S},
            "repeat": {"action": "repeat"},
        })  # fmt: skip
        yield from _cells("while gathering", role, "Streams.take_parts", {
            "fail": _after(cut_off),
            "stall": _after(stall),
            "repeat": _after(lambda bulks: bulks + bulks),
            "wrong shape": {"action": "truncate", "when": "after"},
            "NaN": _after(lambda bulks: tuple(map(_nan_bulk, bulks))),
            "wrong hash": _after(lambda bulks: tuple(map(_other_bulk, bulks))),
        })  # fmt: skip
        return
    yield from _cells("while gathering", role, "Exchange.take_spans", {
        "fail": _fail(),
        "repeat": {"action": "repeat"},
        "wrong shape": {"action": "truncate", "argument": 2},
        "NaN": _argument(2, lambda bulks: tuple(map(_nan_bulk, bulks))),
        "wrong hash": {"action": "corrupt", "argument": 2},
    })  # fmt: skip
    yield from _cells("while gathering", role, "RoundTransport.exchange", {
        "stall": {"action": "delay", "when": "after", "seconds": FOREVER_S},
    })  # fmt: skip


def _votes(role: str) -> Iterator[Cell]:
    step = "RoundTransport.send:Verdict" if role == "leader" else "RoundTransport.send:Vote"
    # a reducer errs in its own span, which is the last, since it has the highest id; the others in the leader's
    which = -1 if role == "reducer" else 0
    faults = {
        **_words(),
        "wrong shape": _word(lambda word: replace(word, results=word.results[:-1])),
        "NaN": _word(lambda word: _with_digest(word, which, lambda text: text.partition(":")[0] + ":nan")),
        "wrong hash": _word(lambda word: _with_digest(word, which, lambda text: "0" * 8 + text[8:])),
    }
    possible = {name: how for name, how in faults.items() if (name, "while voting", role) not in IMPOSSIBLE}
    yield from _cells("while voting", role, step, possible)


def _cells(point: str, role: str, step: str, faults: dict[str, dict]) -> Iterator[Cell]:
    for fault, how in faults.items():
        yield Cell(fault, point, role, step, Fault(step, **how))


def _words() -> dict[str, dict]:
    """What can happen to any word."""
    return {"fail": _fail(), "stall": {"action": "delay", "seconds": FOREVER_S}, "repeat": {"action": "repeat"}}


def _fail() -> dict:
    return {"action": "fail", "error": lambda: PeerLost("the fault under test")}


def _after(change: Callable) -> dict:
    return {"action": "change", "when": "after", "change": change}


def _argument(number: int, change: Callable) -> dict:
    return {"action": "change", "argument": number, "change": change}


def _word(change: Callable) -> dict:
    return _argument(2, change)


def _nan(data: bytes) -> bytes:
    values = np.frombuffer(bytes(data), np.float32).copy()
    values[len(values) // 2] = np.nan
    return values.tobytes()


def _nan_parts(parts: Parts) -> Parts:
    return replace(parts, parts=tuple(_nan(part) for part in parts.parts))


def _nan_bulk(bulk: Bulk) -> Bulk:
    data = _nan(bulk.data)
    return Bulk(data, digest_of(data), bulk.norm_sq)


def _other_bulk(bulk: Bulk) -> Bulk:
    values = np.frombuffer(bytes(bulk.data), np.float32).copy()
    values[0] += 1.0
    data = values.tobytes()
    return Bulk(data, digest_of(data), bulk.norm_sq)


def _other_sessions(shares: tuple) -> tuple:
    return tuple(replace(share, session="0bad") for share in shares)


def _with_digest(word: object, which: int, change: Callable[[str], str]) -> object:
    results = list(word.results)
    old = results[which]
    results[which] = SpanResult(old.stage, old.owner, change(old.digest))
    return dataclasses.replace(word, results=tuple(results))


def covering(all_cells: tuple[Cell, ...]) -> tuple[tuple[Cell, int], ...]:
    """Return few cells, with a number of peers each, that cover every pair of fault, point and role, and every step."""

    def covers(cell: Cell) -> set[tuple]:
        fault, point, role = cell.key
        return {(fault, point), (fault, role), (point, role), (cell.step,)}

    missing, chosen = set().union(*map(covers, all_cells)), []
    while missing:
        best = max(all_cells, key=lambda cell: len(covers(cell) & missing))
        missing -= covers(best)
        chosen.append(best)
    # small rounds mostly: they are as telling, and take less
    return tuple((cell, 3 if number % 3 else SIZES[number // 3 % len(SIZES)]) for number, cell in enumerate(chosen))
