"""The base model over hivemind's P2P streams: serving what is here, and asking one peer for a piece of it.

One raw stream a request. Who asks knows every size from the founder's manifest, so nothing is allocated from a length
that a peer declares; and content is checked by who keeps it, not here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PHandlerError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from node.core import versions
from node.core.errors import PeerBusy, PeerError, PeerTimeout, ProtocolViolation
from node.core.types import PeerId
from node.network.frames import CHUNK_S, OPENING_S, read_bulk, read_frame, until_closed, write_bulk, write_frame
from node.network.processes import PEER_FAILED
from node.network.quotas import Gate, Quota, Told, log_line
from node.network.round_words import Malformed
from node.trust.identity import short
from node.trust.manifest import MAX_MANIFEST_BYTES
from node.v1 import weights_pb2 as pb

BLOCK_BYTES = 4 << 20
"""What is read, hashed and written at a time, on a worker thread."""
_MAX_FRAME_BYTES = 4096
_QUOTA = Quota(streams=64, streams_of_peer=8)
_MAX_SENDS = 8
_MAX_SENDS_TO_ONE = 2
_FIRST_ANSWER_S = 15.0
_BUSY_S = 2.0


class Extent(Protocol):
    """Bytes of a file."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def start(self) -> int:
        """Of the first byte."""

    @property
    def stop(self) -> int:
        """Behind the last byte."""


class WeightSource(Protocol):
    """The folder behind the network; every call may read the disk."""

    def manifest_bytes(self) -> bytes:
        """Return the founder's manifest."""

    def held_bits(self) -> bytes:
        """Return which of the manifest's tensors are here (`proto/node/v1/weights.proto`)."""

    def tensor(self, name: str) -> Extent | None:
        """Return where a tensor is."""

    def file(self, name: str) -> Extent | None:
        """Return where a small file is."""


class WeightServer:
    """Hands the base model on, to a bounded number of peers at a time."""

    def __init__(self, p2p: P2P, *, fingerprint: str, source: WeightSource, told: Told = log_line) -> None:
        self._p2p = p2p
        self._fingerprint = fingerprint
        self._source = source
        self._name = _protocol(fingerprint)
        self._gate = Gate("weights", _QUOTA, told=told)
        self._sends: Counter[PeerId] = Counter()
        self.bytes_sent = 0

    async def open(self) -> None:
        """Begin to answer."""
        await self._p2p.add_binary_stream_handler(self._name, self._serve)

    async def close(self) -> None:
        """Answer no more."""
        await self._p2p.remove_binary_stream_handler(self._name)

    async def _serve(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; a stream that is not in order is cut off."""
        sender = PeerId(info.peer_id.to_base58())
        try:
            with self._gate.stream(sender):
                await self._answer(sender, reader, writer)
                await until_closed(reader)
        except (*PEER_FAILED, Malformed):
            pass  # the other side sees the cut
        finally:
            writer.close()

    async def _answer(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = pb.WeightRequest()
        await read_frame(reader, request, max_bytes=_MAX_FRAME_BYTES, wait_s=OPENING_S)
        if request.fingerprint != self._fingerprint:
            raise Malformed("I do not train that")
        if request.kind in (pb.WEIGHT_KIND_MANIFEST, pb.WEIGHT_KIND_HELD):
            is_list = request.kind == pb.WEIGHT_KIND_MANIFEST
            data = await asyncio.to_thread(self._source.manifest_bytes if is_list else self._source.held_bits)
            write_frame(writer, pb.WeightReply(status=pb.WEIGHT_STATUS_OK, num_bytes=len(data)))
            await write_bulk(writer, memoryview(data))
            await self._end(writer, len(data))
            return
        find = self._source.file if request.kind == pb.WEIGHT_KIND_FILE else self._source.tensor
        extent = await asyncio.to_thread(find, request.name)
        if extent is None or request.offset > extent.stop - extent.start:
            await self._refuse(writer, pb.WEIGHT_STATUS_ABSENT)
        elif self._sends.total() >= _MAX_SENDS or self._sends[sender] >= _MAX_SENDS_TO_ONE:
            await self._refuse(writer, pb.WEIGHT_STATUS_BUSY)
        else:
            self._sends[sender] += 1
            try:
                await self._send(writer, extent, extent.start + request.offset)
            finally:
                self._sends[sender] -= 1

    async def _send(self, writer: asyncio.StreamWriter, extent: Extent, start: int) -> None:
        num_bytes = extent.stop - start
        write_frame(writer, pb.WeightReply(status=pb.WEIGHT_STATUS_OK, num_bytes=num_bytes))
        while start < extent.stop:
            block = await asyncio.to_thread(_read, extent.path, start, min(BLOCK_BYTES, extent.stop - start))
            await write_bulk(writer, memoryview(block))
            start += len(block)
            self.bytes_sent += len(block)
        await self._end(writer, num_bytes)

    async def _refuse(self, writer: asyncio.StreamWriter, status: pb.WeightStatus) -> None:
        write_frame(writer, pb.WeightReply(status=status))
        async with asyncio.timeout(CHUNK_S):
            await writer.drain()

    async def _end(self, writer: asyncio.StreamWriter, num_bytes: int) -> None:
        write_frame(writer, pb.WeightEnd(num_bytes=num_bytes))
        async with asyncio.timeout(CHUNK_S):
            await writer.drain()


class WeightClient:
    """Asks peers for pieces of one run's base model.

    Every method raises PeerTimeout, PeerBusy or PeerError if the peer does not give the piece, and ProtocolViolation
    if it answers what no honest peer does.
    """

    def __init__(self, p2p: P2P, *, fingerprint: str) -> None:
        self._p2p = p2p
        self._fingerprint = fingerprint
        self.bytes_received = 0

    async def manifest(self, peer: PeerId) -> bytes:
        """Return what a peer gives as the founder's manifest; it is still to be checked."""
        async with self._ask(peer, pb.WeightRequest(kind=pb.WEIGHT_KIND_MANIFEST)) as (reader, num_bytes):
            if num_bytes > MAX_MANIFEST_BYTES:
                raise ProtocolViolation(f"{short(peer)} offers a list of {num_bytes} bytes.", peer_id=peer)
            return bytes(await read_bulk(reader, num_bytes))

    async def held(self, peer: PeerId, names: list[str]) -> frozenset[str]:
        """Return which of the tensors `names`, the manifest's in its order, a peer has."""
        size = (len(names) + 7) // 8
        async with self._ask(peer, pb.WeightRequest(kind=pb.WEIGHT_KIND_HELD), size) as (reader, _):
            bits = int.from_bytes(await read_bulk(reader, size), "little")
        return frozenset(name for position, name in enumerate(names) if bits >> position & 1)

    async def file(self, peer: PeerId, name: str, num_bytes: int) -> bytes:
        """Return a small file of that size."""
        async with self._ask(peer, pb.WeightRequest(kind=pb.WEIGHT_KIND_FILE, name=name), num_bytes) as (reader, _):
            data = bytes(await read_bulk(reader, num_bytes))
        self.bytes_received += num_bytes
        return data

    async def tensor(
        self, peer: PeerId, name: str, *, offset: int, num_bytes: int, take: Callable[[bytearray], Awaitable[None]]
    ) -> None:
        """Hand a tensor's `num_bytes` bytes from `offset` on to `take`, block by block."""
        request = pb.WeightRequest(kind=pb.WEIGHT_KIND_TENSOR, name=name, offset=offset)
        async with self._ask(peer, request, num_bytes) as (reader, _):
            while num_bytes:
                block = await read_bulk(reader, min(BLOCK_BYTES, num_bytes))
                num_bytes -= len(block)
                self.bytes_received += len(block)
                await take(block)

    @asynccontextmanager
    async def _ask(
        self, peer: PeerId, request: pb.WeightRequest, expected: int | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
        """Open a stream, ask, and check the reply; on leaving, check that the stream was complete."""
        request.fingerprint = self._fingerprint
        name = short(peer)
        writer = None
        try:
            async with asyncio.timeout(_FIRST_ANSWER_S):
                _, reader, writer = await self._p2p.call_binary_stream_handler(
                    PeerID.from_base58(peer), _protocol(self._fingerprint)
                )
                write_frame(writer, request)
                await writer.drain()
                reply = pb.WeightReply()
                await read_frame(reader, reply, max_bytes=_MAX_FRAME_BYTES)
            if reply.status == pb.WEIGHT_STATUS_BUSY:
                raise PeerBusy(f"{name} is sending weights to others.", peer_id=peer, retry_after_s=_BUSY_S)
            if reply.status != pb.WEIGHT_STATUS_OK:
                raise PeerError(f"{name} does not have {request.name or 'that'}.", peer_id=peer)
            if expected is not None and reply.num_bytes != expected:
                raise ProtocolViolation(
                    f"{name} offers {reply.num_bytes} bytes of {request.name or 'its list'}, which has {expected}.",
                    peer_id=peer,
                )
            yield reader, reply.num_bytes
            end = pb.WeightEnd()
            await read_frame(reader, end, max_bytes=64, wait_s=CHUNK_S)
            if end.num_bytes != reply.num_bytes:
                raise Malformed("the length does not match")
        except TimeoutError as error:
            raise PeerTimeout(f"{name} sent nothing for a while.", peer_id=peer) from error
        except Malformed as error:
            raise ProtocolViolation(f"{name} broke the protocol: {error}.", peer_id=peer) from error
        except (*PEER_FAILED, P2PHandlerError) as error:
            reason = str(error)[:200] or type(error).__name__
            raise PeerError(f"{name} failed while sending weights: {reason}.", peer_id=peer) from error
        finally:
            if writer is not None:
                writer.close()


def _protocol(fingerprint: str) -> str:
    return versions.namespace(fingerprint, "weights")


def _read(path: Path, start: int, size: int) -> bytes:
    """Return exactly `size` bytes; EOFError if the file has become shorter."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        data = file.read(size)
    if len(data) != size:
        raise EOFError(f"{path} was cut short")
    return data
