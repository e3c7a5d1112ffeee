"""Chain: results that the last stage of a chain hands to the driver directly, instead of back through the others."""

from __future__ import annotations

import asyncio

from node.core.types import PeerId
from node.network.round_words import Malformed
from node.v1 import pipeline_pb2 as pb


class Deliveries:
    """Chain: results that the last stage hands to this driver directly."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, bool], tuple[PeerId, int, asyncio.Future[bytearray]]] = {}

    def expect(
        self, microbatch: int, sender: PeerId, num_bytes: int, *, is_backward: bool
    ) -> asyncio.Future[bytearray]:
        """Return a future for the tensor that `sender`, the last of a chain, will bring."""
        future: asyncio.Future[bytearray] = asyncio.get_running_loop().create_future()
        self._waiting[microbatch, is_backward] = (sender, num_bytes, future)
        return future

    def drop(self, microbatch: int, *, is_backward: bool) -> None:
        """Expect it no more."""
        self._waiting.pop((microbatch, is_backward), None)

    def size_from(self, sender: PeerId, request: pb.StageRequest) -> int:
        """Return the bytes of a delivery that is expected from `sender`.

        Raises:
            Malformed: nothing is.
        """
        waiting = self._waiting.get((request.microbatch, request.is_backward))
        if waiting is None or waiting[0] != sender:
            raise Malformed("nobody waits for that")
        return waiting[1]

    def take(self, sender: PeerId, request: pb.StageRequest, data: bytearray) -> bool:
        """Hand over a delivery; False if nobody waits for it any more."""
        waiting = self._waiting.get((request.microbatch, request.is_backward))
        if waiting is None or waiting[0] != sender or waiting[2].done():
            return False
        waiting[2].set_result(data)
        return True
