"""Requests to the stages that other peers hold, over hivemind's P2P streams: one raw stream a request.

Nothing is allocated from a length that a peer declares: the one who asks knows the size of the answer, and the one who
serves computes the size of what is coming from the request's bounded fields before a byte of it is read.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from typing import Protocol

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PHandlerError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from node.core import versions
from node.core.errors import PeerError, PeerTimeout
from node.core.types import PeerId
from node.network.frames import CHUNK_S, OPENING_S, read_bulk, read_frame, until_closed, write_bulk, write_frame
from node.network.processes import PEER_FAILED
from node.network.quotas import Gate, Quota, Told, log_line
from node.network.round_words import Malformed
from node.trust.identity import short
from node.v1 import pipeline_pb2 as pb

MAX_REQUEST_BYTES = 64 * 1024
_MAX_REPLY_BYTES = 64 * 1024
_MAX_MOVED = 256
"""Peers of whom it is known when something last moved."""
_QUOTA = Quota(streams=256, streams_of_peer=64, num_bytes=2 << 30, bytes_of_peer=1 << 30)
"""A driver has a few microbatches under way at a time, and a ping a second."""
_PING_S = 2.0


class StageHandler(Protocol):
    """The node behind the network."""

    def expect(self, sender: PeerId, request: pb.StageRequest) -> tuple[int, ...]:
        """Check a request before its tensors are read, and return the bytes of each of them.

        Raises:
            Malformed: no honest peer sends that; the stream is cut.
        """

    async def serve(
        self, sender: PeerId, request: pb.StageRequest, tensors: Sequence[bytearray]
    ) -> tuple[pb.StageReply, bytes | memoryview]:
        """Do what is asked, or say in the reply why not; never raises for a bad request."""


class StageTransport:
    """Asks others' stages and serves this node's, for one run."""

    def __init__(self, p2p: P2P, *, fingerprint: str, told: Told = log_line) -> None:
        self._p2p = p2p
        self._fingerprint = fingerprint
        self._name = versions.namespace(fingerprint, "stages")
        self._handler: StageHandler | None = None
        self._gate = Gate("stages", _QUOTA, told=told)
        self._moved_at: dict[PeerId, float] = {}
        """By peer: when a chunk to it or from it last moved on."""
        self.bytes_sent = 0
        self.bytes_received = 0

    async def open(self, handler: StageHandler) -> None:
        """Begin to answer."""
        self._handler = handler
        await self._p2p.add_binary_stream_handler(self._name, self._serve)

    async def close(self) -> None:
        """Answer no more."""
        self._handler = None
        await self._p2p.remove_binary_stream_handler(self._name)

    async def call(
        self,
        peer: PeerId,
        request: pb.StageRequest,
        tensors: Sequence[bytes | memoryview] = (),
        *,
        reply_bytes: int,
        timeout_s: float,
    ) -> tuple[pb.StageReply, bytearray]:
        """Send a request, and return the reply with its tensor (empty if it has none).

        Args:
            peer: Whom to ask.
            request: What to ask; the run is filled in here.
            tensors: Encoded, in the order in which the request announces them.
            reply_bytes: Size of the reply's tensor, if there is one.
            timeout_s: For everything together.

        Raises:
            PeerTimeout: no whole answer in time.
            PeerError: the peer is not there, broke off, or answered something else than was asked.
        """
        request.fingerprint = self._fingerprint
        writer = None
        try:
            async with asyncio.timeout(timeout_s):
                _, reader, writer = await self._p2p.call_binary_stream_handler(PeerID.from_base58(peer), self._name)
                await self._write(peer, writer, request, tensors)
                reply = pb.StageReply()
                await read_frame(reader, reply, max_bytes=_MAX_REPLY_BYTES)
                return reply, await self._read(peer, reader, reply_bytes if reply.has_tensor else 0)
        except TimeoutError as error:
            raise PeerTimeout(f"{short(peer)} did not answer within {timeout_s:.1f} s.", peer_id=peer) from error
        except (*PEER_FAILED, P2PHandlerError, Malformed) as error:
            reason = str(error)[:200] or type(error).__name__
            raise PeerError(f"{short(peer)} failed: {reason}.", peer_id=peer) from error
        finally:
            if writer is not None:
                writer.close()

    async def ping(self, peer: PeerId) -> bool:
        """Return whether a peer serves this run, as far as can be told within a moment.

        On a link that is full the answer waits behind what else travels; then chunks that move are the answer.
        """
        asked_at = time.monotonic()
        try:
            request = pb.StageRequest(kind=pb.STAGE_KIND_PING)
            reply, _ = await self.call(peer, request, reply_bytes=0, timeout_s=_PING_S)
        except PeerTimeout:
            return self._moved_at.get(peer, 0.0) > asked_at
        except PeerError:
            return False
        return reply.status == pb.STAGE_STATUS_DONE

    async def _serve(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; a stream that is not in order is cut off."""
        sender = PeerId(info.peer_id.to_base58())
        try:
            with self._gate.stream(sender):
                await self._answer(sender, reader, writer)
                await until_closed(reader)
        except (*PEER_FAILED, Malformed):
            pass  # the sender sees the cut
        finally:
            writer.close()

    async def _answer(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = pb.StageRequest()
        await read_frame(reader, request, max_bytes=MAX_REQUEST_BYTES, wait_s=OPENING_S)
        handler = self._handler
        if handler is None or request.fingerprint != self._fingerprint:
            raise Malformed("I do not train that")
        if request.kind == pb.STAGE_KIND_PING:
            # a stream that is closed before its end is read is a broken pipe over there
            await self._read(sender, reader, 0)
            await self._write(sender, writer, pb.StageReply(status=pb.STAGE_STATUS_DONE), ())
            return
        sizes = handler.expect(sender, request)
        with self._gate.reserve(sender, sum(sizes)):
            received = await self._read(sender, reader, sum(sizes))
            tensors, start = [], 0
            for size in sizes:
                tensors.append(received[start : start + size])
                start += size
            reply, tensor = await handler.serve(sender, request, tensors)
        reply.has_tensor = len(tensor) > 0
        await self._write(sender, writer, reply, (tensor,) if len(tensor) else ())

    def _moved(self, peer: PeerId) -> None:
        self._moved_at.pop(peer, None)
        self._moved_at[peer] = time.monotonic()
        if len(self._moved_at) > _MAX_MOVED:
            del self._moved_at[next(iter(self._moved_at))]  # the one that moved longest ago

    async def _write(
        self,
        peer: PeerId,
        writer: asyncio.StreamWriter,
        message: pb.StageRequest | pb.StageReply,
        tensors: Sequence[bytes | memoryview],
    ) -> None:
        write_frame(writer, message)
        checksum, num_bytes = 0, 0

        def note(chunk: memoryview) -> None:
            nonlocal checksum
            checksum = zlib.crc32(chunk, checksum)

        for tensor in tensors:
            await write_bulk(writer, memoryview(tensor).cast("B"), note, lambda: self._moved(peer))
            num_bytes += memoryview(tensor).nbytes
        write_frame(writer, pb.StageEnd(num_bytes=num_bytes, crc32=checksum))
        async with asyncio.timeout(CHUNK_S):
            await writer.drain()
        self.bytes_sent += num_bytes

    async def _read(self, peer: PeerId, reader: asyncio.StreamReader, num_bytes: int) -> bytearray:
        """Read tensors and their end; TLS has authenticated every byte, so a checksum is enough against mistakes."""
        checksum = 0

        def note(chunk: memoryview) -> None:
            nonlocal checksum
            checksum = zlib.crc32(chunk, checksum)

        data = await read_bulk(reader, num_bytes, note, lambda: self._moved(peer))
        end = pb.StageEnd()
        await read_frame(reader, end, max_bytes=64, wait_s=CHUNK_S)
        if end.num_bytes != num_bytes or end.crc32 != checksum:
            raise Malformed("the length or the checksum does not match")
        self.bytes_received += num_bytes
        return data
