"""`python -m leaks.recorder FILE [--send-tokens] ARGUMENTS...`: the real `potluck`, all it sends kept in FILE.

Everything that asyncio writes to a socket is kept, that is, what goes to the network daemon, in the clear; and what is
handed to gRPC for the coordinator, which gRPC encrypts and writes by itself.
"""

from __future__ import annotations

import sys
from asyncio import selector_events
from typing import Any, BinaryIO

from coordinator.client import CoordinatorClient
from node.cli.main import main
from node.pipeline.hops import RemoteHop
from node.pipeline.microbatch import Attempt


def record(file: BinaryIO) -> None:
    """Keep what every socket of this process is given."""
    transport = selector_events._SelectorSocketTransport
    write = transport.write

    def kept(self: Any, data: Any) -> None:
        file.write(data)
        write(self, data)

    transport.write = kept
    # `writelines` of this Python joins and calls `write`; were that to change, nothing must pass by unseen
    transport.writelines = lambda self, pieces: kept(self, b"".join(pieces))


def record_calls(file: BinaryIO) -> None:
    """Keep what the coordinator is told: every call is signed, or, of lists, sent as it is."""
    sign, send = CoordinatorClient._sign, CoordinatorClient._send

    def signed(self: Any, method: str, request: Any) -> Any:
        call = sign(self, method, request)
        file.write(b"coordinator:" + method.encode() + call.SerializeToString())
        return call

    async def sent(self: Any, method: str, message: Any, reply: Any) -> Any:
        file.write(message.SerializeToString())
        return await send(self, method, message, reply)

    CoordinatorClient._sign, CoordinatorClient._send = signed, sent  # type: ignore[method-assign]


def send_tokens() -> None:
    """Make the node a bad one: it tells the holders of the stages its token ids."""
    ask, forward = RemoteHop._request, Attempt._forward
    ids: list[int] = []

    async def noted(self: Any, *arguments: Any) -> Any:
        ids[:] = self.batch.input_ids[:8]
        return await forward(self, *arguments)

    def leaking(self: Any, *arguments: Any) -> Any:
        request = ask(self, *arguments)
        request.lengths[:] = ids
        return request

    Attempt._forward, RemoteHop._request = noted, leaking


if __name__ == "__main__":
    path = sys.argv.pop(1)
    if sys.argv[1] == "--send-tokens":
        send_tokens()
        del sys.argv[1]
    with open(path, "wb", buffering=0) as file:
        record(file)
        record_calls(file)
        main()
