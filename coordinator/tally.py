"""What is counted while a coordinator serves, for whoever looks after it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

METHODS = ("Join", "Heartbeat", "Leave", "WatchRun", "ReportRound", "ListRuns", "Operator")
REFUSALS = ("token", "rate", "signature", "request")
OUTCOMES = ("committed", "alone", "dropped")


@dataclass
class Tally:
    """Counts since the start; belongs to the event loop."""

    calls: Counter[str] = field(default_factory=Counter)
    """By method, of `METHODS`: those that were let in."""
    refused: Counter[str] = field(default_factory=Counter)
    """By reason, of `REFUSALS`."""
    rounds: Counter[str] = field(default_factory=Counter)
    """Reports by outcome, of `OUTCOMES`."""
