"""A driver's book of its microbatches: who counted each of them at each stage, until a round has taken them in.

Pure bookkeeping, so that every microbatch counts once at every stage: none is lost with a holder that dies, none is
counted by two holders of one stage. A holder's *session* stands for its sums: a new session means that they are gone.
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

    def done(self, batch: Microbatch, counted_by: Counted) -> None:
        """Enter a microbatch that every stage has counted."""
        self._entries[batch.id] = Entry(batch, counted_by)

    def doubt(self, peer: PeerId, session: str) -> None:
        """Note that a holder may have counted a microbatch which another holder counts now."""
        self._doubts.add((peer, session))

    @property
    def tokens(self) -> int:
        """Tokens that are finished and in no committed round."""
        return sum(entry.batch.num_tokens for entry in self._entries.values())

    @property
    def labels(self) -> int:
        """Labels among them."""
        return sum(entry.batch.num_labels for entry in self._entries.values())

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
        for entry in settled:
            del self._entries[entry.batch.id]
        # Who was left out must load a state before it may take part again, and drops its sums with that.
        self._doubts = {(peer, session) for peer, session in self._doubts if members.get(peer) == session}
        return tuple(settled)

    def lost(self, alive: Mapping[PeerId, str]) -> tuple[Microbatch, ...]:
        """Take out, and return, what has to be done again because a holder's sums are gone or out of sight.

        Args:
            alive: All holders that can be seen, with their sessions.
        """
        redo = []
        for entry in self._entries.values():
            gone = {(peer, session) for peer, session in entry.counted_by.values() if alive.get(peer) != session}
            if gone:
                redo.append(entry.batch)
                # One that is merely out of sight may come back with its sums.
                self._doubts |= {(peer, session) for peer, session in gone if peer not in alive}
        for batch in redo:
            del self._entries[batch.id]
        self._doubts = {(peer, session) for peer, session in self._doubts if alive.get(peer, session) == session}
        return tuple(redo)
