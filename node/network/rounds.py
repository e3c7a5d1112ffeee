"""Averaging rounds over hivemind's P2P streams: the network form of what `averaging/round.py` wants done.

Small messages are unary calls with a deadline each. A part and the result of its span share one stream: the member
sends its part, the reducer answers with the reduced span. Every stream ends with an explicit last message, because
one that merely stops looks just like one that is complete. Nothing is allocated from a length that a peer declares:
the caller says how many bytes it expects.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import AsyncIterator, Protocol  # noqa: UP035  (hivemind knows the stream hints of `typing` alone)

from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError, P2PHandlerError
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure

from node.core.round_messages import Message
from node.core.types import PeerId
from node.network.processes import PEER_FAILED
from node.network.round_words import Malformed, check_round_id, from_wire, to_wire
from node.v1 import round_pb2

CHUNK_BYTES = 256 * 1024
_SEND_S = 5.0
_CHUNK_S = 20.0
_NAMESPACE = "potluck"


class PeerLost(Exception):
    """A peer could not be reached or broke off; `is_refused` if nobody is there at all."""

    def __init__(self, reason: str, *, is_refused: bool = False) -> None:
        super().__init__(reason)
        self.is_refused = is_refused


@dataclass(frozen=True, slots=True)
class Bulk:
    """What came over a stream, whole: its length and digest were checked."""

    data: bytes
    digest: bytes
    norm_sq: float


class RoundHandler(Protocol):
    """The averager behind the network."""

    def received(self, sender: PeerId, message: Message) -> None:
        """Take in a word of the round from an authenticated peer."""

    async def expect_part(self, round: str, sender: PeerId) -> int:
        """Wait until the round is open here, and return the bytes of the part that `sender` has to send.

        Raises:
            PeerLost: the round is not one that this replica is in with that sender.
        """

    async def take_part(self, round: str, sender: PeerId, part: Bulk) -> Bulk:
        """Take in a part, wait for the reduced span, and return it.

        Raises:
            PeerLost: the part is unusable, or the round ended without a result.
        """


class RoundTransport(ServicerBase):  # type: ignore[misc]
    """Sends and receives for the rounds of one run and stage."""

    def __init__(self, p2p: P2P, *, fingerprint: str, stage: int) -> None:
        self._p2p = p2p
        self._fingerprint = fingerprint
        self._stage = stage
        self._handler: RoundHandler | None = None

    async def open(self, handler: RoundHandler) -> None:
        """Begin to answer."""
        self._handler = handler
        await self.add_p2p_handlers(self._p2p, namespace=self._space)

    async def close(self) -> None:
        """Answer no more."""
        self._handler = None
        await self.remove_p2p_handlers(self._p2p, namespace=self._space)

    # --- calling others --------------------------------------------------------------------------------------

    async def send(self, peer: PeerId, message: Message) -> None:
        """Deliver one word.

        Raises:
            PeerLost: it did not arrive.
        """
        await self._call(peer, to_wire(message, fingerprint=self._fingerprint, stage=self._stage))

    async def ping(self, peer: PeerId) -> None:
        """Ask whether a peer is there.

        Raises:
            PeerLost: it is not.
        """
        wire = round_pb2.RoundMessage(fingerprint=self._fingerprint, stage=self._stage)
        wire.ping.SetInParent()
        await self._call(peer, wire)

    async def exchange(
        self, peer: PeerId, round: str, part: memoryview, *, result_bytes: int, timeout_s: float
    ) -> Bulk:
        """Send a part of a peer's span, and return the reduced span.

        Raises:
            PeerLost: the peer broke off, was too slow, or sent something else than announced.
        """
        header = round_pb2.RoundPartHeader(fingerprint=self._fingerprint, stage=self._stage, round=round)

        async def outgoing() -> AsyncIterator[round_pb2.RoundPart]:
            yield round_pb2.RoundPart(header=header)
            async for piece in _pieces(part):
                yield piece

        stream = None
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self._stub(peer).rpc_exchange(outgoing())
                return await _gather(stream, result_bytes)
        except TimeoutError:
            raise PeerLost("it did not finish in time") from None
        except (*PEER_FAILED, P2PHandlerError, Malformed) as error:
            raise _lost(error) from error
        finally:
            if stream is not None:
                await stream.aclose()

    # --- being called ----------------------------------------------------------------------------------------

    async def rpc_word(self, request: round_pb2.RoundMessage, context: P2PContext) -> round_pb2.RoundReceipt:
        """Take in one word of a round."""
        if not self._is_mine(request.fingerprint, request.stage):
            return round_pb2.RoundReceipt(is_known=False)
        message = from_wire(request)
        if message is not None and self._handler is not None:
            self._handler.received(PeerId(context.remote_id.to_base58()), message)
        return round_pb2.RoundReceipt(is_known=True)

    async def rpc_exchange(
        self, stream: AsyncIterator[round_pb2.RoundPart], context: P2PContext
    ) -> AsyncIterator[round_pb2.RoundPart]:
        """Take in a member's part and answer with the reduced span."""
        sender = PeerId(context.remote_id.to_base58())
        first = await asyncio.wait_for(anext(stream), _CHUNK_S)
        handler = self._handler
        if handler is None or not self._is_mine(first.header.fingerprint, first.header.stage):
            raise PeerLost("I do not train that")
        round = check_round_id(first.header.round)
        expected = await handler.expect_part(round, sender)
        part = await _gather(stream, expected)
        result = await handler.take_part(round, sender, part)
        async for piece in _pieces(memoryview(result.data), norm_sq=result.norm_sq, digest=result.digest):
            yield piece

    # --- details ---------------------------------------------------------------------------------------------

    async def _call(self, peer: PeerId, wire: round_pb2.RoundMessage) -> None:
        try:
            receipt = await self._stub(peer).rpc_word(wire, timeout=_SEND_S)
        except (*PEER_FAILED, P2PHandlerError) as error:
            raise _lost(error) from error
        if not receipt.is_known:
            raise PeerLost("it does not train this")

    def _stub(self, peer: PeerId):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return self.get_stub(self._p2p, PeerID.from_base58(peer), namespace=self._space)

    @property
    def _space(self) -> str:
        return f"{_NAMESPACE}/{self._fingerprint[:16]}/{self._stage}"

    def _is_mine(self, fingerprint: str, stage: int) -> bool:
        return fingerprint == self._fingerprint and stage == self._stage


async def _pieces(
    data: memoryview, *, norm_sq: float = 0.0, digest: bytes | None = None
) -> AsyncIterator[round_pb2.RoundPart]:
    if digest is None:
        digest = await asyncio.to_thread(digest_of, data)
    for start in range(0, len(data), CHUNK_BYTES):
        yield round_pb2.RoundPart(chunk=bytes(data[start : start + CHUNK_BYTES]))
    yield round_pb2.RoundPart(end=round_pb2.RoundPartEnd(num_bytes=len(data), digest=digest, norm_sq=norm_sq))


async def _gather(stream: AsyncIterator[round_pb2.RoundPart], expected: int) -> Bulk:
    """Collect chunks up to the last message; more or less than `expected` bytes is a violation."""
    received = bytearray()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream), _CHUNK_S)
        except StopAsyncIteration:
            raise Malformed("the stream was cut off") from None
        kind = piece.WhichOneof("kind")
        if kind == "end":
            break
        if kind != "chunk" or len(received) + len(piece.chunk) > expected:
            raise Malformed("more or something else was sent than announced")
        received += piece.chunk
    data = bytes(received)
    digest = await asyncio.to_thread(digest_of, data)
    if len(data) != expected or piece.end.num_bytes != expected or digest != piece.end.digest:
        raise Malformed("the length or the digest does not match")
    return Bulk(data, digest, piece.end.norm_sq)


def digest_of(data: bytes | memoryview) -> bytes:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(data).digest()


def _lost(error: BaseException) -> PeerLost:
    """Tell a peer that is not there from one that broke off or refused."""
    text = str(error)
    is_dial = isinstance(error, (P2PDaemonError, ControlFailure)) and not isinstance(error, P2PHandlerError)
    lowered = text.lower()
    is_refused = is_dial and any(
        sign in lowered for sign in ("connection refused", "no addresses", "routing: not found")
    )
    return PeerLost(text[:200] or type(error).__name__, is_refused=is_refused)
