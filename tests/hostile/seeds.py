"""What is valid at each door: real messages of a small run, signed by keys that are made for the test."""

from __future__ import annotations

import json
import struct
import time
import zlib
from pathlib import Path
from random import Random
from types import SimpleNamespace

import torch
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.proto import dht_pb2
from network.round_member import CountingStrategy
from network.test_round_wire import WORDS as WORDS_OF_ROUND

from hostile.streams import PEERS
from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings
from node.core.types import Peer, PeerState, Progress, Shard
from node.core.versions import PROTOCOL
from node.model.facts import manifest_of
from node.model.store import ModelStore
from node.network.dht import RECORD_LIFETIME_S
from node.network.dht_bounds import RecordSerializer
from node.network.door import StageState
from node.network.records import encode_peer
from node.network.round_words import to_wire
from node.network.rounds import Parts
from node.pipeline.deliveries import Deliveries
from node.pipeline.hops import Visit
from node.pipeline.server import StageServer
from node.pipeline.wire import Wire
from node.training.engine import Engine
from node.trust.identity import Identity
from node.trust.seal import ModelIdentity, RunSeal, seal_run
from node.v1 import control_pb2, round_pb2, swarm_pb2
from node.v1 import pipeline_pb2 as pb
from node.v1 import weights_pb2 as wb

RUN = "ab" * 32
HIDDEN = 64
KEY = f"potluck/{RUN}/peers"
STATE = bytes(range(256)) * 8

HELLO = swarm_pb2.Hello(protocol=PROTOCOL, fingerprint=RUN, clock_s=1.0, knock_port=4040)
STATE_REQUEST = swarm_pb2.StateRequest(fingerprint=RUN, stage=0, protocol=PROTOCOL)
WORDS = [to_wire(word, fingerprint=RUN) for word in WORDS_OF_ROUND]
RECEIPT = round_pb2.RoundReceipt(is_known=True)
PARTS = Parts((1, 2), (bytes(8), bytes(12)))
RUN_STAGES = control_pb2.RunStagesRequest(hidden=bytes(4 * HIDDEN * 5), dtype="float32", lengths=[2, 3], text="t")


def _state_answer(**header):
    import hashlib

    end = swarm_pb2.StateEnd(num_bytes=len(STATE), sha256=hashlib.sha256(STATE).digest())
    return [
        swarm_pb2.StateChunk(header=swarm_pb2.StateHeader(lineage=["r.1"], version=3, base_hash="0f")),
        swarm_pb2.StateChunk(part=STATE[:1000]),
        swarm_pb2.StateChunk(part=STATE[1000:]),
        swarm_pb2.StateChunk(end=end),
    ]


STATE_ANSWERS = [_state_answer(), [swarm_pb2.StateChunk(try_later="I am syncing")]]


def parts(counts):
    """Return the script of a member's stream: header, parts, end."""
    bulk = [torch.randn(count).numpy().tobytes() for count in counts]
    digests = [zlib.crc32(part).to_bytes(4, "big") for part in bulk]
    header = round_pb2.RoundPartHeader(fingerprint=RUN, round="r.1", weights=[1] * len(counts))
    return [header, *bulk, round_pb2.RoundPartEnd(num_bytes=sum(map(len, bulk)), digests=digests)]


def results(counts):
    """Return the script of a reducer's answer."""
    import hashlib

    bulk = [torch.randn(count).numpy().tobytes() for count in counts]
    digests = [hashlib.sha256(part).digest() for part in bulk]
    norms = [1.0] * len(counts)
    return [*bulk, round_pb2.RoundPartEnd(num_bytes=sum(map(len, bulk)), digests=digests, norms_sq=norms)]


def _stage_request(kind, *, lengths=(2, 3), tensors=1, **fields):
    size = (
        Wire("bf16", HIDDEN, torch.float32, torch.device("cpu")).size("forward", lengths, "float32") if tensors else 0
    )
    data = bytes(size * tensors)
    request = pb.StageRequest(
        fingerprint=RUN, kind=kind, version=3, base="0f", microbatch=5, first_stage=0, stop_stage=2, lengths=lengths,
        weight=3, dtype="float32", has_tensor=True, **fields,
    )  # fmt: skip
    return [request, data, pb.StageEnd(num_bytes=len(data), crc32=zlib.crc32(data))]


_HOP = pb.NextHop(peer_id=PEERS[1], first_stage=1, stop_stage=2, session="5e")
STAGE_REQUESTS = [
    _stage_request(pb.STAGE_KIND_FORWARD, dropout_seed=1, wants_tensor=True),
    _stage_request(pb.STAGE_KIND_BACKWARD, tensors=2, has_input=True, session="5e"),
    _stage_request(pb.STAGE_KIND_EVALUATE, without_adapter=True),
    _stage_request(pb.STAGE_KIND_GENERATE, text="t", start=4),
    _stage_request(pb.STAGE_KIND_FORWARD, is_chained=True, driver=PEERS[0], rest=[_HOP]),
    _stage_request(pb.STAGE_KIND_DELIVER, tensors=0),
    _stage_request(pb.STAGE_KIND_RESET, tensors=0, session="5e"),
    _stage_request(pb.STAGE_KIND_PING, tensors=0),
]
_TICKET = pb.StageTicket(peer_id=PEERS[0], session="5e", work_s=0.5, queue_s=0.1)


def _stage_reply(status, **fields):
    has_tensor = status == pb.STAGE_STATUS_DONE
    data = bytes(64) if has_tensor else b""
    reply = pb.StageReply(status=status, tickets=[_TICKET], has_tensor=has_tensor, **fields)
    return [reply, data, pb.StageEnd(num_bytes=len(data), crc32=zlib.crc32(data))]


STAGE_REPLIES = [
    _stage_reply(pb.STAGE_STATUS_DONE),
    _stage_reply(pb.STAGE_STATUS_TRY_LATER, reason="busy", retry_after_s=1.0),
    _stage_reply(pb.STAGE_STATUS_STALE, version=4),
    _stage_reply(pb.STAGE_STATUS_NEXT_FAILED, failed_peer=PEERS[1]),
]


def visit():
    """Return an empty record of a microbatch's visit to a hop."""
    return Visit(hop=None, input=None, output=None, sessions={})


def tensor(rng: Random) -> bytes:
    """Return a head of four bytes and an encoded tensor that it describes."""
    head = bytes((rng.randrange(4), rng.randrange(2), rng.randrange(1, 7), rng.randrange(1, 7)))
    codec = ("none", "bf16", "int8", "lowbit")[head[0]]
    wire = Wire(codec, HIDDEN, torch.float32, torch.device("cpu"))
    size = wire.size(("forward", "backward")[head[1]], tuple(head[2:]), "float32")
    special = rng.choice((b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xff\xff\x7f\x7f", b"\x80\x7f", bytes(4)))
    return head + (special * size)[:size]


def dht_id():
    return DHTID.generate(source=KEY)


class World:
    """One node's identity, run, model and records, in a folder of the test's."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.identity = Identity.load_or_create(folder / "identity.key")
        seal = RunSeal(fingerprint=RUN, recipe="{}", model=ModelIdentity(digest="ab" * 32, config={}), founded_at_s=1.0)
        self.sealed_run, self.state = seal_run(seal, self.identity), PeerState.TRAINING
        signed = self.sealed_run.signed
        body = swarm_pb2.Signed(body=signed.body, public_key=signed.public_key, signature=signed.signature)
        self.welcome = swarm_pb2.Welcome(protocol=PROTOCOL, recipe=body, clock_s=time.time(), state="training")
        self.store = self._store()
        self.engine = Engine(num_threads=1, name="hostile")
        self._weights()
        self._dht()

    async def export_state(self, stage):
        return StageState(STATE, ("r.1",), 3, "0f")

    def running(self, line):
        return SimpleNamespace(p2p=line, peer_id=self.identity.peer_id)

    def averager(self, transport, events):
        settings = AveragerSettings(num_stages=1, codec="none")
        return Averager(CountingStrategy(50), transport, settings, me=self.identity.peer_id, events=events)

    def stage_server(self, transport, events):
        async def reset(session):
            return True

        return StageServer(
            me=self.identity.peer_id,
            shard=Shard(0, 2),
            runner=None,
            texts=None,
            engine=self.engine,
            transport=transport,
            wire=Wire("bf16", HIDDEN, torch.float32, torch.device("cpu")),
            deliveries=Deliveries(),
            standing=lambda: (3, "0f"),
            not_ready=lambda: "",
            reset=reset,
            events=events,
        )

    def _store(self):
        model = self.folder / "model"
        model.mkdir()
        header = json.dumps(
            {name: {"dtype": "F32", "shape": [4], "data_offsets": [at, at + 16]} for name, at in (("a", 0), ("b", 16))}
        )
        header += " " * (-len(header) % 8)
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(32))
        (model / "config.json").write_text('{"model_type": "llama"}')
        return ModelStore(model, manifest_of(model, cache=self.folder / "cache"))

    def _weights(self):
        kinds = (wb.WEIGHT_KIND_MANIFEST, wb.WEIGHT_KIND_HELD)
        self.weight_requests = [[wb.WeightRequest(fingerprint=RUN, kind=kind)] for kind in kinds]
        self.weight_requests += [
            [wb.WeightRequest(fingerprint=RUN, kind=wb.WEIGHT_KIND_FILE, name="config.json")],
            [wb.WeightRequest(fingerprint=RUN, kind=wb.WEIGHT_KIND_TENSOR, name="a", offset=4)],
        ]
        self.weight_replies = [
            [wb.WeightReply(status=wb.WEIGHT_STATUS_OK, num_bytes=1), b"\x03", wb.WeightEnd(num_bytes=1)],
            [wb.WeightReply(status=wb.WEIGHT_STATUS_BUSY)],
        ]

    def record(self, **changes):
        """Return this node's signed record, and when it expires."""
        now = time.time()
        progress = Progress(3, "00ff", 1000, 20, 55.5, now, ((2, "0a"), (3, "0b")))
        fields = {
            "name": "a",
            "addresses": ("/ip4/127.0.0.1/tcp/1",),
            "shard": Shard(2, 4),
            "state": PeerState.TRAINING,
        }
        fields |= {"loss": 2.5, "tokens_given": 7, "progress": progress, "expires_at_s": 0.0, "session": "5e"}
        peer = Peer(peer_id=self.identity.peer_id, **(fields | changes))
        return encode_peer(peer, fingerprint=RUN, at_s=now, identity=self.identity), now + RECORD_LIFETIME_S

    def _dht(self):
        value, expires = self.record()
        packed, subkey = RecordSerializer.dumps(value), RecordSerializer.dumps(self.identity.peer_id)
        info = dht_pb2.NodeInfo(node_id=bytes(range(20)))
        key = dht_id().to_bytes()
        dictionary = DictionaryDHTValue()
        dictionary.store(self.identity.peer_id, packed, expires)
        whole = RecordSerializer.dumps(dictionary)
        store = {"keys": [key], "expiration_time": [expires], "in_cache": [False], "peer": info}
        self.dht_calls = {
            "ping": [dht_pb2.PingRequest(peer=info)],
            "find": [dht_pb2.FindRequest(keys=[key], peer=info)],
            "store": [
                dht_pb2.StoreRequest(subkeys=[subkey], values=[packed], **store),
                dht_pb2.StoreRequest(subkeys=[b""], values=[whole], **store),
            ],
        }
        found = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=whole, expiration_time=expires)
        found.nearest_node_ids.append(bytes(range(20)))
        found.nearest_peer_ids.append(bytes(34))
        self.dht_answers = [dht_pb2.FindResponse(results=[found], peer=info)]
