"""Both sides of each raw stream without a network: what the one writes is kept, and what the other says is given."""

import asyncio
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from node.network.rounds import Bulk, Parts, RoundTransport, digest_of
from node.network.stages import StageTransport
from node.network.weights import WeightClient, WeightServer
from node.v1 import pipeline_pb2
from versions import material

PARTS = (b"a part of stage 0", b"a part of stage 1")
RESULTS = (b"the mean of stage 0", b"the mean of stage 1")
HIDDEN = bytes(range(40))


class Writer:
    """Keeps what is written."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += bytes(data)

    async def drain(self):
        pass

    def close(self):
        pass


class Line:
    """Stands for p2p: the stream that is opened gives the other side's bytes and keeps this one's."""

    def __init__(self, said=b""):
        self.writer, self.said, self.names = Writer(), said, []

    async def call_binary_stream_handler(self, peer, name):
        self.names.append(name)
        return None, reader_of(self.said), self.writer


def fields(message):
    """Return a message's fields; how it prints differs between protobuf's versions."""
    return MessageToDict(message, preserving_proto_field_name=True)


def reader_of(data):
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


class RoundNode:
    """Expects the parts, and answers with the results."""

    def __init__(self):
        self.taken = None

    async def expect_parts(self, round, sender):
        return tuple(map(len, PARTS))

    def moved(self, round, peer):
        pass

    async def take_parts(self, round, sender, parts):
        self.taken = [round, list(parts.weights), [bytes(part).decode() for part in parts.parts]]
        return tuple(Bulk(data, digest_of(data), 2.5) for data in RESULTS)


class StageNode:
    """Takes a forward of one document of five tokens, and gives the tensor back."""

    def __init__(self):
        self.taken = None

    def expect(self, sender, request):
        return (len(HIDDEN),)

    async def serve(self, sender, request, tensors):
        self.taken = [fields(request), [tensor.hex() for tensor in tensors]]
        ticket = pipeline_pb2.StageTicket(peer_id=material.OTHER, session="5e", work_s=0.25, queue_s=0.5)
        return pipeline_pb2.StageReply(status=pipeline_pb2.STAGE_STATUS_DONE, version=7, tickets=[ticket]), HIDDEN


class WeightNode:
    """Has the manifest, and the first tensor in a file."""

    def __init__(self, path):
        self.path, self.start, self.stop = path, 0, 16

    def manifest_bytes(self):
        return material.manifest().to_bytes()

    def held_bits(self):
        return b"\x01"

    def tensor(self, name):
        return self if name == "model.embed_tokens.weight" else None

    def file(self, name):
        return self if name == "config.json" else None


def stage_request():
    return pipeline_pb2.StageRequest(
        kind=pipeline_pb2.STAGE_KIND_FORWARD,
        version=7,
        base="0b0b",
        driver=material.OTHER,
        microbatch=33,
        first_stage=0,
        stop_stage=1,
        lengths=[5],
        dropout_seed=3,
        weight=4,
        dtype="float32",
        has_tensor=True,
        wants_tensor=True,
        rest=[pipeline_pb2.NextHop(peer_id=material.OTHER, first_stage=1, stop_stage=2, session="5f")],
    )


async def ask_round(line):
    """Ask, and return what is made of the reply."""
    transport = RoundTransport(line, fingerprint=material.RUN)
    sizes = tuple(map(len, RESULTS))
    got = await transport.exchange(material.OTHER, "r.1", Parts((30, 31), PARTS), result_bytes=sizes, timeout_s=5)
    return [[bytes(bulk.data).decode(), bulk.digest.hex(), bulk.norm_sq] for bulk in got]


async def ask_stage(line):
    transport = StageTransport(line, fingerprint=material.RUN)
    call = transport.call(material.OTHER, stage_request(), (HIDDEN,), reply_bytes=len(HIDDEN), timeout_s=5)
    reply, tensor = await call
    return [fields(reply), tensor.hex()]


async def ask_manifest(line):
    return (await WeightClient(line, fingerprint=material.RUN).manifest(material.OTHER)).decode()


async def ask_held(line):
    names = material.manifest().names
    return sorted(await WeightClient(line, fingerprint=material.RUN).held(material.OTHER, names))


async def ask_tensor(line):
    blocks = []

    async def take(block):
        blocks.append(bytes(block).hex())

    client = WeightClient(line, fingerprint=material.RUN)
    await client.tensor(material.OTHER, "model.embed_tokens.weight", offset=4, num_bytes=12, take=take)
    return blocks


async def serve(name, request, folder: Path):
    """Return what the serving side of a stream writes to a request, and what it took in."""
    writer, node = Writer(), None
    info = StreamInfo(peer_id=PeerID.from_base58(material.OTHER), addr=None, proto="")
    if name == "round":
        transport, node = RoundTransport(None, fingerprint=material.RUN), RoundNode()
        transport._bulk = node
        await transport._serve_exchange(info, reader_of(request), writer)
    elif name == "stage":
        transport, node = StageTransport(None, fingerprint=material.RUN), StageNode()
        transport._handler = node
        await transport._serve(info, reader_of(request), writer)
    else:
        (folder / "tensor").write_bytes(bytes(range(16)))
        source = WeightNode(folder / "tensor")
        await WeightServer(None, fingerprint=material.RUN, source=source)._serve(info, reader_of(request), writer)
    return writer.data, getattr(node, "taken", None)


ASK = {
    "round": ask_round,
    "stage": ask_stage,
    "weights-manifest": ask_manifest,
    "weights-held": ask_held,
    "weights-tensor": ask_tensor,
}
"""The asking side of each raw stream."""
