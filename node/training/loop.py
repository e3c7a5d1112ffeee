"""Train this node's own microbatches, one after the other, and keep the books that make a resume exact.

The cursor moves in the same engine job that adds a microbatch's gradient, so that at any moment the accumulator,
its token counts and the cursor tell of exactly the same microbatches.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from node.core.events import EventBus, MicrobatchDone
from node.core.types import Microbatch
from node.data.stream import Cursor, MicrobatchStream
from node.training.adapter import SealedGradient, StageAdapter
from node.training.engine import Engine, Priority
from node.training.pace import Pace

R = TypeVar("R")


def dropout_seed(salt: str, batch_id: int) -> int:
    """Return the seed of one microbatch's dropout masks: the same on whichever machine computes them."""
    digest = hashlib.blake2b(f"{salt}:{batch_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Trainable(Protocol):
    """The model as the loop sees it."""

    def train_microbatch(self, batch: Microbatch, *, dropout_seed: int) -> float:
        """Add the gradients of the summed loss, and return that sum."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed gradient, and where the data stood when it was sealed."""

    gradient: SealedGradient
    cursor: Cursor


class TrainingLoop:
    """One node's own training, stage by stage; created once per loaded shard."""

    def __init__(
        self,
        *,
        engine: Engine,
        model: Trainable,
        adapters: tuple[StageAdapter, ...],
        stream: MicrobatchStream,
        events: EventBus,
        seed: int,
        peer_id: str,
    ) -> None:
        self._engine = engine
        self._model = model
        self._adapters = adapters
        self._stream = stream
        self._iterator = iter(stream)
        self._events = events
        self._salt = f"{seed}:{peer_id}"
        self._ahead: tuple[Microbatch, Cursor] | None = None
        self._done_cursor = stream.cursor
        self.pace = Pace()

    async def train_one(self) -> bool:
        """Train the next microbatch; False if the stream has no more."""
        taken = self._ahead or self._take()
        self._ahead = None
        if taken is None:
            return False
        batch, cursor = taken
        started = time.perf_counter()
        job = self._engine.submit(Priority.OWN, self._train, batch, cursor)
        self._ahead = self._take()  # tokens for the next one are gathered while this one computes
        loss_sum = await asyncio.wrap_future(job)
        self._note(batch, loss_sum, time.perf_counter() - started)
        return True

    def _train(self, batch: Microbatch, cursor: Cursor) -> float:
        """Run on the engine: gradient, counts and cursor move together."""
        loss_sum = self._model.train_microbatch(batch, dropout_seed=dropout_seed(self._salt, batch.id))
        for adapter in self._adapters:
            adapter.count(batch.num_tokens, batch.num_labels)
        self._done_cursor = cursor
        return loss_sum

    async def seal(self, adapter: StageAdapter) -> Sealed:
        """Hand out what one stage has accumulated, with the cursor that goes with it."""
        return await self._engine.run(Priority.BACKWARD, lambda: Sealed(adapter.seal(), self._done_cursor))

    async def on_engine(self, function: Callable[[], R]) -> R:
        """Run something else that touches the model or the adapter, before the next microbatch."""
        return await self._engine.run(Priority.BACKWARD, function)

    @property
    def cursor(self) -> Cursor:
        """Where the data stands after the last microbatch that was counted."""
        return self._done_cursor

    @property
    def epoch(self) -> float:
        """Passes over the node's data, as handed out."""
        return self._stream.epoch

    def _take(self) -> tuple[Microbatch, Cursor] | None:
        batch = next(self._iterator, None)
        return None if batch is None else (batch, self._stream.cursor)

    def _note(self, batch: Microbatch, loss_sum: float, seconds: float) -> None:
        self.pace.note(tokens=batch.num_tokens, labels=batch.num_labels, loss_sum=loss_sum)
        loss = loss_sum / batch.num_labels if batch.num_labels else 0.0
        self._events.emit(MicrobatchDone(batch.id, loss, batch.num_tokens, batch.num_labels, seconds))
