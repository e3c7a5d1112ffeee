"""Which sealed sums are in which rounds, so that every microbatch counts once in the lineage that wins.

Pure bookkeeping over opaque sums. Each seal makes one entry. An entry stays here until a round that carries it is
built upon by another peer too: until then the lineage may still turn out to be abandoned, and its own share of the
work is given to the next round instead (a version or two stale, which costs far less than losing it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT_ENTRIES = 4
"""Spent entries that are kept in memory; each is as large as the adapter. Older ones cannot come back."""
LINEAGE_ROUNDS = 64
"""Round ids that a lineage remembers; entries that were in doubt before its oldest are let go."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One sealed sum."""

    sum: T
    tokens: int
    rounds: frozenset[str] = frozenset()
    """Opened rounds that carried it, whatever became of them."""
    spent_in: str = ""
    """The committed round of the current lineage that carries it; empty while it still has to be brought."""


@dataclass(frozen=True, slots=True)
class Ledger(Generic[T]):
    """The entries of one replica of one stage, and the ids of the rounds behind its bits, oldest first."""

    entries: tuple[Entry[T], ...] = ()
    lineage: tuple[str, ...] = ()
    gone: tuple[tuple[frozenset[str], int], ...] = ()
    """Rounds and tokens of spent entries whose sums are no longer kept: enough to say what was lost."""

    @property
    def pending(self) -> tuple[Entry[T], ...]:
        """What the next round has to carry, oldest first."""
        return tuple(entry for entry in self.entries if not entry.spent_in)

    def sealed(self, sum: T, tokens: int) -> Ledger[T]:
        """Add a sum that was just sealed."""
        return replace(self, entries=(*self.entries, Entry(sum, tokens)))

    def carried(self, round: str) -> Ledger[T]:
        """Note that `round` opened with all pending entries in it: it may commit without this replica knowing."""
        marked = tuple(e if e.spent_in else replace(e, rounds=e.rounds | {round}) for e in self.entries)
        return replace(self, entries=marked)

    def committed(self, round: str, *, shared: bool) -> Ledger[T]:
        """Note that `round` is part of this replica's lineage.

        Args:
            round: The id of the round.
            shared: Others built on this replica's bits with it, which confirms all rounds before it.
        """
        lineage = (*self.lineage, round)[-LINEAGE_ROUNDS:]
        entries = tuple(
            replace(entry, spent_in=round) if not entry.spent_in and round in entry.rounds else entry
            for entry in self.entries
        )
        spent = [entry for entry in entries if entry.spent_in]
        let_go = [entry for entry in spent if shared and entry.spent_in != round] or spent[:-KEPT_ENTRIES]
        gone = (*self.gone, *((entry.rounds, entry.tokens) for entry in let_go))
        return Ledger(
            entries=tuple(entry for entry in entries if not any(entry is old for old in let_go)),
            lineage=lineage,
            gone=tuple((rounds, tokens) for rounds, tokens in gone if rounds.intersection(lineage)),
        )

    def moved(self, lineage: tuple[str, ...]) -> tuple[Ledger[T], int]:
        """Follow another lineage: own sums that it does not carry become pending again.

        Args:
            lineage: Ids of the rounds behind the new bits, oldest first, at most the latest `LINEAGE_ROUNDS`.

        Returns:
            The new ledger, and how many of this node's tokens are in neither (the fork was longer than what is
            kept): the caller tells the person.
        """
        theirs = frozenset(lineage)
        in_common = [index for index, round in enumerate(self.lineage) if round in theirs]
        if in_common:  # what lies before the fork is shared, though a lineage remembers only its latest rounds
            theirs |= frozenset(self.lineage[: in_common[-1] + 1])
        # With nothing in common left in view, it cannot be told whether an old round is behind the new bits.
        is_out_of_view = len(lineage) >= LINEAGE_ROUNDS and not in_common
        carried = [entry for entry in self.entries if entry.rounds & theirs]
        hopeless = [entry for entry in self.entries if is_out_of_view and entry.rounds and not entry.rounds & theirs]
        let_go = carried[:-KEPT_ENTRIES]  # the others stay: this lineage too may turn out to be abandoned
        kept = [entry for entry in self.entries if not any(entry is other for other in (*let_go, *hopeless))]
        gone = (*self.gone, *((entry.rounds, entry.tokens) for entry in let_go))
        lost = sum(tokens for rounds, tokens in self.gone if not rounds & theirs)
        lost += sum(entry.tokens for entry in hopeless)
        return Ledger(
            entries=tuple(replace(entry, spent_in=min(entry.rounds & theirs, default="")) for entry in kept),
            lineage=lineage[-LINEAGE_ROUNDS:],
            gone=tuple((rounds, tokens) for rounds, tokens in gone if rounds & theirs),
        ), lost
