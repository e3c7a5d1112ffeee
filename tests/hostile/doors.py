"""The doors of a node, found in the code, and the targets behind them: the real handlers, on streams in memory."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
from pathlib import Path

import torch
from google.protobuf.message import DecodeError
from hivemind.dht.protocol import DHTProtocol

from hostile import seeds
from hostile.mutate import damage
from hostile.streams import CONTEXT, PEERS, Line
from hostile.target import Target, of_messages, of_streams
from node.averaging.guard import refuse
from node.control.server import ControlServer
from node.core.errors import NodeError, PeerError
from node.core.events import EventBus, Fault
from node.core.routing import Hop
from node.core.types import PeerId
from node.network.activations import decode as decode_activations
from node.network.compression import decode
from node.network.dht import DhtMembership
from node.network.door import HELLO, STATE, Door, fetch_state, say_hello
from node.network.malformed import Malformed
from node.network.relaying import HOP, stop_relaying
from node.network.rounds import Bulk, PeerLost, RoundTransport, digest_of
from node.network.stages import StageTransport
from node.network.weights import WeightClient, WeightServer
from node.pipeline.hops import RemoteHop
from node.pipeline.replies import raise_for, sessions_of
from node.pipeline.wire import Wire, hidden_from
from node.v1 import control_pb2, control_pb2_grpc

NODE = Path(__file__).parent.parent.parent / "node"
_REGISTERS = {"add_binary_stream_handler", "add_protobuf_handler", "add_p2p_handlers", "add_unary_handler"}
REFUSALS = (NodeError, Malformed, PeerLost, PeerError)
"""How a door or a caller may end: all are caught where they arise, and become a line, a reply or a cut."""
PART_VALUES, RESULT_VALUES = (40, 0, 8), (16, 24)
LARGE = 1 << 18
"""Values of the one part, and of the one result, of the round `r.large`."""


def doors_in_the_code() -> set[str]:
    """Return all that a peer or the owner's other programs may call, by name."""
    found = {f"control:{method.name}" for method in control_pb2.DESCRIPTOR.services_by_name["Control"].methods}
    found |= {
        f"dht:{name}" for name, _ in inspect.getmembers(DHTProtocol, inspect.isfunction) if name.startswith("rpc_")
    }
    for path in sorted(NODE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _REGISTERS:
                if ast.unparse(call.func.value) == "super()":
                    continue  # hands on what is registered elsewhere
                handler = ast.unparse(call.args[1]) if len(call.args) > 1 else "?"
                found.add(f"{path.stem}:{handler.removeprefix('self.')}")
    return found


class Loop:
    """An event loop that runs one handler at a time, and says when one left a task that failed."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.failed = []
        self.loop.set_exception_handler(lambda _, context: self.failed.append(context))

    def run(self, work):
        try:
            return self.loop.run_until_complete(self._until_quiet(work))
        finally:
            assert not self.failed, self.failed.pop()

    async def _until_quiet(self, work):
        try:
            return await work
        finally:
            for _ in range(3):
                await asyncio.sleep(0)

    def close(self):
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


class Bulks:
    """What the averager does with bulk, without a round: it decodes the parts and looks at them."""

    async def expect_parts(self, round, sender):
        if round == "r.large":
            return (4 * LARGE,)
        if round != "r.1":
            raise PeerLost("I am not in that round")
        return tuple(4 * count for count in PART_VALUES)

    def moved(self, round, peer):
        pass

    async def take_parts(self, round, sender, parts):
        if round == "r.large":
            return (Bulk(parts.parts[0], digest_of(parts.parts[0]), 1.0),)
        for data, count in zip(parts.parts, PART_VALUES, strict=True):
            if reason := refuse(decode(data, count, "none"), count):
                raise PeerLost(reason)
        return tuple(Bulk(bytes(4 * n), digest_of(bytes(4 * n)), 1.0) for n in RESULT_VALUES)


class Owned:
    """The node behind the control API, as far as the request decides what happens."""

    async def run_stages(self, request):
        hidden_from(request.hidden, request.dtype, tuple(request.lengths), seeds.HIDDEN)
        return control_pb2.RunStagesResponse()

    async def save_checkpoint(self):
        return 7

    async def gather(self):
        raise NodeError("This run is not cut into stages.")

    def status(self):
        return control_pb2.GetStatusResponse()

    def request_stop(self):
        pass


class Aborted(Exception):
    pass


class ControlContext:
    async def abort(self, code, details):
        raise Aborted(details)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def marked(body: bytes) -> bytes:
    """Return a message as hivemind's streams have it."""
    return b"\x00" + len(body).to_bytes(8, "big") + body


class Doors:
    """The handlers of one node, and its callers."""

    def __init__(self, folder: Path):
        self.loop = Loop()
        self.line = Line()
        self.events = EventBus()
        self.bugs: list[str] = []
        self.events.subscribe(self._note)
        self.told: list[str] = []
        self.world = seeds.World(folder)
        self.loop.run(self._open())

    def _note(self, event):
        if isinstance(event, Fault) and "bug" in event.what.lower():
            self.bugs.append(event.what)

    async def _open(self):
        line, told = self.line, self.told.append
        await stop_relaying(line)
        self.door = Door(self.world, self.events, told)
        await self.door.open(line)
        self.rounds = RoundTransport(line, fingerprint=seeds.RUN, told=told)
        self.averager = self.world.averager(self.rounds, self.events)
        await self.rounds.open(self.averager.received, Bulks())
        self.stages = StageTransport(line, fingerprint=seeds.RUN, told=told)
        await self.stages.open(self.world.stage_server(self.stages, self.events))
        self.weights = WeightServer(line, fingerprint=seeds.RUN, source=self.world.store, told=told)
        await self.weights.open()
        self.client = WeightClient(line, fingerprint=seeds.RUN)
        self.membership = DhtMembership(self.world.running(line), self.world.identity, seeds.RUN)
        await self.membership.start()
        self.control = ControlServer(self.world.folder, Owned())
        for gate in (self.door._gate, self.rounds._gate):  # mutations of one peer come faster than any quota
            gate._quota = type(gate._quota)(streams=256, streams_of_peer=256, requests_per_s=1e9, burst=10**9)

    def close(self):
        self.loop.run(self.averager.close())
        self.loop.run(self.membership.close())
        self.loop.close()

    # --- targets ---------------------------------------------------------------------------------------------

    def _handled(self, suffix):
        """Return what runs a handler on bytes; a call's error goes back to the caller, so ours alone may arise."""
        (handler,) = [
            handler for name, handler in {**self.line.removed, **self.line.handlers}.items() if name.endswith(suffix)
        ]

        def run(data):
            self.line.answer = b""
            with contextlib.suppress(REFUSALS):
                self.loop.run(handler(data))
            assert not self.bugs, self.bugs.pop()

        return run

    def _asked(self, *calls):
        """Return what gives bytes as an answer to each of some calls."""

        def run(data):
            self.line.answer = data
            for call in calls:
                try:
                    self.loop.run(call())
                except REFUSALS as error:
                    assert str(error), "an error without a message"  # noqa: PT017

        return run

    def targets(self) -> list[Target]:
        """Return the targets of all doors, and of all answers that are read."""
        say, fetch = (
            (lambda: say_hello(self.line, PeerId(PEERS[0]))),
            (lambda: fetch_state(self.line, PeerId(PEERS[0]), fingerprint=seeds.RUN, stage=0, max_bytes=1 << 20)),
        )
        return [
            of_messages("hello", self._handled(HELLO), [seeds.HELLO], ("door:rpc_hello",)),
            of_messages("welcome", self._asked(say), [self.world.welcome], ()),
            of_streams(
                "state-request",
                self._handled(STATE),
                [[seeds.STATE_REQUEST, b"\x01" + bytes(8)]],
                marked,
                ("door:_serve_state",),
            ),
            of_streams("state-answer", self._asked(fetch), seeds.STATE_ANSWERS, marked, ()),
            of_messages("word", self._handled("rpc_word"), seeds.WORDS, ("rounds:rpc_word",)),
            of_messages("receipt", self._asked(self._ping), [seeds.RECEIPT], ()),
            of_streams(
                "parts", self._handled("/exchange"), [seeds.parts(PART_VALUES)], frame, ("rounds:_serve_exchange",)
            ),
            of_streams("results", self._asked(self._exchange), [seeds.results(RESULT_VALUES)], frame, ()),
            of_streams("stage-request", self._handled("/stages"), seeds.STAGE_REQUESTS, frame, ("stages:_serve",)),
            of_streams("stage-reply", self._asked(self._stage_call), seeds.STAGE_REPLIES, frame, ()),
            of_streams("relay", self._handled(HOP), [[b"\x08\x00"]], frame, ("relaying:refuse",)),
            Target("tensors", self._tensors, (bytes(64),), lambda rng: damage(seeds.tensor(rng), rng)),
            of_streams(
                "weight-request", self._handled("/weights"), self.world.weight_requests, frame, ("weights:_serve",)
            ),
            of_streams("weight-reply", self._asked(*self._weight_calls()), self.world.weight_replies, frame, ()),
            *self._dht_targets(),
            *self._control_targets(),
        ]

    async def _ping(self):
        await self.rounds.ping(PeerId(PEERS[0]))

    async def _exchange(self):
        parts = seeds.PARTS
        bulks = await self.rounds.exchange(
            PeerId(PEERS[0]), "r.1", parts, result_bytes=[4 * n for n in RESULT_VALUES], timeout_s=5
        )
        for bulk, count in zip(bulks, RESULT_VALUES, strict=True):
            refuse(decode(bulk.data, count, "none"), count)

    async def _stage_call(self):
        hop = Hop(PeerId(PEERS[0]), 0, 2)
        reply, _ = await self.stages.call(PeerId(PEERS[0]), seeds.pb.StageRequest(), reply_bytes=64, timeout_s=5)
        visit = seeds.visit()
        RemoteHop._note(visit, reply, 1.5)
        assert all(0 <= seconds <= 1.5 * len(reply.tickets) for seconds in visit.work_s.values()), visit
        try:
            raise_for(reply, PeerId(PEERS[0]))
        except PeerError as error:
            assert 0 <= getattr(error, "retry_after_s", 0.0) <= 10, error  # noqa: PT017
            raise
        sessions_of((hop,), reply)

    def _weight_calls(self):
        async def nothing(block):
            pass

        client, peer = self.client, PeerId(PEERS[0])
        return (
            lambda: client.manifest(peer),
            lambda: client.held(peer, ["a", "b"]),
            lambda: client.tensor(peer, "a", offset=0, num_bytes=1, take=nothing),
        )

    def _tensors(self, data):
        """Decode bytes as a tensor: the first four say of which codec, direction and lengths."""
        head, body = data[:4].ljust(4, b"\x00"), data[4:]
        codec = ("none", "bf16", "int8", "lowbit")[head[0] % 4]
        direction, lengths = ("forward", "backward")[head[1] % 2], tuple(byte % 7 for byte in head[2:])
        wire = Wire(codec, seeds.HIDDEN, torch.float32, torch.device("cpu"))
        try:
            size = wire.size(direction, lengths, "float32")
            tensor = decode_activations(codec, direction, bytearray(body[:size]), lengths, seeds.HIDDEN, torch.float32)
        except Malformed:
            return
        assert bool(torch.isfinite(tensor).all())

    def _dht_targets(self):
        def called(name, kind):
            async def run(data):
                message = kind.FromString(data)
                bounds = self.membership._dht.protocol.authorizer
                await bounds.validate_request(message)
                await getattr(self.membership._dht.protocol, name)(message, CONTEXT)

            def target(data):
                # hivemind tells the caller, whatever it is; what it leaves behind is seen by the loop
                with contextlib.suppress(DecodeError, Malformed, AssertionError):
                    self.loop.run(run(data))

            return target

        made = [
            of_messages(f"dht-{name}", called(f"rpc_{name}", type(messages[0])), messages, (f"dht:rpc_{name}",))
            for name, messages in self.world.dht_calls.items()
        ]
        return [*made, of_messages("dht-answer", self._asked(self._find), self.world.dht_answers, ())]

    async def _find(self):
        protocol = self.membership._dht.protocol
        await protocol.call_find(CONTEXT.remote_id, [seeds.dht_id()])
        await self.membership.view()

    def _control_targets(self):
        def called(name, kind):
            def run(data):
                try:
                    request = kind.FromString(data)
                except DecodeError:
                    return
                try:
                    self.loop.run(self._control_call(name, request))
                except Aborted as refusal:
                    assert str(refusal)  # noqa: PT017

            return run

        methods = control_pb2.DESCRIPTOR.services_by_name["Control"].methods
        assert {m.name for m in methods} <= set(dir(control_pb2_grpc.ControlServicer))
        return [
            of_messages(
                f"control-{method.name}",
                called(method.name, getattr(control_pb2, method.input_type.name)),
                [seeds.RUN_STAGES] if method.name == "RunStages" else [getattr(control_pb2, method.input_type.name)()],
                (f"control:{method.name}",),
            )
            for method in methods
        ]

    async def _control_call(self, name, request):
        result = getattr(self.control, name)(request, ControlContext())
        if inspect.isasyncgen(result):
            return [item async for item in result]
        return await result
