"""Which examples are held out: decided by what they say, never by where they stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping


def content_key(row: Mapping[str, object], seed: int, piece: int = 0) -> str:
    """Return a hex key that depends on the row's content and the seed alone.

    Args:
        row: One row of a file.
        seed: The run's seed.
        piece: Number of the piece, where one row is split into several that may part.
    """
    text = json.dumps(row, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(f"{seed}\0{piece}\0{text}".encode()).hexdigest()


def held_out_keys(keys: Iterable[str], val_set_size: float) -> frozenset[str]:
    """Choose the keys to hold out: the smallest ones.

    Equal rows have equal keys and stay together, so no held-out row is also trained on. At least one key is
    held out and at least one is left, when there are two or more and `val_set_size` is above 0.

    Args:
        keys: Keys of all rows, in any order, with repetitions.
        val_set_size: A share below 1, a count from 1 on; 0 for none.
    """
    ordered = sorted(set(keys))
    if val_set_size <= 0 or len(ordered) < 2:
        return frozenset()
    wanted = round(val_set_size * len(ordered)) if val_set_size < 1 else int(val_set_size)
    return frozenset(ordered[: min(max(1, wanted), len(ordered) - 1)])
