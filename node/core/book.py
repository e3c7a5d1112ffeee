"""A driver's book of its microbatches: who counted each of them at each stage, until a round has taken them in.

Pure bookkeeping, so that every microbatch counts once at every stage: none is lost with a holder that dies, none is
counted by two holders of one stage. A holder's *session* stands for its sums: a new session means that they are gone.
Sessions of one peer sort by their age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node.core.types import Microbatch, PeerId

Counted = Mapping[int, tuple[PeerId, str]]
"""By stage: the holder that added this microbatch's gradient, and its session."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished microbatch that no committed round has taken in yet."""

    batch: Microbatch
    counted_by: Counted


class Book:
    """The finished microbatches of one driver, in the order of their ids, and whom it cannot be sure of."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._doubts: set[tuple[PeerId, str]] = set()
        self._brought: frozenset[int] = frozenset()
        self._told: set[int] = set()
        """Not settled, but their tokens are in a committed round: some stage of theirs comes later."""

    def done(self, batch: Microbatch, counted_by: Counted) -> None:
        """Enter a microbatch that every stage has counted."""
        self._entries[batch.id] = Entry(batch, counted_by)

    def doubt(self, peer: PeerId, session: str) -> None:
        """Note that a holder may have counted a microbatch which another holder counts now."""
        self._doubts.add((peer, session))

    def bring(self) -> None:
        """Note that what is finished now is what the next round is told of."""
        self._brought = frozenset(self._entries)

    @property
    def tokens(self) -> int:
        """Tokens that are finished and that no committed round was told of."""
        return sum(entry.batch.num_tokens for id, entry in self._entries.items() if id not in self._told)

    @property
    def labels(self) -> int:
        """Labels among them."""
        return sum(entry.batch.num_labels for id, entry in self._entries.items() if id not in self._told)

    @property
    def holders(self) -> frozenset[PeerId]:
        """Whose sums the finished microbatches are in."""
        return frozenset(peer for entry in self._entries.values() for peer, _ in entry.counted_by.values())

    @property
    def doubts(self) -> frozenset[tuple[PeerId, str]]:
        """Holders, with their session, whose sums must not go into a round."""
        return frozenset(self._doubts)

    @property
    def first_id(self) -> int | None:
        """The lowest id that is not settled."""
        return min(self._entries, default=None)

    def settle(self, members: Mapping[PeerId, str]) -> tuple[Entry, ...]:
        """Take out, and return, the entries whose every stage is in a round that was committed.

        Args:
            members: The round's members with their sessions.
        """
        settled = [
            entry
            for entry in self._entries.values()
            if all(members.get(peer) == session for peer, session in entry.counted_by.values())
        ]
        self._told |= self._brought
        for entry in settled:
            del self._entries[entry.batch.id]
            self._told.discard(entry.batch.id)
        # Who was left out must load a state before it may take part again, and drops its sums with that.
        self._doubts = {(peer, session) for peer, session in self._doubts if members.get(peer) == session}
        return tuple(settled)

    def lost(self, alive: Mapping[PeerId, str]) -> tuple[Entry, ...]:
        """Take out, and return, what has to be done again because a holder's sums are gone or out of sight.

        What is seen may be older than what a holder itself has told: an earlier session than the counted one says
        nothing.

        Args:
            alive: All holders that can be seen, with their sessions.

        Returns:
            The entries with those who still have them counted: another replica of theirs must not count them too.
        """
        redo = []
        for entry in self._entries.values():
            kept = {
                stage: who for stage, who in entry.counted_by.items() if who[0] in alive and alive[who[0]] <= who[1]
            }
            gone = {who for stage, who in entry.counted_by.items() if stage not in kept}
            if gone:
                redo.append(Entry(entry.batch, kept))
                # One that is merely out of sight may come back with its sums.
                self._doubts |= {(peer, session) for peer, session in gone if peer not in alive}
        for entry in redo:
            del self._entries[entry.batch.id]
        self._doubts = {(peer, session) for peer, session in self._doubts if alive.get(peer, session) <= session}
        return tuple(redo)
