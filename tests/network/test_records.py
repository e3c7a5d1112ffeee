"""Peers' records: what comes back of them, what is out of bounds, and what the DHT lets in."""

import dataclasses
import math

import pytest
from hivemind.dht.validation import DHTRecord
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import get_dht_time

from node.core.types import NO_SHARD, Peer, PeerId, PeerState, Progress, Shard
from node.network.addresses import MAX_ADDRESS_CHARS
from node.network.dht_bounds import RecordSerializer, dht_key
from node.network.records import MAX_RECORD_BYTES, MAX_STAGES, PeerRecordValidator, decode_peer, encode_peer
from node.trust.identity import Identity
from node.v1 import swarm_pb2

RUN = "ab" * 32


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return Identity.load_or_create(tmp_path_factory.mktemp("home") / "identity.key")


@pytest.fixture(scope="module")
def peer(identity):
    progress = Progress(3, "00ff", 1000, 20, 55.5, 1.5, ((2, "0a"), (3, "0b")))
    addresses = ("/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/2")
    return Peer(
        identity.peer_id,
        "anna",
        addresses,
        Shard(2, 4),
        PeerState.PAUSED,
        2.5,
        77,
        progress,
        99.5,
        session="5e",
        drives=False,
        stage_tokens_per_s=12.5,
        capacity_stages=7,
    )


def encoded(peer, identity, **changes):
    return encode_peer(dataclasses.replace(peer, **changes), fingerprint=RUN, at_s=1.5, identity=identity)


def decoded(data):
    return decode_peer(data, fingerprint=RUN, expires_at_s=99.5)


def test_a_record_comes_back_as_it_went(peer, identity):
    assert decoded(encoded(peer, identity)) == peer
    bare = dataclasses.replace(peer, shard=NO_SHARD, loss=None, progress=None, addresses=(), drives=True)
    assert decoded(encoded(bare, identity)) == bare


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_not_announced(peer, identity, loss):
    assert decoded(encoded(peer, identity, loss=loss)).loss is None


def test_a_name_is_told_without_what_would_move_a_terminals_cursor(peer, identity):
    assert decoded(encoded(peer, identity, name="än\x1b[31m\nna")).name == "än[31mna"


def test_a_record_of_another_run_is_nothing(peer, identity):
    data = encode_peer(peer, fingerprint="cd" * 32, at_s=1.5, identity=identity)

    assert decoded(data) is None


def signed(peer, identity, *, on_progress=None, **fields):
    """Return a record in which fields were changed before it was signed."""
    record = swarm_pb2.PeerRecord.FromString(swarm_pb2.Signed.FromString(encoded(peer, identity)).body)
    for target, changes in ((record, fields), (record.progress, on_progress or {})):
        for name, value in changes.items():
            if isinstance(value, list):
                del getattr(target, name)[:]
                getattr(target, name).extend(value)
            else:
                setattr(target, name, value)
    signed = identity.sign("peer-record", record.SerializeToString())
    envelope = swarm_pb2.Signed(body=signed.body, public_key=signed.public_key, signature=signed.signature)
    return envelope.SerializeToString()


MAX_U63 = 2**63 - 1
BOUNDS = [
    ("name", ["", "x" * 64], ["x" * 65]),
    ("addresses", [[], ["x"] * 16, ["x" * MAX_ADDRESS_CHARS]], [["x"] * 17, ["x" * (MAX_ADDRESS_CHARS + 1)]]),
    ("state", ["training"], ["", "asleep"]),
    ("loss", [0.0, 1e6], [-0.1, 1.1e6, math.nan, math.inf]),
    ("tokens_given", [0, MAX_U63], [MAX_U63 + 1]),
    ("at_s", [0.0, 1e11], [-1.0, 1.1e11, math.nan]),
    ("session", ["", "0f" * 16], ["0f" * 17, "../x", "0F"]),
    ("stage_tokens_per_s", [0.0, 1e9], [-1.0, 1.1e9, math.inf]),
    ("capacity_stages", [0, 1024], [1025]),
    ("first_stage", [2], [1, 3, 5]),  # as many stages as hashes, in order
    ("stop_stage", [4], [3, 5, 65]),
    ("peer_id", [], ["QmSomebodyElse", ""]),
    ("fingerprint", [RUN], ["", RUN + "0"]),
]
PROGRESS_BOUNDS = [
    ("version", [0, MAX_U63], [MAX_U63 + 1]),
    ("base_hash", ["0", "0f" * 32], ["", "zz", "0" * 65]),
    ("committed_tokens", [0, MAX_U63], [MAX_U63 + 1]),
    ("tokens", [0, MAX_U63], [MAX_U63 + 1]),
    ("tokens_per_s", [0.0, 1e9], [-1.0, 1.1e9, math.inf]),
    ("hashes", [["0", "0" * 16]], [[], ["0a"], ["0a"] * 3, ["0a", "0" * 17], ["0a", ""], ["0a", "0A"]]),
]


@pytest.mark.parametrize(("name", "good", "bad"), BOUNDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_record_with_a_value_out_of_bounds_is_nothing(peer, identity, name, good, bad):
    for value in good:
        assert decoded(signed(peer, identity, **{name: value})) is not None, value
    for value in bad:
        assert decoded(signed(peer, identity, **{name: value})) is None, value


@pytest.mark.parametrize(
    ("name", "good", "bad"), PROGRESS_BOUNDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_record_with_progress_out_of_bounds_is_nothing(peer, identity, name, good, bad):
    for value in good:
        assert decoded(signed(peer, identity, on_progress={name: value})) is not None, value
    for value in bad:
        assert decoded(signed(peer, identity, on_progress={name: value})) is None, value


def test_the_stages_of_a_record_are_in_order_and_within_a_run(peer, identity):
    def passes(shard):
        return decoded(encoded(peer, identity, shard=shard, progress=None)) is not None

    assert all(passes(shard) for shard in (NO_SHARD, Shard(0, 1), Shard(MAX_STAGES - 1, MAX_STAGES)))
    assert not any(passes(shard) for shard in (Shard(2, 1), Shard(0, MAX_STAGES + 1)))


def test_a_record_that_anybody_changed_or_cut_is_nothing(peer, identity):
    good = encoded(peer, identity)
    envelope = swarm_pb2.Signed.FromString(good)
    envelope.body = envelope.body.replace(b"anna", b"hans")

    assert decoded(envelope.SerializeToString()) is None
    assert all(decoded(good[:size]) is None for size in range(0, len(good), 7))
    assert decoded(None) is None
    assert decoded(bytearray(good)) is None


def test_a_record_may_be_as_long_as_its_bound_and_no_longer(peer, identity):
    good = encoded(peer, identity)

    def padded(size):
        """Fill it up with fields that nobody knows, which protobuf skips."""
        most = 3 + 1000
        filling = [most] * ((size - len(good)) // most - 1)
        rest = size - len(good) - sum(filling)
        return good + b"".join(b"\x7a" + varint(length - 3) + bytes(length - 3) for length in [*filling, rest])

    def varint(value):
        return bytes([value & 127 | 128, value >> 7])

    assert len(padded(MAX_RECORD_BYTES)) == MAX_RECORD_BYTES
    assert decoded(padded(MAX_RECORD_BYTES)) == peer
    assert decoded(padded(MAX_RECORD_BYTES + 1)) is None


def test_a_record_of_as_many_stages_as_a_run_may_have_fits(identity):
    hashes = tuple((stage, "0123456789abcdef") for stage in range(MAX_STAGES))
    progress = Progress(2**40, "ab" * 32, 2**50, 2**30, 1e6, 1e9, hashes)
    addresses = tuple("/ip4/255.255.255.255/tcp/65535/p2p/" + "Q" * 80 for _ in range(8))
    peer = Peer(
        identity.peer_id, "n" * 64, addresses, Shard(0, MAX_STAGES), PeerState.TRAINING, 1.0, 2**50, progress, 0.0
    )

    data = encode_peer(peer, fingerprint=RUN, at_s=1.0, identity=identity)

    assert len(data) <= MAX_RECORD_BYTES
    assert decode_peer(data, fingerprint=RUN, expires_at_s=0.0).progress.hashes == hashes


LIFETIME_S = 30.0


def lets_in(value, subkey, *, key="key", until_s=None):
    packed = (item if isinstance(item, Raw) else MSGPackSerializer.dumps(item) for item in (value, subkey))
    value, subkey = (bytes(item) for item in packed)
    until_s = until_s if until_s is not None else get_dht_time() + LIFETIME_S
    validator = PeerRecordValidator("key", lifetime_s=LIFETIME_S)
    return validator.validate(DHTRecord(dht_key(key), subkey, value, until_s))


class Raw(bytes):
    """What is not packed any more."""


def test_the_dht_lets_in_what_the_peer_of_the_subkey_has_signed_and_nothing_else(peer, identity):
    now = get_dht_time()
    good = encode_peer(peer, fingerprint=RUN, at_s=now, identity=identity)

    assert lets_in(good, identity.peer_id)
    long_name = signed(peer, identity, name="x" * 65, at_s=now)
    assert lets_in(long_name, identity.peer_id), "the second door has the other bounds"
    assert not lets_in(good, identity.peer_id, key="another")
    assert not lets_in(good, identity.peer_id, until_s=now + 10 * LIFETIME_S), "nobody lets another's record live on"
    assert not lets_in(good, identity.peer_id, until_s=now + LIFETIME_S / 2), "nor die early"
    assert not lets_in(good, PeerId("QmSomebodyElse"))
    assert not lets_in(good, None)
    assert not lets_in(b"garbage", identity.peer_id)
    assert not lets_in({"not": "bytes"}, identity.peer_id)
    assert not lets_in(Raw(b"\xc1"), identity.peer_id)
    assert not lets_in(good, Raw(b"\xc1"))


def test_the_dht_looks_at_no_record_that_is_too_long(peer, identity, monkeypatch):
    unpacked = []
    real = RecordSerializer.loads
    monkeypatch.setattr(RecordSerializer, "loads", lambda data: unpacked.append(len(data)) or real(data))

    assert not lets_in(Raw(bytes(MAX_RECORD_BYTES + 17)), identity.peer_id)
    assert not lets_in(encoded(peer, identity), Raw(bytes(MAX_ADDRESS_CHARS + 1)))
    assert unpacked == []
    assert not lets_in(Raw(bytes(MAX_RECORD_BYTES + 16)), Raw(bytes(MAX_ADDRESS_CHARS)))
    assert unpacked, "what is just short enough is looked at"
