"""What came of a disturbed run, in figures: pure functions of when who lived and when rounds were committed.

Times are Unix seconds, speeds tokens a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Life:
    """One process, from when it could train to its death."""

    begin_s: float
    end_s: float
    tokens_per_s: float


def could_compute(lives: Iterable[Life], begin_s: float, end_s: float) -> float:
    """Return the tokens that these lives could have computed between two moments."""
    return sum(life.tokens_per_s * max(0.0, min(life.end_s, end_s) - max(life.begin_s, begin_s)) for life in lives)


def times_of_two(lives: Iterable[Life], begin_s: float, end_s: float) -> list[tuple[float, float]]:
    """Return the spans between two moments in which at least two were alive."""
    changes = sorted(
        (min(max(at, begin_s), end_s), change)
        for life in lives
        for at, change in ((life.begin_s, 1), (max(life.begin_s, life.end_s), -1))
    )
    spans: list[tuple[float, float]] = []
    alive, since = 0, begin_s
    for at, change in changes:
        if alive >= 2 and alive + change < 2 and at > since:
            spans.append((since, at))
        if alive < 2 <= alive + change:
            since = at
        alive += change
    return spans


def longest_wait(commits_s: Sequence[float], spans: Iterable[tuple[float, float]]) -> float:
    """Return the longest time within one of the spans that passed without a commit, in seconds."""
    longest = 0.0
    for begin_s, end_s in spans:
        inside = [at for at in sorted(commits_s) if begin_s <= at <= end_s]
        marks = [begin_s, *inside, end_s]
        longest = max(longest, *(after - before for before, after in itertools.pairwise(marks)))
    return longest
