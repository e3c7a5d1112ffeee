"""Drive this node's own microbatches through the stages, several at a time, and keep the book of who counted what.

The driver begins a microbatch whenever fewer are under way than keep the slowest hop busy. It comes to a rest when a
round is called, so that all stages bring the same microbatches to it, and goes on when the round has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from node.averaging.strategy import Prepared
from node.core.book import Book, Entry
from node.core.errors import NoReplica, PeerError, StaleVersion
from node.core.events import EventBus, MicrobatchDone, MicrobatchRetried, StagesFound, StagesMissing
from node.core.round_messages import Share
from node.core.routing import Flow
from node.core.types import Microbatch, PeerId
from node.data.stream import Cursor, MicrobatchStream
from node.model.shard import ModelShard
from node.pipeline.hops import Order
from node.pipeline.microbatch import Attempt, Finished, Router
from node.training.engine import Engine
from node.training.loop import dropout_seed
from node.training.pace import Pace
from node.training.stage import StageRunner

_RETRY_S = 0.2
_LOOK_AGAIN_S = 1.0


class Swarm(Protocol):
    """What the driver needs to know of the swarm."""

    def standing(self) -> tuple[int, str]:
        """Return this node's version, and the beginning of the run's hash at it."""

    def sessions(self) -> dict[PeerId, str]:
        """Return the holders that can be seen, this node included, with their sessions."""


class Driver:
    """One node's own training over the stages of the swarm; the form of `Work` for a run of several stages."""

    def __init__(
        self,
        *,
        me: PeerId,
        shard: ModelShard,
        runner: StageRunner,
        num_stages: int,
        stream: MicrobatchStream | None,
        engine: Engine,
        router: Router,
        swarm: Swarm,
        events: EventBus,
        salt: str,
        max_in_flight: int,
    ) -> None:
        """Set up.

        Args:
            me: This node.
            shard: Holds the ends if there is a stream.
            runner: This node's own stages, perhaps none.
            num_stages: Of the run.
            stream: This node's own data; None for a node that only lends its stages.
            engine: The thread that owns the model.
            router: Chooses hops.
            swarm: Where this node and the others are.
            events: Told what was done.
            salt: Of the dropout seeds: differs between nodes.
            max_in_flight: Microbatches that fit into memory.
        """
        self._me = me
        self._shard = shard
        self._runner = runner
        self._num_stages = num_stages
        self._stream = stream
        self._engine = engine
        self._router = router
        self._swarm = swarm
        self._events = events
        self._salt = salt
        self._max_in_flight = max_in_flight
        self._book = Book()
        self._redo: deque[Entry] = deque()
        """To be brought through (again), with those who have counted it already."""
        self._began: dict[int, Cursor] = {}
        """The stream's cursor before each microbatch that is not settled."""
        self._moving: dict[asyncio.Task[None], Entry] = {}
        self._parked = 0
        self._is_running = False
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._changed = asyncio.Event()
        self._missing: tuple[int, ...] = ()
        self._flow = Flow()
        self._failure: BaseException | None = None
        self._resetting: set[asyncio.Task[None]] = set()
        self.pace = Pace()

    # --- as the round sees it ----------------------------------------------------------------------------------

    @property
    def session(self) -> str:
        """Of this node's sums."""
        return self._runner.session

    @property
    def cursor(self) -> Cursor:
        """Where the data stands after the last microbatch that is in a committed round with all before it."""
        if self._began:
            return self._began[min(self._began)]
        return self._stream.cursor if self._stream is not None else Cursor()

    @property
    def epoch(self) -> float:
        """Passes over the node's data, as handed out."""
        return self._stream.epoch if self._stream is not None else 0.0

    async def hold(self) -> Prepared:
        """Begin no microbatch, and finish those under way; one that waits for a missing stage stays where it is.

        What a holder that is dead by now had counted is done again before, so that all stages bring the same.
        """
        self._may_begin.clear()
        await self._come_to_rest()
        while self._is_running and not self._may_begin.is_set() and await self._is_some_holder_gone():
            await self._come_to_rest()
        self._book.bring()
        return Prepared(self._book.labels, self._book.tokens, self._book.doubts)

    def sealed(self) -> None:
        """Go on at once if no other node serves this one: its next microbatches go into fresh sums by themselves."""
        if self._is_alone():
            self.release()

    def release(self) -> None:
        """Go on."""
        self._may_begin.set()
        self._changed.set()

    def settle(self, shares: tuple[Share, ...], *, committed: bool) -> None:
        """Let go of the microbatches that a committed round has taken in."""
        if committed:
            for entry in self._book.settle({share.peer_id: share.session for share in shares}):
                self._began.pop(entry.batch.id, None)

    def discard(self) -> None:
        """Forget what was counted here: the sums are gone. On the engine's thread."""
        self._runner.new_session()

    @property
    def tokens(self) -> int:
        """Tokens of this node's own microbatches that wait for a round."""
        return self._book.tokens

    @property
    def doubts(self) -> frozenset[tuple[PeerId, str]]:
        """Holders, with their session, that have to drop their sums."""
        return self._book.doubts

    @property
    def missing(self) -> tuple[int, ...]:
        """Stages that nobody holds, as the last microbatch found out."""
        return self._missing

    # --- driving -----------------------------------------------------------------------------------------------

    async def run(self, *, backlog_tokens: Callable[[], int]) -> None:
        """Keep microbatches under way until cancelled.

        Args:
            backlog_tokens: Returns the tokens beyond which no microbatch is begun: rounds do not commit.
        """
        if self._stream is None:
            await asyncio.Event().wait()
        self._is_running = True
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                self._reset_doubtful()
                if self._may_begin.is_set():  # what a round has been told of stays until it has ended
                    self._take_back_what_is_lost(self._swarm.sessions())
                    self._begin_again()
                    self._begin_new(backlog_tokens)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):  # `wait_for` may swallow a cancellation
                        await self._change()
        finally:
            self._is_running = False
            tasks = (*self._moving, *self._resetting)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _has_room(self) -> bool:
        return not self._parked and len(self._moving) < self._flow.in_flight(self._max_in_flight)

    def _begin_again(self) -> None:
        while self._redo and self._has_room():
            self._begin(self._redo.popleft())

    def _begin_new(self, backlog_tokens: Callable[[], int]) -> None:
        assert self._stream is not None, "a node without data drives nothing"
        while not self._redo and self._has_room() and self._book.tokens < backlog_tokens():
            before = self._stream.cursor
            batch = next(self._stream, None)
            if batch is None:
                return
            self._began[batch.id] = before
            self._begin(Entry(batch, {}))

    def _begin(self, entry: Entry) -> None:
        moving = Entry(entry.batch, counted := dict(entry.counted_by))
        task = asyncio.create_task(self._bring(entry.batch, counted), name=f"microbatch {entry.batch.id}")
        self._moving[task] = moving
        task.add_done_callback(self._ended)

    async def _bring(self, batch: Microbatch, counted: dict[int, tuple[PeerId, str]]) -> None:
        """Bring one microbatch through, at whatever version it takes; `counted` tells who may have counted it."""
        avoid: set[PeerId] = set()
        while True:
            version, base = self._swarm.standing()
            try:
                finished = await self._attempt(batch, version, base, avoid, counted).run()
            except StaleVersion:
                if self._swarm.standing()[0] == version:
                    await self._rest(_RETRY_S)  # this node's own step, or theirs, is a moment away
            except NoReplica as error:
                avoid.clear()
                self._tell_missing(error)
                await self._rest(_LOOK_AGAIN_S)
            except PeerError as error:
                self._events.emit(MicrobatchRetried(batch.id, str(error)))
                await self._rest(_RETRY_S)
            else:
                self._note(finished)
                return

    def _attempt(
        self, batch: Microbatch, version: int, base: str, avoid: set[PeerId], counted: dict[int, tuple[PeerId, str]]
    ) -> Attempt:
        order = Order(
            driver=self._me,
            microbatch=batch.id,
            lengths=batch.lengths,
            dropout_seed=dropout_seed(self._salt, batch.id),
            version=version,
            base=base,
            weight=batch.num_labels,
        )
        return Attempt(
            batch=batch,
            order=order,
            num_stages=self._num_stages,
            shard=self._shard,
            engine=self._engine,
            router=self._router,
            doubt=self._book.doubt,
            counted=counted,
            avoid=avoid,
        )

    async def _rest(self, seconds: float) -> None:
        """Stand still for a while; a round that is called meanwhile does not wait for this microbatch."""
        self._parked += 1
        self._changed.set()
        try:
            await asyncio.sleep(seconds)
            await self._may_begin.wait()
        finally:
            self._parked -= 1

    def _tell_missing(self, error: NoReplica) -> None:
        if not set(error.stages) <= set(self._missing):
            self._missing = error.stages
            self._events.emit(StagesMissing(error.message, error.hint))

    def _note(self, finished: Finished) -> None:
        batch = finished.batch
        if self._missing:
            self._missing = ()
            self._events.emit(StagesFound())
        self._book.done(batch, finished.counted_by)
        self._flow.done(unqueued_s=finished.unqueued_s, now_s=time.monotonic(), is_local=finished.is_local)
        self.pace.note(tokens=batch.num_tokens, labels=batch.num_labels, loss_sum=finished.loss_sum)
        loss = finished.loss_sum / batch.num_labels if batch.num_labels else 0.0
        self._events.emit(MicrobatchDone(batch.id, loss, batch.num_tokens, batch.num_labels, finished.seconds))

    async def _come_to_rest(self) -> None:
        """Finish what is under way and what was to be done again, unless a stage is missing or the rest is over."""
        while not self._may_begin.is_set():
            if self._is_running:
                self._begin_again()
            if len(self._moving) <= self._parked:
                return
            await self._change()

    async def _is_some_holder_gone(self) -> bool:
        """Ask those who have counted something whether they are there; what others had counted is to be done again."""
        sessions = self._swarm.sessions()
        asked = sorted(self._book.holders & sessions.keys() - {self._me})
        answers = await asyncio.gather(*(self._router.is_there(peer) for peer in asked))
        silent = {peer for peer, is_there in zip(asked, answers, strict=True) if not is_there}
        self._take_back_what_is_lost({peer: s for peer, s in sessions.items() if peer not in silent})
        return bool(self._redo) and not self._parked

    def _take_back_what_is_lost(self, alive: Mapping[PeerId, str]) -> None:
        """Let what a holder that is gone had counted be done again."""
        redo = self._book.lost(alive)
        if redo:
            text = f"{len(redo)} microbatches are done again: a holder of theirs is gone, and its sums with it"
            self._events.emit(MicrobatchRetried(redo[0].batch.id, text))
            self._redo.extend(redo)

    def _reset_doubtful(self) -> None:
        """Ask holders whose sums may hold what another has counted too to drop them; they are then done again."""
        seen = self._swarm.sessions()
        for peer, session in self._book.doubts:
            if seen.get(peer) == session and not self._resetting:
                task = asyncio.create_task(self._router.reset(peer, session), name="reset")
                self._resetting.add(task)
                task.add_done_callback(self._resetting.discard)

    def _is_alone(self) -> bool:
        holds_all = len(self._runner.stages) == self._num_stages
        return holds_all and set(self._swarm.sessions()) == {self._me}

    def _ended(self, task: asyncio.Task[None]) -> None:
        entry = self._moving.pop(task)
        self._changed.set()
        if task.cancelled():
            self._redo.append(entry)  # when driving goes on, it counts where it has not been counted yet
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
