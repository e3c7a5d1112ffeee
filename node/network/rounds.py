"""Averaging rounds over hivemind's P2P streams: the network form of what `averaging/round.py` wants done.

Small messages are unary calls with a deadline each. The parts of a peer's spans and the results of these share one raw
stream: a header, the member's parts, an end; then the reduced spans and an end. The explicit end with length and
digests is there because a stream that merely stops looks just like one that is complete. Nothing is allocated from a
length that a peer declares: the caller says how many bytes it expects (`frames.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError
from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError, P2PHandlerError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure

from node.core import versions
from node.core.round_messages import Message as RoundWord
from node.core.types import PeerId
from node.network.frames import CHUNK_S, OPENING_S, read_bulk, read_frame, until_closed, write_bulk, write_frame
from node.network.processes import PEER_FAILED, is_nobody_there
from node.network.quotas import Bounded, Gate, Quota, Told, log_line
from node.network.records import MAX_STAGES
from node.network.round_words import MAX_MESSAGE_BYTES, Malformed, check_round_id, from_wire, to_wire
from node.v1 import round_pb2

_SEND_S = 5.0
_MAX_FRAME_BYTES = 64 * MAX_STAGES + 4096
"""A frame's list has an entry a stage in common, of a digest and a norm at most."""
_MAX_WEIGHT = 1 << 62
_QUOTA = Quota(streams=256, streams_of_peer=8, requests_per_s=50, burst=500)
"""A round needs one stream a pair, a dozen words a member, and a few pings more."""


class PeerLost(Exception):
    """A peer could not be reached or broke off.

    `is_refused`: nobody is there at all. `is_to_blame`: it was too slow, or sent what it should not; a stream that was
    only cut blames nobody, because an innocent member cuts its streams too when it drops the round.
    """

    def __init__(self, reason: str, *, is_refused: bool = False, is_to_blame: bool = False) -> None:
        super().__init__(reason)
        self.is_refused = is_refused
        self.is_to_blame = is_to_blame


@dataclass(frozen=True, slots=True)
class Bulk:
    """What came over a stream for one span, whole: its length and digest were checked."""

    data: bytes | bytearray | memoryview
    digest: bytes
    """SHA-256 of a result; a checksum of a part, which nobody votes on."""
    norm_sq: float = 0.0
    """Of a result: the squared norm of the span's mean."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What one member brings to the spans of another, stage by stage in order."""

    weights: tuple[int, ...]
    """Labels counted in each."""
    parts: tuple[bytes | bytearray | memoryview, ...]


class BulkHandler(Protocol):
    """Whoever takes in and gives out the bulk."""

    async def expect_parts(self, round: str, sender: PeerId) -> tuple[int, ...]:
        """Wait until the round is open here, and return the bytes of each part that `sender` has to send.

        Raises:
            PeerLost: the round is not one that this peer is in with that sender.
        """

    def moved(self, round: str, peer: PeerId) -> None:
        """Note that a chunk of this round came from a peer or went to it."""

    async def take_parts(self, round: str, sender: PeerId, parts: Parts) -> tuple[Bulk, ...]:
        """Take in a member's parts, wait for the reduced spans, and return them.

        Raises:
            PeerLost: the parts are unusable, or the round ended without a result.
        """


class RoundTransport(ServicerBase):  # type: ignore[misc]
    """Sends and receives for the rounds of one run."""

    def __init__(self, p2p: P2P, *, fingerprint: str, told: Told = log_line) -> None:
        self._p2p = p2p
        self._fingerprint = fingerprint
        self._received: Callable[[PeerId, RoundWord], None] | None = None
        self._bulk: BulkHandler | None = None
        self._gate = Gate("rounds", _QUOTA, told=told)

    async def open(self, received: Callable[[PeerId, RoundWord], None], bulk: BulkHandler) -> None:
        """Begin to answer.

        Args:
            received: Takes in a word of the round from an authenticated peer.
            bulk: Takes in parts and gives out results.
        """
        self._received, self._bulk = received, bulk
        name = self._get_handle_name(self._space, "rpc_word")
        await self._p2p.add_protobuf_handler(name, self.rpc_word, Bounded(round_pb2.RoundMessage, MAX_MESSAGE_BYTES))
        await self._p2p.add_binary_stream_handler(self._bulk_name, self._serve_exchange)

    async def close(self) -> None:
        """Answer no more."""
        self._received = self._bulk = None
        await self.remove_p2p_handlers(self._p2p, namespace=self._space)
        await self._p2p.remove_binary_stream_handler(self._bulk_name)

    # --- calling others --------------------------------------------------------------------------------------

    async def send(self, peer: PeerId, message: RoundWord) -> None:
        """Deliver one word.

        Raises:
            PeerLost: it did not arrive.
        """
        await self._call(peer, to_wire(message, fingerprint=self._fingerprint))

    async def ping(self, peer: PeerId) -> None:
        """Ask whether a peer is there.

        Raises:
            PeerLost: it is not.
        """
        wire = round_pb2.RoundMessage(fingerprint=self._fingerprint)
        wire.ping.SetInParent()
        await self._call(peer, wire)

    async def exchange(
        self,
        peer: PeerId,
        round: str,
        parts: Parts,
        *,
        result_bytes: Sequence[int],
        timeout_s: float,
        moved: Callable[[], None] = lambda: None,
    ) -> tuple[Bulk, ...]:
        """Send the parts of a peer's spans, and return the reduced spans; `moved` is called with each chunk.

        Raises:
            PeerLost: the peer broke off, was too slow, or sent something else than announced.
        """
        header = round_pb2.RoundPartHeader(fingerprint=self._fingerprint, round=round, weights=parts.weights)
        writer = None
        try:
            async with asyncio.timeout(timeout_s):
                target = PeerID.from_base58(peer)
                _, reader, writer = await self._p2p.call_binary_stream_handler(target, self._bulk_name)
                write_frame(writer, header)
                checksums = []
                for part in parts.parts:
                    checksum = _Checksum()
                    await write_bulk(writer, memoryview(part), checksum.update, moved)
                    checksums.append(checksum.digest())
                num_bytes = sum(len(part) for part in parts.parts)
                write_frame(writer, round_pb2.RoundPartEnd(num_bytes=num_bytes, digests=checksums))
                await writer.drain()
                return await _read(reader, result_bytes, hashlib.sha256, moved, has_norms=True)
        except TimeoutError:
            raise PeerLost("it did not finish in time", is_to_blame=True) from None
        except (*PEER_FAILED, Malformed) as error:
            raise await _lost(error) from error
        finally:
            if writer is not None:
                writer.close()

    # --- being called ----------------------------------------------------------------------------------------

    async def rpc_word(self, request: round_pb2.RoundMessage, context: P2PContext) -> round_pb2.RoundReceipt:
        """Take in one word of a round."""
        sender = PeerId(context.remote_id.to_base58())
        self._gate.request(sender)
        if request.fingerprint != self._fingerprint:
            return round_pb2.RoundReceipt(is_known=False)
        message = from_wire(request)
        if message is not None and self._received is not None:
            self._received(sender, message)
        return round_pb2.RoundReceipt(is_known=True)

    async def _serve_exchange(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Take in a member's parts and answer with the reduced spans; a stream that is not in order is cut off."""
        sender = PeerId(info.peer_id.to_base58())
        try:
            with self._gate.stream(sender):
                await self._take_and_answer(sender, reader, writer)
                await until_closed(reader)
        except (*PEER_FAILED, Malformed, PeerLost):
            pass  # the sender sees the cut, and the averager has said what there was to say
        finally:
            writer.close()

    async def _take_and_answer(
        self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        header = round_pb2.RoundPartHeader()
        await read_frame(reader, header, max_bytes=_MAX_FRAME_BYTES, wait_s=OPENING_S)
        handler = self._bulk
        if handler is None or header.fingerprint != self._fingerprint:
            raise PeerLost("I do not train that")
        round = check_round_id(header.round)
        expected = await handler.expect_parts(round, sender)
        if len(header.weights) != len(expected) or any(weight >= _MAX_WEIGHT for weight in header.weights):
            raise Malformed("the parts' weights are not in order")

        def moved() -> None:
            handler.moved(round, sender)

        parts = await _read(reader, expected, _Checksum, moved, has_norms=False)
        taken = Parts(tuple(header.weights), tuple(part.data for part in parts))
        results = await handler.take_parts(round, sender, taken)
        for result in results:
            await write_bulk(writer, memoryview(result.data), moved=moved)
        end = round_pb2.RoundPartEnd(
            num_bytes=sum(len(result.data) for result in results),
            digests=[result.digest for result in results],
            norms_sq=[result.norm_sq for result in results],
        )
        write_frame(writer, end)
        async with asyncio.timeout(CHUNK_S):
            await writer.drain()

    # --- details ---------------------------------------------------------------------------------------------

    async def _call(self, peer: PeerId, wire: round_pb2.RoundMessage) -> None:
        try:
            receipt = await self._stub(peer).rpc_word(wire, timeout=_SEND_S)
        except (*PEER_FAILED, P2PHandlerError) as error:
            raise await _lost(error) from error
        except DecodeError as error:
            raise PeerLost("it answered with something else than a receipt", is_to_blame=True) from error
        if not receipt.is_known:
            raise PeerLost("it does not train this")

    def _stub(self, peer: PeerId):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return self.get_stub(self._p2p, PeerID.from_base58(peer), namespace=self._space)

    @property
    def _space(self) -> str:
        return versions.namespace(self._fingerprint, "round")

    @property
    def _bulk_name(self) -> str:
        return f"{self._space}/exchange"


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class _Checksum:
    """CRC-32 in hashlib's shape: TLS has authenticated every byte already, and a part is never voted on."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


async def _read(
    reader: asyncio.StreamReader,
    expected: Sequence[int],
    make_digest: Callable[[], _Digest],
    moved: Callable[[], None],
    *,
    has_norms: bool,
) -> tuple[Bulk, ...]:
    """Read one piece a span, of `expected` bytes each, and their end; anything else is a violation."""
    pieces, digests = [], []
    for num_bytes in expected:
        digest = make_digest()
        pieces.append(await read_bulk(reader, num_bytes, digest.update, moved))
        digests.append(digest.digest())
    end = round_pb2.RoundPartEnd()
    await read_frame(reader, end, max_bytes=_MAX_FRAME_BYTES, wait_s=CHUNK_S)
    if end.num_bytes != sum(expected) or list(end.digests) != digests:
        raise Malformed("the length or a digest does not match")
    if len(end.norms_sq) != (len(pieces) if has_norms else 0):
        raise Malformed("the norms are not in order")
    norms_sq = tuple(end.norms_sq) if has_norms else (0.0,) * len(pieces)
    return tuple(Bulk(*piece) for piece in zip(pieces, digests, norms_sq, strict=True))


def digest_of(data: bytes | memoryview) -> bytes:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(data).digest()


async def _lost(error: BaseException) -> PeerLost:
    """Tell a peer that is not there from one that broke off or refused."""
    text = str(error)
    is_dial = isinstance(error, (P2PDaemonError, ControlFailure)) and not isinstance(error, P2PHandlerError)
    lowered = text.lower()
    is_refused = is_dial and (
        any(sign in lowered for sign in ("connection refused", "no addresses", "routing: not found"))
        or ("dial backoff" in lowered and await is_nobody_there(text))
    )
    is_to_blame = isinstance(error, (Malformed, TimeoutError))
    return PeerLost(text[:200] or type(error).__name__, is_refused=is_refused, is_to_blame=is_to_blame)
