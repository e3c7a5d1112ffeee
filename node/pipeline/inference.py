"""Hidden states through all stages of the swarm, without a gradient: for evaluation and for chat.

Legend: T tokens, H hidden size.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from node.core.errors import NeedsInput, PeerBusy, PeerError
from node.core.routing import Hop
from node.core.types import PeerId
from node.network.stages import StageTransport
from node.pipeline.replies import raise_for
from node.pipeline.texts import Texts
from node.pipeline.wire import Wire
from node.training.engine import Engine, Priority
from node.training.stage import StageJob, StageRunner
from node.v1 import pipeline_pb2 as pb

_TIMEOUT_S = 120.0
_TRIES = 4


class Finder(Protocol):
    """Chooses hops."""

    def find(self, start: int, stop: int, *, tokens: int, avoid: Sequence[PeerId] = ()) -> tuple[Hop, ...]:
        """Return hops for stages `[start, stop)`."""

    def failed(self, error: PeerError) -> None:
        """Pass a peer over for a while."""


class Inference:
    """The decoder layers of the whole model, wherever they are."""

    def __init__(
        self,
        *,
        me: PeerId,
        num_stages: int,
        runner: StageRunner,
        texts: Texts,
        engine: Engine,
        finder: Finder,
        transport: StageTransport,
        wire: Wire,
    ) -> None:
        self._me = me
        self._num_stages = num_stages
        self._runner = runner
        self._texts = texts
        self._engine = engine
        self._finder = finder
        self._transport = transport
        self._wire = wire
        self._routes: dict[str, tuple[Hop, ...]] = {}

    def new_text(self) -> str:
        """Return a name for a text that is to be continued."""
        return secrets.token_hex(8)

    async def run(
        self, hidden: Tensor, lengths: tuple[int, ...], *, adapter: bool, text: str = "", start: int = 0
    ) -> Tensor:
        """Return the hidden states [T, H] after the last layer.

        Args:
            hidden: [T, H] after the embedding, in the compute type.
            lengths: Of the documents, which sum to T.
            adapter: Whether the adapter takes part.
            text: The name of a text that these tokens continue; empty for whole documents.
            start: Tokens of that text so far.

        Raises:
            NeedsInput: a stage has lost the text so far: begin it again with all of its tokens.
            SwarmError: some stage has no holder that answers.
        """
        position, tries = 0, 0
        given = hidden
        while position < self._num_stages:
            hops = self._route(position, len(hidden), text if start else "")
            try:
                hidden = await self._hop(hops[0], hidden, lengths, adapter=adapter, text=text, start=start)
            except PeerError as error:
                self._finder.failed(error)
                self._routes.pop(text, None)
                tries += 1
                if tries >= _TRIES:
                    raise
                if start:
                    raise NeedsInput("a holder of this text is gone") from error
                if isinstance(error, PeerBusy):
                    await asyncio.sleep(error.retry_after_s)
                position, hidden = 0, given
                continue
            if text:
                self._routes[text] = (*self._routes.get(text, ()), hops[0]) if position else (hops[0],)
            position = hops[0].stop_stage
        return hidden

    def _route(self, position: int, tokens: int, text: str) -> tuple[Hop, ...]:
        """A text stays with the holders that keep its beginning."""
        with contextlib.suppress(StopIteration):
            return (next(hop for hop in self._routes.get(text, ()) if hop.first_stage == position),)
        return self._finder.find(position, self._num_stages, tokens=tokens)

    async def _hop(
        self, hop: Hop, hidden: Tensor, lengths: tuple[int, ...], *, adapter: bool, text: str, start: int
    ) -> Tensor:
        if hop.peer_id == self._me:
            layers = self._runner.layers(hop.first_stage, hop.stop_stage)
            if text:
                return await self._engine.run(
                    Priority.WORD, self._texts.extend, self._me, text, start, hidden, layers, adapter=adapter
                )
            job = StageJob(self._me, 0, hop.first_stage, hop.stop_stage, lengths, None, 0, 0)
            return await self._engine.run(Priority.FORWARD, self._runner.evaluate, job, hidden, adapter=adapter)
        request = pb.StageRequest(
            kind=pb.STAGE_KIND_GENERATE if text else pb.STAGE_KIND_EVALUATE,
            driver=self._me,
            first_stage=hop.first_stage,
            stop_stage=hop.stop_stage,
            lengths=lengths,
            dtype=self._wire.dtype_name,
            has_tensor=True,
            wants_tensor=True,
            without_adapter=not adapter,
            text=text,
            start=start,
        )
        tensor = await self._wire.encode("forward", hidden, lengths, self._wire.dtype_name)
        size = self._wire.size("forward", lengths, self._wire.dtype_name)
        reply, data = await self._transport.call(
            hop.peer_id, request, (tensor,), reply_bytes=size, timeout_s=_TIMEOUT_S
        )
        raise_for(reply, hop.peer_id)
        return await self._wire.decode("forward", data, lengths, self._wire.dtype_name)
