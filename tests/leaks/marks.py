"""Marked rows, and finding them in recorded bytes."""

import json
import random
from collections.abc import Iterable, Sequence

import numpy as np

PIECE = 8
"""Bytes of text that count as a leak."""
WINDOW = 4
"""Consecutive tokens that count as a leak."""


def marked_rows(seed: int, count: int) -> list[str]:
    """Return rows of made-up words: whoever sends eight bytes of one has it from there."""
    dice = random.Random(seed)

    def word() -> str:
        return "".join(dice.choice("bdfgklmnprstvz") + dice.choice("aeiou") for _ in range(dice.randint(3, 4)))

    words = [word() for _ in range(400)]
    return [" ".join(dice.choices(words, k=24)) for _ in range(count)]


class Leaks:
    """All forms of some rows that must not be found anywhere."""

    def __init__(self, rows: Sequence[str], token_ids: Sequence[Sequence[int]]) -> None:
        """Set up.

        Args:
            rows: The texts.
            token_ids: Of each row. Where four take fewer than eight bytes as varints, which chance makes too, it takes
                as many more.
        """
        self._whole: dict[bytes, set[bytes]] = {}
        for row in rows:
            for form in (row, json.dumps(row)[1:-1]):
                for encoded in (form.encode(), form.encode("utf-16-le"), form.encode("utf-16-be")):
                    self._add(encoded[start : start + PIECE] for start in range(len(encoded) - PIECE + 1))
        for ids in token_ids:
            for start in range(len(ids) - WINDOW + 1):
                self._add(forms_of(ids[start : start + WINDOW]))
                stop = start + WINDOW
                while stop < len(ids) and len(varints(ids[start:stop])) < PIECE:
                    stop += 1
                self._add([varints(ids[start:stop])])
        self._prefixes = np.unique(np.frombuffer(b"".join(self._whole), dtype="<u8"))

    def _add(self, patterns: Iterable[bytes]) -> None:
        for pattern in patterns:
            if len(pattern) >= PIECE:
                self._whole.setdefault(pattern[:PIECE], set()).add(pattern)

    def in_bytes(self, data: bytes) -> list[bytes]:
        """Return what of the rows is in `data`, in the order in which it was met."""
        found = []
        for shift in range(PIECE):
            count = (len(data) - shift) // PIECE
            if count <= 0:
                continue
            values = np.frombuffer(data, dtype="<u8", count=count, offset=shift)
            for index in np.flatnonzero(np.isin(values, self._prefixes)):
                start = shift + PIECE * int(index)
                patterns = self._whole[data[start : start + PIECE]]
                found += [pattern for pattern in patterns if data.startswith(pattern, start)]
        return found


def forms_of(ids: Sequence[int]) -> Iterable[bytes]:
    """Yield the bytes of these tokens in each integer width and byte order, and as varints."""
    for order in ("<", ">"):
        for width in ("u2", "u4", "u8"):  # tokens are positive: the signed forms are the same
            if max(ids) < 1 << 8 * int(width[1]):
                yield np.array(ids, dtype=order + width).tobytes()
    yield varints(ids)


def varints(values: Sequence[int]) -> bytes:
    """Return protobuf's form of numbers in a row."""
    out = bytearray()
    for value in values:
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)
