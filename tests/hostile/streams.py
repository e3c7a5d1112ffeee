"""Streams in memory, and the handle on a network daemon as far as a door uses it: what is called hears what it is given."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from hivemind.p2p import PeerID

PEERS = ["QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC"]
CONTEXT = SimpleNamespace(remote_id=PeerID.from_base58(PEERS[0]), peer_id=PeerID.from_base58(PEERS[0]))
"""Of a call and of a stream: who calls."""


class Outgoing(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self):
        super().__init__()
        self.data = bytearray()
        self.is_closed = False

    def write(self, data):
        self.data += data

    def close(self):
        self.is_closed = True

    def is_closing(self):
        return self.is_closed

    def get_extra_info(self, name, default=None):
        return default


def streams(data: bytes):
    """Return a reader that gives `data` and ends, a writer, and what was written; within a running loop."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    reader.feed_data(data)
    reader.feed_eof()
    outgoing = Outgoing()
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    return reader, asyncio.StreamWriter(outgoing, protocol, reader, loop), outgoing


class Line:
    """In place of hivemind's handle on the daemon: handlers are registered, and every call is answered with `answer`."""

    def __init__(self):
        self.answer = b""
        self.handlers = {}
        self.removed = {}
        """A stream that was opened before still arrives there."""
        self.peer_id = PeerID.from_base58(PEERS[1])

    async def add_protobuf_handler(self, name, handler, input_protobuf_type, **_):
        async def handle(data):
            return await handler(input_protobuf_type.FromString(data), CONTEXT)

        self.handlers[name] = handle

    async def add_binary_stream_handler(self, name, handler, balanced=False):
        async def handle(data):
            reader, writer, outgoing = streams(data)
            await handler(CONTEXT, reader, writer)
            assert outgoing.is_closed, "a stream is left open"

        self.handlers[name] = handle

    async def remove_protobuf_handler(self, name, **_):
        self.handlers.pop(name, None)

    async def remove_binary_stream_handler(self, name):
        if name in self.handlers:
            self.removed[name] = self.handlers.pop(name)

    async def list_peers(self):
        return ()  # who asked for a knock has gone: none of the many cases is to reach this machine's own ports

    async def call_binary_stream_handler(self, peer, name):
        reader, writer, _ = streams(self.answer)
        return None, reader, writer

    async def call_protobuf_handler(self, peer, name, request, answer_type):
        return answer_type.FromString(self.answer)
