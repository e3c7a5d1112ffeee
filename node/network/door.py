"""The door for newcomers: "what do you train?" and "send me the adapter", asked and answered over P2P streams.

A stream that ends is not a message that arrived: the state travels in parts of 256 KiB with an explicit last
message that carries the length and a digest. Each receive has a deadline and the whole has a size limit.
The state's stream has the form of hivemind's streams of messages (`messages.py`), but is read here: hivemind takes in
as many bytes as a message is said to have.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PHandlerError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from node.core import versions
from node.core.errors import NoPeerReachable, PeerBusy, PeerError, PeerTimeout, ProtocolViolation, RunMismatch
from node.core.events import EventBus, Fault
from node.core.text import printable
from node.core.types import PeerId, PeerState
from node.core.versions import Speaker
from node.network.frames import CHUNK_S, OPENING_S, until_closed
from node.network.knock import address_of, is_open
from node.network.malformed import Malformed
from node.network.messages import read_message, write_end, write_message
from node.network.processes import PEER_FAILED
from node.network.quotas import Bounded, Gate, Quota, Told, log_line
from node.trust.identity import SignedBytes, short
from node.trust.seal import MAX_SEAL_BYTES, SealedRun, open_seal
from node.v1 import swarm_pb2

HELLO, STATE = "potluck::Door.rpc_hello", "potluck::Door.rpc_state"
"""The same for every protocol: nodes of any two can tell each other why not."""
_PART_BYTES = 256 * 1024
_MAX_REQUEST_BYTES = 1024
_MAX_CHUNK_BYTES = 4 << 20
"""Of an answer; every version so far sends parts of 256 KiB."""
_QUOTA = Quota(streams=16, streams_of_peer=4, requests_per_s=5, burst=50)
"""A newcomer says hello a few times, and fetches one stage's state after the other."""
_FIRST_ANSWER_S = 8.0
_PART_S = 15.0
_MAX_CONCURRENT_SENDS = 2
_MAX_CONCURRENT_KNOCKS = 4
_MAX_LINEAGE = 256
_MAX_TOLD = 256
_MAX_ROUND_ID = 128
_MAX_VERSION = 1 << 62
_BASE_HASH = re.compile(r"[0-9a-f]{1,64}")
MAX_CLOCK_DIFFERENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage's adapter and moments; whole, but not yet trusted where they were fetched."""

    data: bytes
    lineage: tuple[str, ...]
    """Ids of the latest rounds behind them, oldest first."""
    version: int
    base_hash: str
    """Of the lineage: stages that are fetched one by one must agree in it."""


_WELCOME = Bounded(swarm_pb2.Welcome, MAX_SEAL_BYTES + 4096)


class StateSource(Protocol):
    """What the door needs of the node behind it."""

    @property
    def sealed_run(self) -> SealedRun:
        """The run, as its founder signed it."""

    @property
    def state(self) -> PeerState:
        """What this node is doing."""

    async def export_state(self, stage: int) -> StageState:
        """Return a stage's adapter and moments, and where they stand.

        Raises:
            PeerBusy: not now; ask again later.
        """


@dataclass(frozen=True, slots=True)
class Welcomed:
    """A peer's answer to `say_hello`."""

    run: SealedRun
    peer_state: str
    clock_ahead_s: float
    """How far this machine's clock is ahead of the peer's, in seconds."""
    speaker: Speaker = field(default_factory=Speaker.me)
    port_is_open: bool | None = None
    """Whether the peer reached the port that it was asked to knock at; None if it did not knock."""
    seen_at: str = ""
    """The IP address from which this node comes, as the peer sees it; '' if it did not say."""


class Door:
    """Answers newcomers; every request is bounded and nothing is answered for another run."""

    def __init__(self, source: StateSource, events: EventBus | None = None, told: Told = log_line) -> None:
        """Set up.

        Args:
            source: The node behind the door.
            events: Told of peers that speak another protocol, once of each.
            told: Told of peers that are over a quota.
        """
        self._source = source
        self._events = events or EventBus()
        self._turned_away: set[PeerId] = set()
        self._gate = Gate("door", _QUOTA, told=told)
        self._sending = asyncio.Semaphore(_MAX_CONCURRENT_SENDS)
        self._knocking = asyncio.Semaphore(_MAX_CONCURRENT_KNOCKS)
        self._p2p: P2P | None = None
        self.bytes_sent = 0

    async def open(self, p2p: P2P) -> None:
        """Begin to answer."""
        self._p2p = p2p
        await p2p.add_protobuf_handler(HELLO, self.rpc_hello, Bounded(swarm_pb2.Hello, _MAX_REQUEST_BYTES))
        await p2p.add_binary_stream_handler(STATE, self._serve_state)

    async def rpc_hello(self, request: swarm_pb2.Hello, context: P2PContext) -> swarm_pb2.Welcome:
        """Say what is trained here; whoever trains something else sees the difference and goes."""
        sender, me = PeerId(context.remote_id.to_base58()), Speaker.me()
        self._gate.request(sender)
        if not versions.understands(request.protocol):
            self._turn_away(sender, request)
            return swarm_pb2.Welcome(protocol=me.protocol, software=me.software, clock_s=time.time())
        signed = self._source.sealed_run.signed
        welcome = swarm_pb2.Welcome(
            protocol=me.protocol,
            software=me.software,
            recipe=swarm_pb2.Signed(body=signed.body, public_key=signed.public_key, signature=signed.signature),
            clock_s=time.time(),
            state=self._source.state.value,
        )
        if 0 < request.knock_port < 65536 and not self._knocking.locked():
            async with self._knocking:
                await self._knock(sender, request.knock_port, welcome)
        return welcome

    async def _knock(self, peer: PeerId, port: int, welcome: swarm_pb2.Welcome) -> None:
        """Tell the peer whether its port can be reached from here."""
        host = await address_of(self._p2p, peer) if self._p2p is not None else ""
        if host:
            welcome.seen_at, welcome.port_is_open = host, await is_open(host, port)
            welcome.clock_s = time.time()

    def _turn_away(self, peer: PeerId, request: swarm_pb2.Hello) -> None:
        if peer in self._turned_away or len(self._turned_away) >= _MAX_TOLD:
            return
        self._turned_away.add(peer)
        theirs = Speaker.heard(request.protocol, request.software)
        self._events.emit(Fault(*versions.member_refused(short(peer), theirs)))

    async def _serve_state(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request for a stage's state; a stream that is not in order is cut off."""
        try:
            with self._gate.stream(PeerId(info.peer_id.to_base58())):
                request = swarm_pb2.StateRequest()
                async with asyncio.timeout(OPENING_S):
                    await read_message(reader, request, max_bytes=_MAX_REQUEST_BYTES)
                    with contextlib.suppress(P2PHandlerError):  # the mark that no other request follows
                        await read_message(reader, swarm_pb2.StateRequest(), max_bytes=_MAX_REQUEST_BYTES)
                async for chunk in self._chunks(request):
                    write_message(writer, chunk)
                    async with asyncio.timeout(CHUNK_S):
                        await writer.drain()
                await until_closed(reader)
        except (*PEER_FAILED, P2PHandlerError, Malformed):
            pass  # the other side sees the cut
        finally:
            writer.close()

    async def _chunks(self, request: swarm_pb2.StateRequest) -> AsyncIterator[swarm_pb2.StateChunk]:
        """Yield one stage's adapter and moments."""
        if request.fingerprint != self._source.sealed_run.seal.fingerprint:
            yield swarm_pb2.StateChunk(try_later="I train another run")
            return
        if not versions.understands(request.protocol):
            yield swarm_pb2.StateChunk(try_later=f"I speak protocol {versions.PROTOCOL}")
            return
        if self._sending.locked():
            yield swarm_pb2.StateChunk(try_later="I am sending my state to others")
            return
        async with self._sending:
            try:
                state = await self._source.export_state(request.stage)
            except PeerBusy as busy:
                yield swarm_pb2.StateChunk(try_later=busy.message)
                return
            data = state.data
            header = swarm_pb2.StateHeader(lineage=state.lineage, version=state.version, base_hash=state.base_hash)
            yield swarm_pb2.StateChunk(header=header)
            for start in range(0, len(data), _PART_BYTES):
                part = data[start : start + _PART_BYTES]
                self.bytes_sent += len(part)
                yield swarm_pb2.StateChunk(part=part)
            digest = await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
            yield swarm_pb2.StateChunk(end=swarm_pb2.StateEnd(num_bytes=len(data), sha256=digest))


async def say_hello(p2p: P2P, peer_id: PeerId, *, fingerprint: str = "", knock_port: int = 0) -> Welcomed:
    """Ask a connected peer what it trains.

    Args:
        p2p: This node's transport.
        peer_id: The peer's.
        fingerprint: The run that this node takes part in, if it does.
        knock_port: A TCP port of this machine's that the peer is to knock at; 0 for none.

    Raises:
        NoPeerReachable: it does not answer, or it is not a Potluck node.
        ProtocolViolation: it answers with something that is not a signed run.
        RunMismatch: it speaks another version of the protocol.
    """
    asked_at = time.time()
    me = Speaker.me()
    request = swarm_pb2.Hello(protocol=me.protocol, software=me.software, fingerprint=fingerprint, clock_s=asked_at)
    request.knock_port = knock_port
    try:
        call = p2p.call_protobuf_handler(PeerID.from_base58(peer_id), HELLO, request, _WELCOME)
        async with asyncio.timeout(_FIRST_ANSWER_S):
            welcome: swarm_pb2.Welcome = await call
        answered_at = time.time()
    except Malformed as error:
        raise ProtocolViolation(f"The peer {short(peer_id)} sent no welcome: {error}.", peer_id=peer_id) from None
    except (*PEER_FAILED, P2PHandlerError) as error:
        raise NoPeerReachable(
            f"The peer {short(peer_id)} is there but does not answer as a Potluck node: {str(error)[:200]}.",
            hint="Is it still starting? Of a bootstrap node, give the line that a node of the run prints.",
        ) from error
    if not versions.understands(welcome.protocol):
        theirs = Speaker.heard(welcome.protocol, welcome.software)
        message, hint = versions.joining_refused(short(peer_id), theirs)
        raise RunMismatch(message, hint=hint)
    signed = SignedBytes(welcome.recipe.body, welcome.recipe.public_key, welcome.recipe.signature)
    run = open_seal(signed, sender=peer_id)
    # a knock takes seconds, and the peer reads its clock after it
    ahead_s = (answered_at if knock_port else (asked_at + answered_at) / 2) - welcome.clock_s
    if not math.isfinite(ahead_s):
        raise ProtocolViolation(
            f"The peer {short(peer_id)} says that its clock shows {welcome.clock_s}.", peer_id=peer_id
        )
    return Welcomed(
        run=run,
        peer_state=printable(welcome.state)[:32],
        clock_ahead_s=ahead_s,
        speaker=Speaker.heard(welcome.protocol, welcome.software),
        port_is_open=welcome.port_is_open if knock_port and welcome.HasField("port_is_open") else None,
        seen_at=printable(welcome.seen_at)[:64],
    )


async def fetch_state(p2p: P2P, peer_id: PeerId, *, fingerprint: str, stage: int, max_bytes: int) -> StageState:
    """Fetch a stage's adapter and moments from a peer; the bytes are complete but not yet trusted.

    Raises:
        PeerBusy: the peer asked to be called again later.
        PeerTimeout: a part did not come in time.
        ProtocolViolation: more bytes than `max_bytes`, or a digest that does not match.
        PeerError: the peer failed.
    """
    name = short(peer_id)
    received = bytearray()
    header = swarm_pb2.StateHeader()
    writer = None
    try:
        async with asyncio.timeout(_PART_S):
            _, reader, writer = await p2p.call_binary_stream_handler(PeerID.from_base58(peer_id), STATE)
            write_message(
                writer, swarm_pb2.StateRequest(fingerprint=fingerprint, stage=stage, protocol=versions.PROTOCOL)
            )
            write_end(writer)
            await writer.drain()
        while True:
            chunk = swarm_pb2.StateChunk()
            async with asyncio.timeout(_PART_S):
                await read_message(reader, chunk, max_bytes=_MAX_CHUNK_BYTES)
            kind = chunk.WhichOneof("kind")
            if kind == "try_later":
                reason = f"{name} cannot send its state now: {printable(chunk.try_later)[:200]}."
                raise PeerBusy(reason, peer_id=peer_id, retry_after_s=2)
            if kind == "end":
                break
            if kind == "header":
                header = chunk.header
                continue
            received += chunk.part
            if len(received) > max_bytes:
                raise ProtocolViolation(f"{name} sent more than the {max_bytes} bytes of its state.", peer_id=peer_id)
    except Malformed as error:
        raise ProtocolViolation(f"{name} broke the protocol: {error}.", peer_id=peer_id) from None
    except asyncio.IncompleteReadError:
        raise PeerError(f"{name} stopped in the middle of sending its state.", peer_id=peer_id) from None
    except TimeoutError as error:
        raise PeerTimeout(f"{name} sent nothing for {_PART_S:.0f} s.", peer_id=peer_id) from error
    except (*PEER_FAILED, P2PHandlerError) as error:
        raise PeerError(f"{name} failed while sending its state: {str(error)[:200]}.", peer_id=peer_id) from error
    finally:
        if writer is not None:
            writer.close()
    data = bytes(received)
    digest = await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
    if len(data) != chunk.end.num_bytes or digest != chunk.end.sha256:
        raise ProtocolViolation(f"{name} sent a state whose digest does not match.", peer_id=peer_id)
    _check_header(header, peer_id)
    return StageState(data, tuple(header.lineage), header.version, header.base_hash)


def _check_header(header: swarm_pb2.StateHeader, peer_id: PeerId) -> None:
    is_short = len(header.lineage) <= _MAX_LINEAGE and all(len(id) <= _MAX_ROUND_ID for id in header.lineage)
    if not is_short or header.version >= _MAX_VERSION or not _BASE_HASH.fullmatch(header.base_hash):
        raise ProtocolViolation(f"{short(peer_id)} sent a state of an impossible lineage.", peer_id=peer_id)
