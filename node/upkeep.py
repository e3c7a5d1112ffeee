"""What a node does between two microbatches: save when it is due, score the held-out split when it is due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from node.assembly import Trainer
from node.averaging.gradient import GradientStrategy
from node.board import Board
from node.core.errors import SwarmError
from node.core.events import Evaluated, EventBus, Fault
from node.rounds import Rounds
from node.training.evaluate import Score
from node.training.saver import Snapshot

_TRY_SAVING_EVERY_S = 1.0


class Upkeep:
    """Saving and scoring of one loaded run."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        strategy: GradientStrategy,
        rounds: Rounds,
        board: Board,
        events: EventBus,
        score: Callable[[], Awaitable[Score | None]],
    ) -> None:
        """Set up; `score` scores the held-out split."""
        self._trainer = trainer
        self._strategy = strategy
        self._rounds = rounds
        self._board = board
        self._events = events
        self._score = score
        self._given_before = board.tokens_given
        self._scored_version = -1
        self._saving: asyncio.Task[None] | None = None

    @property
    def tokens_given(self) -> int:
        """Tokens of this node in committed rounds, since it first joined the run."""
        return self._given_before + self._rounds.tokens_given

    async def between_microbatches(self) -> None:
        """Do what is due."""
        if self._trainer.saver.is_due(self._strategy.version):
            self._saving = asyncio.create_task(self._trainer.saver.save(await self._snapshot()), name="save")
        await self.evaluate(only_if_due=True)

    @property
    def is_blocked(self) -> bool:
        """Whether the latest save failed: training pauses for `until_saved`."""
        return self._trainer.saver.is_blocked

    async def saved(self) -> None:
        """Return when no save is under way."""
        if self._saving is not None:
            await self._saving

    async def until_saved(self) -> None:
        """Return when what is here is on disk; tried again and again, since somebody may make room."""
        await self.saved()
        saver = self._trainer.saver
        while saver.saved_version != self._strategy.version:
            if saver.has_room():
                await saver.save(await self._snapshot())
            if saver.is_blocked:
                await asyncio.sleep(_TRY_SAVING_EVERY_S)

    async def save_now(self) -> int:
        """Save and return the version that is on disk.

        Raises:
            OutOfDisk: the disk is full or read-only.
            CheckpointError: the folder cannot be written.
        """
        await self.saved()
        if self._trainer.saver.saved_version != self._strategy.version:
            await self._trainer.saver.save_or_raise(await self._snapshot())
        return self._trainer.saver.saved_version

    async def evaluate(self, *, only_if_due: bool = False) -> None:
        """Score the held-out split, if there is one and this version was not scored yet."""
        version, every = self._strategy.version, self._trainer.eval_every
        is_due = every is not None and version > 0 and version % every == 0
        if not self._trainer.held_out or version == self._scored_version or (only_if_due and not is_due):
            return
        self._scored_version = version
        try:
            result = await self._score()
        except SwarmError as error:
            self._events.emit(Fault(f"The held-out rows were not scored at step {version}. {error.message}"))
            return
        if result is not None:
            self._events.emit(Evaluated(version, result.loss, result.labels))

    async def _snapshot(self) -> Snapshot:
        await self._strategy.settled()
        self._board.tokens_given = self.tokens_given
        return await self._strategy.snapshot(self._board.counters(), self._rounds.lineage)
