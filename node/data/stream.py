"""Documents in a seeded order, packed into microbatches, from any point that it stopped at.

The order of an epoch depends on (seed, salt, epoch) alone and a microbatch never crosses an epoch's end, so
three numbers say exactly which documents are still to come.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from node.core.errors import CheckpointError, DataError
from node.core.types import Document, Microbatch


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a stream stands: after `position` documents of pass `epoch`."""

    epoch: int = 0
    position: int = 0
    next_id: int = 0
    """Id of the next microbatch."""

    def as_json(self) -> dict[str, int]:
        """Return the cursor for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Cursor:
        """Read what `as_json` gave.

        Raises:
            CheckpointError: It is something else.
        """
        values = {}
        for name in ("epoch", "position", "next_id"):
            value = record.get(name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
                raise CheckpointError(f"the data cursor's '{name}' is {value!r}, not a count")
            values[name] = value
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Packing:
    """How many documents go into one microbatch."""

    micro_batch_size: int
    sequence_len: int
    """Tokens."""
    sample_packing: bool

    @property
    def budget_tokens(self) -> int:
        """Most tokens of a microbatch."""
        return self.micro_batch_size * self.sequence_len

    def take(self, documents: Sequence[Document], order: Sequence[int], position: int) -> int:
        """Return the position after the documents, in `order` from `position` on, that fill one microbatch."""
        if not self.sample_packing:
            return min(position + self.micro_batch_size, len(order))
        tokens, stop = 0, position
        while stop < len(order) and tokens + len(documents[order[stop]]) <= self.budget_tokens:
            tokens += len(documents[order[stop]])
            stop += 1
        assert stop > position, "a document is longer than sequence_len"
        return stop


class MicrobatchStream(Iterator[Microbatch]):
    """Microbatches of a node's own documents, in an order that is the same after a restart."""

    def __init__(
        self,
        documents: Sequence[Document],
        packing: Packing,
        *,
        seed: int,
        salt: str,
        num_epochs: float | None = None,
        cursor: Cursor | None = None,
    ) -> None:
        """Start at `cursor`, or at the beginning.

        Args:
            documents: Training documents, in the same order each time.
            packing: Size of a microbatch.
            seed: The run's seed.
            salt: What differs between nodes, so that equal data is seen in different orders.
            num_epochs: Passes over the data; None for no end.
            cursor: What `cursor` was after the last microbatch that counted.
        """
        if not documents:
            raise DataError(
                "there is nothing to train on: no example is left", hint="see what was skipped, or add data"
            )
        longest = max(map(len, documents))
        if longest > packing.sequence_len:
            raise DataError(f"an example has {longest} tokens, more than sequence_len {packing.sequence_len}")
        self._documents = documents
        self._packing = packing
        self._seed, self._salt = seed, salt
        self._num_epochs = num_epochs
        self._cursor = cursor or Cursor()
        if self._cursor.position > len(documents):
            raise DataError(
                f"the run stopped after {self._cursor.position} examples of a pass, "
                f"but the data has {len(documents)} now",
                hint="give the data that this run was started with, or start over with --fresh",
            )
        self._order = self._order_of(self._cursor.epoch)

    @property
    def cursor(self) -> Cursor:
        """The state after the last microbatch that was given out."""
        return self._cursor

    @property
    def epoch(self) -> float:
        """Passes over the data so far, with the fraction of this one."""
        return self._cursor.epoch + self._cursor.position / len(self._documents)

    @property
    def is_finished(self) -> bool:
        """Whether `num_epochs` passes are done."""
        return self._num_epochs is not None and self.epoch >= self._num_epochs

    def __next__(self) -> Microbatch:
        """Return the next microbatch; StopIteration after `num_epochs` passes."""
        if self.is_finished:
            raise StopIteration
        epoch, position = self._cursor.epoch, self._cursor.position
        if position == len(self._documents):
            epoch, position = epoch + 1, 0
            self._order = self._order_of(epoch)
        stop = self._packing.take(self._documents, self._order, position)
        batch = Microbatch.of(self._cursor.next_id, [self._documents[i] for i in self._order[position:stop]])
        self._cursor = Cursor(epoch, stop, self._cursor.next_id + 1)
        return batch

    def _order_of(self, epoch: int) -> list[int]:
        order = list(range(len(self._documents)))
        # A text as seed goes through SHA-512, so it is the same on every machine and Python.
        random.Random(f"{self._seed}/{self._salt}/{epoch}").shuffle(order)
        return order


def in_order(documents: Sequence[Document], packing: Packing) -> Iterator[Microbatch]:
    """Yield all documents once, as they stand: for evaluation."""
    order, position, number = range(len(documents)), 0, 0
    while position < len(documents):
        stop = packing.take(documents, order, position)
        yield Microbatch.of(number, [documents[i] for i in order[position:stop]])
        position, number = stop, number + 1
