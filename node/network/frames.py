"""Frames and bulk on a raw libp2p stream: what every protocol with tensors in it shares.

A frame is a length of 4 bytes, big-endian, and a protobuf message. Bulk is bytes whose number the reader knows before.
A stream that merely stops looks just like one that is complete, so whoever sends bulk ends with a frame that says so.
(Raw, because hivemind's message streams copy every chunk several times and start a task for each.)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from google.protobuf.message import DecodeError, Message

from node.network.round_words import Malformed

CHUNK_BYTES = 64 * 1024
CHUNK_S = 20.0
"""A peer that sends or takes no chunk for so long is given up."""
OPENING_S = 3.0
"""Whoever opens a stream has its first frame ready; what does not begin to come by then is cut."""
_FRAME_S = 2.0
"""A frame that has begun comes whole: a sender of a byte a second is cut."""
_TRICKLE_S = 4.0
_TRICKLE_BYTES = 4096
"""A sender of whom something came, but less than that in `_TRICKLE_S`, is cut: a line that stalls brings nothing, and
one that works brings more."""
_LINGER_S = 5.0


def write_frame(writer: asyncio.StreamWriter, message: Message) -> None:
    """Put a message on the stream; `drain` is the caller's."""
    body = message.SerializeToString()
    writer.write(len(body).to_bytes(4, "big") + body)


async def read_frame(
    reader: asyncio.StreamReader, message: Message, *, max_bytes: int, wait_s: float | None = None
) -> None:
    """Read a message into `message`.

    Args:
        reader: Of the stream.
        message: Of the kind that is expected.
        max_bytes: That it may have.
        wait_s: How long to wait for its first byte; None if the caller has a deadline for the whole.

    Raises:
        Malformed: it is longer than `max_bytes`, or no such message.
        TimeoutError: it did not begin in time, or did not come on.
    """
    async with asyncio.timeout(wait_s) as deadline:
        first = await reader.readexactly(1)
        deadline.reschedule(asyncio.get_running_loop().time() + _FRAME_S)
        size = int.from_bytes(first + await reader.readexactly(3), "big")
        if size > max_bytes:
            raise Malformed(f"a frame of {size} bytes")
        body = await reader.readexactly(size)
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise Malformed("that is not the expected frame") from None


async def write_bulk(
    writer: asyncio.StreamWriter,
    data: memoryview,
    note: Callable[[memoryview], None] = lambda _: None,
    moved: Callable[[], None] = lambda: None,
) -> None:
    """Send `data` chunk by chunk.

    Args:
        writer: Of the stream.
        data: Bytes.
        note: Sees each chunk while earlier ones travel (to hash it).
        moved: Called whenever there is room for more again: what went before has moved on.
    """
    for start in range(0, len(data), CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        writer.write(chunk)
        note(chunk)
        async with asyncio.timeout(CHUNK_S):
            await writer.drain()
        moved()


async def read_bulk(
    reader: asyncio.StreamReader,
    num_bytes: int,
    note: Callable[[memoryview], None] = lambda _: None,
    moved: Callable[[], None] = lambda: None,
) -> bytearray:
    """Read `num_bytes`, chunk by chunk; `note` sees each, and `moved` is called with it."""
    data = bytearray(num_bytes)
    view = memoryview(data)
    for start in range(0, num_bytes, CHUNK_BYTES):
        chunk = view[start : start + CHUNK_BYTES]
        await _fill(reader, chunk)
        note(chunk)
        moved()
    return data


async def _fill(reader: asyncio.StreamReader, chunk: memoryview) -> None:
    """Read a chunk whole, by its deadline; a sender that only trickles is cut sooner."""
    done, few, clock = 0, min(_TRICKLE_BYTES, len(chunk)), asyncio.get_running_loop().time
    async with asyncio.timeout(CHUNK_S) as deadline:
        whole_by = deadline.when()
        while done < len(chunk):
            piece = await reader.read(len(chunk) - done)
            if not piece:
                raise asyncio.IncompleteReadError(b"", len(chunk) - done)
            if done == 0 and len(piece) < few:
                deadline.reschedule(clock() + _TRICKLE_S)
            elif done < few <= done + len(piece):
                deadline.reschedule(whole_by)
            chunk[done : done + len(piece)] = piece
            done += len(piece)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Wait a moment until the other side has closed the stream, which it does once it has all.

    Whoever answers must not close first: libp2p's daemon then resets the stream, and what is still on its way is lost.
    """
    with contextlib.suppress(OSError):  # a TimeoutError is one, too
        async with asyncio.timeout(_LINGER_S):
            await reader.read(1)
