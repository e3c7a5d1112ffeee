"""The floods: what a peer can open, declare and send, against a node in another process; and what honest calls take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2

from hostile import seeds
from hostile.doors import LARGE, NODE, frame, marked
from node.core.types import PeerId
from node.network.door import STATE, say_hello
from node.network.rounds import Parts, PeerLost, RoundTransport
from node.network.stages import StageTransport
from node.trust.identity import short

SPACE = f"potluck/{seeds.RUN[:16]}"
STREAMS = {
    "state": STATE,
    "exchange": f"{SPACE}/round/exchange",
    "stages": f"{SPACE}/stages",
    "weights": f"{SPACE}/weights",
}
FOUR_GIB = {"state": b"\x00" + (1 << 32).to_bytes(8, "big")} | dict.fromkeys(
    ("exchange", "stages", "weights"), b"\xff" * 4
)
_JUNK = bytes(64 * 1024)
_CUT_BY_S = 30.0
"""How long a flood waits to be cut, so that a failure is told as one."""


class Node:
    """The node that is flooded."""

    def __init__(self, process, hello):
        self.process = process
        self.hello = hello
        self.address, self.peer, self.socket = hello["address"], PeerId(hello["peer"]), hello["socket"]

    @classmethod
    async def start(cls, home: Path):
        home.mkdir()
        process = await _run("hostile.flood_node", str(home))
        return cls(process, json.loads(await asyncio.wait_for(process.stdout.readline(), 60)))

    async def look(self) -> dict:
        """Return its memory, and all that it was told of offenders."""
        self.process.stdin.write(b"\n")
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 30))

    async def close(self):
        self.process.stdin.close()
        await asyncio.wait_for(self.process.wait(), 20)


async def _run(module: str, *arguments: str):
    tests = NODE.parent / "tests"
    environment = {"PYTHONPATH": f"{NODE.parent}:{tests}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    pipe, command = asyncio.subprocess.PIPE, [sys.executable, "-m", module, *arguments]
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment, limit=1 << 22)


class Elsewhere:
    """An offender in a process of its own, which takes the processor only when nobody else wants it.

    Else what is measured of honest calls on a machine with few cores is how much the offender computes.
    """

    def __init__(self, process, name):
        self.process, self.name = process, name

    @classmethod
    async def start(cls, home: Path, node: Node):
        home.mkdir()
        process = await _run("hostile.offend", str(home), json.dumps(node.hello))
        return cls(process, json.loads(await asyncio.wait_for(process.stdout.readline(), 60)))

    async def flood(self, kind: str, many: int) -> float:
        """Flood; return the longest time after which a stream was cut."""
        self.process.stdin.write(json.dumps([kind, many]).encode() + b"\n")
        line = await self.process.stdout.readline()
        assert line, "the offender ended"
        return json.loads(line)

    async def close(self):
        self.process.stdin.close()
        await asyncio.wait_for(self.process.wait(), 20)


class Honest:
    """A peer that does what peers do, and measures it."""

    def __init__(self, p2p, node: Node):
        self.p2p, self.node = p2p, node
        self.stages = StageTransport(p2p, fingerprint=seeds.RUN)
        self.rounds = RoundTransport(p2p, fingerprint=seeds.RUN)

    async def once(self) -> float:
        """Ping a stage, and exchange a MiB each way as in a round; return the seconds."""
        began = time.perf_counter()
        assert await self.stages.ping(self.node.peer), "an honest ping is not answered"
        parts, sizes = Parts((1,), (bytes(4 * LARGE),)), (4 * LARGE,)
        await self.rounds.exchange(self.node.peer, "r.large", parts, result_bytes=sizes, timeout_s=20)
        return time.perf_counter() - began

    async def median_s(self, count: int) -> float:
        """Return the median of several, with a pause between them."""
        times = []
        for _ in range(count):
            times.append(await self.once())
            await asyncio.sleep(0.02)
        return statistics.median(times)


class Offender:
    """A peer that floods; each method returns the longest time after which it was cut."""

    def __init__(self, p2p, node: Node):
        self.p2p, self.node, self.target = p2p, node, PeerID.from_base58(node.peer)
        self.name = short(p2p.peer_id.to_base58())

    async def _until_cut(self, door: str, send) -> float:
        """Open a stream, send, and wait until the other side has closed it; return how long after the opening."""
        try:
            _, reader, writer = await self.p2p.call_binary_stream_handler(self.target, STREAMS[door])
        except Exception:  # noqa: BLE001  (refused already: the daemon's errors are many)
            return 0.0
        began = time.monotonic()
        sending = asyncio.ensure_future(send(writer))
        try:
            async with asyncio.timeout(_CUT_BY_S):
                while await reader.read(1 << 16):
                    pass
        except (ConnectionError, OSError):
            pass
        finally:
            sending.cancel()
            writer.close()
        return time.monotonic() - began

    async def declare(self, streams_a_door: int) -> float:
        """Declare 4 GiB at every door, and begin to send them."""

        async def send(writer, door):
            with contextlib.suppress(ConnectionError, OSError):
                writer.write(FOUR_GIB[door])
                for _ in range(256):
                    writer.write(_JUNK)
                    await writer.drain()
                await asyncio.sleep(_CUT_BY_S)

        doors = [door for door in STREAMS for _ in range(streams_a_door)]
        return max(await asyncio.gather(*(self._until_cut(d, lambda w, d=d: send(w, d)) for d in doors)))

    async def be_silent(self, num_streams: int, at_once: int = 250) -> float:
        """Open streams and say nothing."""
        longest, room = 0.0, asyncio.Semaphore(at_once)

        async def one(door):
            nonlocal longest
            async with room:
                longest = max(longest, await self._until_cut(door, lambda writer: asyncio.sleep(_CUT_BY_S)))

        doors = list(STREAMS)
        await asyncio.gather(*(one(doors[number % len(doors)]) for number in range(num_streams)))
        return longest

    async def trickle(self, streams_a_door: int) -> float:
        """Send a byte a second: of the first frame, and of a tensor that was announced in order."""

        async def slowly(writer, first, rest):
            with contextlib.suppress(ConnectionError, OSError):
                writer.write(first)
                for byte in rest:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)

        request = frame(seeds.STAGE_REQUESTS[0][0].SerializeToString())
        openings = {
            "state": marked(b"x" * 60),
            "exchange": frame(b"x" * 60),
            "weights": frame(b"x" * 60),
            "stages": request,
        }
        calls = [
            self._until_cut(d, lambda w, o=o: slowly(w, b"", o))
            for d, o in openings.items()
            for _ in range(streams_a_door)
        ]
        calls += [self._until_cut("stages", lambda w: slowly(w, request, bytes(60))) for _ in range(streams_a_door)]
        return max(await asyncio.gather(*calls))

    async def say_words(self, count: int) -> float:
        """Send words of rounds and greetings as fast as they go."""
        transport = RoundTransport(self.p2p, fingerprint=seeds.RUN)
        refused = 0

        async def one():
            nonlocal refused
            try:
                await transport.ping(self.node.peer)
            except PeerLost:
                refused += 1

        for start in range(0, count, 200):
            await asyncio.gather(*(one() for _ in range(min(200, count - start))))
        with contextlib.suppress(Exception):
            await asyncio.gather(*(say_hello(self.p2p, self.node.peer) for _ in range(80)))
        assert refused, "no word was refused"
        return 0.0

    async def store(self, membership, count: int) -> float:
        """Store records of as many peers, under the run's key and under others."""
        protocol = membership._dht.protocol
        stub = protocol.get_stub(self.target)
        value, expires = seeds.RecordSerializer.dumps(bytes(5000)), time.time() + 20
        key = seeds.dht_id().to_bytes()

        async def one(number):
            subkeys = [seeds.RecordSerializer.dumps(f"{seeds.PEERS[0][:-6]}{number + i:06d}") for i in range(2)]
            request = dht_pb2.StoreRequest(
                keys=[key, number.to_bytes(20, "big")],
                subkeys=subkeys,
                values=[value] * 2,
                expiration_time=[expires, 4e9],
                in_cache=[False] * 2,
            )
            with contextlib.suppress(Exception):
                await stub.rpc_store(request, timeout=20)

        for start in range(0, count, 200):
            await asyncio.gather(*(one(number) for number in range(start, min(count, start + 200), 2)))
        return 0.0


async def _connected(address: str, count: int) -> float:
    assert await connect(address, count) >= min(count, 500), "hardly a connection could be opened"
    return 0.0


KINDS = {
    "declared length of 4 GiB": lambda node, offender, membership, many: offender.declare(8),
    "silent streams": lambda node, offender, membership, many: offender.be_silent(many),
    "a byte a second": lambda node, offender, membership, many: offender.trickle(3),
    "words": lambda node, offender, membership, many: offender.say_words(many),
    "subkeys": lambda node, offender, membership, many: offender.store(membership, many),
    "control API": lambda node, offender, membership, many: call_control(node.socket),
    "connections": lambda node, offender, membership, many: _connected(node.address, many),
}
"""What is done: each returns the longest time after which it was cut, 0 where each call is answered or refused."""


async def connect(address: str, count: int) -> float:
    """Open TCP connections that say nothing, as many as the machine permits; return how many there were at once."""
    host, port = address.split("/")[2], int(address.split("/")[4])
    writers = []
    with contextlib.suppress(OSError):
        for _ in range(count):
            _, writer = await asyncio.open_connection(host, port)
            writers.append(writer)
    await asyncio.sleep(1)
    for writer in writers:
        writer.close()
    return len(writers)


async def call_control(socket: str) -> float:
    """Declare a message of 4 GiB to the control API, over HTTP/2 by hand; return after how long it was refused."""
    reader, writer = await asyncio.open_unix_connection(socket)
    began = time.monotonic()

    def h2(kind: int, flags: int, stream: int, body: bytes) -> bytes:
        return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body

    def header(name: bytes, value: bytes) -> bytes:
        return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

    headers = (
        header(b":method", b"POST") + header(b":scheme", b"http") + header(b":path", b"/node.v1.Control/RunStages")
    )
    headers += header(b":authority", b"x") + header(b"content-type", b"application/grpc") + header(b"te", b"trailers")
    message = b"\x00\xff\xff\xff\xff" + bytes(1000)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2(4, 0, 0, b"") + h2(1, 4, 1, headers) + h2(0, 0, 1, message))
    try:
        async with asyncio.timeout(_CUT_BY_S):
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if int.from_bytes(head[5:9], "big") == 1 and (head[3] == 3 or head[4] & 1):  # reset, or its end
                    return time.monotonic() - began
    finally:
        writer.close()
