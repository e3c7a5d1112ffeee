"""Machines that a person describes in words, for planning: `8GB@100Mbit, 2x3090, 24GB:155TFLOPS@200/20Mbit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from node.core.errors import ConfigError

GIB = 1 << 30
LAN_MBIT_PER_S = 1000.0
"""Taken where no link is given."""
MAX_MACHINES = 32
SYNTAX = (
    "Write `8GB@100Mbit,12GB,2x24GB`: memory of each card, perhaps its link (`@100Mbit`, `@1Gbit`, or `@200/20Mbit` "
    "for down/up), perhaps its speed (`24GB:71TFLOPS`); or a card's name (`3090@100Mbit`)."
)

CARDS: Mapping[str, tuple[float, float]] = {
    "1070": (8, 6.5),
    "2060": (6, 26),
    "2080ti": (11, 54),
    "3050": (8, 18),
    "3060": (12, 25.6),
    "3060ti": (8, 32.4),
    "3070": (8, 40.6),
    "3080": (10, 59.5),
    "3090": (24, 71),
    "4060": (8, 30),
    "4060ti": (16, 44),
    "4070": (12, 58),
    "4080": (16, 97),
    "4090": (24, 165),
    "5090": (32, 209),
    "a6000": (48, 155),
    "a100": (80, 312),
    "h100": (80, 989),
    "t4": (16, 65),
}
"""Name to GiB of memory and 10^12 dense operations a second in 16 bits with fp32 sums, as the vendors publish it. The
1070 has no fast 16 bits: its fp32."""
_USUAL: tuple[tuple[float, float], ...] = ((15.0, 25.6), (20.0, 44.0), (40.0, 71.0), (64.0, 155.0), (1e9, 312.0))
"""Speed of a card with less than so many GiB, if no more is known: a 3060, a 4060 Ti, a 3090, an A6000, an A100."""

_NUMBER = r"(\d{1,6}(?:\.\d{1,3})?)"
_CARD = rf"{_NUMBER}gi?b?(?::{_NUMBER}tflops)?|(?:rtx|gtx)?([a-z0-9]{{2,8}})"
_MACHINE = re.compile(rf"(?:(\d{{1,3}})x)?(?:{_CARD})(?:@(.+))?")
_LINK = re.compile(rf"{_NUMBER}(?:/{_NUMBER})?([mg])(?:bits?)?(?:/s|ps)?")


@dataclass(frozen=True, slots=True)
class Machine:
    """What one machine brings."""

    name: str
    """`#2 (12GB)`: its place in the list, and what the person wrote."""
    memory_bytes: int
    flop_per_s: float
    """Peak, dense, in 16 bits with fp32 sums."""
    down_mbit_per_s: float = LAN_MBIT_PER_S
    up_mbit_per_s: float = LAN_MBIT_PER_S


def parse_machines(text: str) -> tuple[Machine, ...]:
    """Return the machines that `text` names, the first of which has the data.

    Raises:
        ConfigError: The text is not in order; names the part that is not.
    """
    machines: list[Machine] = []
    for part in text.split(","):
        count, described = _parse(part.strip())
        if len(machines) + count > MAX_MACHINES:
            raise ConfigError(f"--peers names more than {MAX_MACHINES} machines.", hint="Plan for fewer.")
        for _ in range(count):
            memory_bytes, flop_per_s, down, up = described
            name = f"#{len(machines) + 1} ({part.strip().partition('x')[2] if count > 1 else part.strip()})"
            machines.append(Machine(name, memory_bytes, flop_per_s, down, up))
    return tuple(machines)


def _parse(part: str) -> tuple[int, tuple[int, float, float, float]]:
    """Return how many there are, and bytes, FLOP/s, Mbit/s down and up of each."""
    match = _MACHINE.fullmatch(part.lower().replace(" ", ""))
    if match is None:
        raise ConfigError(f"--peers: {part[:60]!r} is no machine.", hint=SYNTAX)
    count, gib, tflops, card, link = match.groups()
    if card is not None and card not in CARDS:
        raise ConfigError(
            f"--peers: the card {part[:60]!r} is not known.", hint=f"Known are {', '.join(CARDS)}. {SYNTAX}"
        )
    size, speed = CARDS[card] if card is not None else (float(gib), 0.0)
    speed = float(tflops) if tflops is not None else speed or _usual_tflops(size)
    down, up = (LAN_MBIT_PER_S, LAN_MBIT_PER_S) if link is None else _parse_link(link, part)
    num = int(count) if count is not None else 1
    if min(num, size, speed, down, up) <= 0:
        raise ConfigError(f"--peers: {part[:60]!r} has a zero in it.", hint=SYNTAX)
    return num, (round(size * GIB), speed * 1e12, down, up)


def _parse_link(link: str, part: str) -> tuple[float, float]:
    match = _LINK.fullmatch(link)
    if match is None:
        raise ConfigError(f"--peers: {part[:60]!r} has a link that is none: {link[:40]!r}.", hint=SYNTAX)
    down, up, unit = match.groups()
    factor = 1000.0 if unit == "g" else 1.0
    return float(down) * factor, float(up or down) * factor


def _usual_tflops(gib: float) -> float:
    return next(tflops for below, tflops in _USUAL if gib < below)
