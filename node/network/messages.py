"""hivemind's own streams of messages, with a bound: a marker, a length of 8 bytes, big-endian, and a message.

hivemind reads such a message whatever its length, into memory, and for ever. The form is kept so that nodes of earlier
versions are understood.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError, Message
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.control import P2PHandlerError
from hivemind.proto.p2pd_pb2 import RPCError

from node.network.malformed import Malformed


def write_message(writer: asyncio.StreamWriter, message: Message) -> None:
    """Put a message on the stream; `drain` is the caller's."""
    _write(writer, P2P.MESSAGE_MARKER, message)


def write_end(writer: asyncio.StreamWriter) -> None:
    """Say that no message follows."""
    _write(writer, P2P.ERROR_MARKER, P2P.END_OF_STREAM)


async def read_message(reader: asyncio.StreamReader, message: Message, *, max_bytes: int) -> None:
    """Read a message into `message`; the deadline is the caller's.

    Raises:
        Malformed: it is longer than `max_bytes`, or no such message.
        P2PHandlerError: the other side says what went wrong there instead.
        IncompleteReadError: the stream ended.
    """
    marker = await reader.readexactly(1)
    size = int.from_bytes(await reader.readexactly(P2P.HEADER_LEN), P2P.BYTEORDER)
    if marker not in (P2P.MESSAGE_MARKER, P2P.ERROR_MARKER) or size > max_bytes:
        raise Malformed(f"a message of {size} bytes")
    body = await reader.readexactly(size)
    error = RPCError()
    try:
        (message if marker == P2P.MESSAGE_MARKER else error).ParseFromString(body)
    except DecodeError:
        raise Malformed("that is not the expected message") from None
    if marker == P2P.ERROR_MARKER:
        raise P2PHandlerError(error.message[:200])


def _write(writer: asyncio.StreamWriter, marker: bytes, message: Message) -> None:
    body = message.SerializeToString()
    writer.write(marker + len(body).to_bytes(P2P.HEADER_LEN, P2P.BYTEORDER) + body)
