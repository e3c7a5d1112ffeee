"""Peers of another protocol: told why not, on both sides, and left out; real streams and a real DHT."""

import time

import pytest
from hivemind.p2p import P2PContext, PeerID, ServicerBase
from hivemind.utils import get_dht_time

from node.core import versions
from node.core.errors import PeerBusy, ProtocolViolation, RunMismatch
from node.core.events import EventBus
from node.core.types import PeerState
from node.core.versions import Speaker, joining_refused, member_refused
from node.network.dht import DhtMembership
from node.network.door import HELLO, Door, StageState, fetch_state, say_hello
from node.network.records import decode_peer, encode_peer, other_version
from node.trust.seal import seal_run
from node.v1 import swarm_pb2
from versions import golden, material

OLDER, NEWER = versions.PROTOCOL - 1, versions.PROTOCOL + 1
UPGRADE = "git pull && make env"


def record_of(protocol, identity=None, **changes):
    """A peer's record, signed, from a node of that protocol."""
    identity = identity or material.identity()
    envelope = encode_peer(material.peer(), fingerprint=material.RUN, at_s=time.time(), identity=material.identity())
    record = swarm_pb2.PeerRecord.FromString(swarm_pb2.Signed.FromString(envelope).body)
    record.protocol, record.software, record.peer_id = protocol, changes.pop("software", "0.9"), identity.peer_id
    signed = identity.sign("peer-record", record.SerializeToString() + changes.pop("unknown", b""))
    return swarm_pb2.Signed(
        body=signed.body, public_key=signed.public_key, signature=signed.signature
    ).SerializeToString()


# --- what is said --------------------------------------------------------------------------------------------------


def test_a_refusal_names_both_versions_and_the_command_that_helps():
    mine = str(Speaker.me())
    for theirs, told, must in (
        (Speaker(NEWER, "0.2.0"), joining_refused("…abc", Speaker(NEWER, "0.2.0")), "Upgrade this machine"),
        (Speaker(OLDER, "0.0.9"), joining_refused("…abc", Speaker(OLDER, "0.0.9")), "git checkout v0.0.9"),
        (Speaker(NEWER, "0.2.0"), member_refused("…abc", Speaker(NEWER, "0.2.0")), "upgrade this swarm's nodes"),
        (Speaker(OLDER), member_refused("…abc", Speaker(OLDER)), "upgrade that machine"),
    ):
        message, hint = told
        assert mine in message
        assert str(theirs) in message
        assert UPGRADE in hint
        assert must in hint
        assert "\n" not in message + hint


@pytest.mark.parametrize("software", ["x" * 33, "1.0\n", "\x1b[31m", "1; rm -rf /"])
def test_a_version_with_anything_odd_in_it_is_not_repeated(software):
    assert Speaker.heard(2, software).software == ""


# --- records -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [OLDER, NEWER, 2**32 - 1])
def test_a_record_of_another_protocol_is_no_peer_and_says_what_it_is(protocol):
    data = record_of(protocol)

    assert decode_peer(data, fingerprint=material.RUN, expires_at_s=1.0) is None
    assert other_version(data, fingerprint=material.RUN) == Speaker(protocol, "0.9")
    assert other_version(data, fingerprint="ee" * 32) is None
    assert other_version(record_of(versions.PROTOCOL), fingerprint=material.RUN) is None


def test_a_field_that_is_not_known_is_passed_over_within_a_protocol():
    number_99 = b"\x9a\x06\x03new"

    peer = decode_peer(record_of(versions.PROTOCOL, unknown=number_99), fingerprint=material.RUN, expires_at_s=1.0)

    assert peer is not None
    assert peer.capacity_stages == 3


def test_without_the_check_a_peer_of_another_protocol_counts(monkeypatch):
    monkeypatch.setattr(versions, "understands", lambda protocol: True)

    assert decode_peer(record_of(NEWER), fingerprint=material.RUN, expires_at_s=1.0) is not None


def test_streams_of_another_protocol_have_another_name(monkeypatch):
    before = golden.schema()["served"]
    monkeypatch.setattr(versions, "PROTOCOL", NEWER)
    after = golden.schema()["served"]

    assert before["door"] == after["door"], "the door answers all"
    assert not set(before["rounds"] + before["stages"]) & set(after["rounds"] + after["stages"])


# --- real streams --------------------------------------------------------------------------------------------------


class Source:
    state = PeerState.TRAINING

    def __init__(self, identity):
        self.sealed_run = seal_run(material.seal(), identity)

    async def export_state(self, stage):
        return StageState(b"bytes", ("r.1",), 7, "0b")


class Stranger(ServicerBase):
    """The door of another version."""

    def __init__(self, protocol):
        self.protocol = protocol

    async def rpc_hello(self, request: swarm_pb2.Hello, context: P2PContext) -> swarm_pb2.Welcome:
        return swarm_pb2.Welcome(protocol=self.protocol, software="0.9", clock_s=time.time())


Stranger.__name__ = "Door"  # the name on the wire is the class's


@pytest.fixture
async def pair(two_nodes):
    (identity, host), (_, guest) = two_nodes
    await guest.connect((await host.addresses())[0])
    return identity, host, guest


@pytest.mark.swarm
@pytest.mark.parametrize("protocol", [OLDER, NEWER])
async def test_a_joiner_of_another_protocol_gets_no_run_and_the_member_is_told_once(pair, protocol):
    identity, host, guest = pair
    told, events = [], EventBus()
    events.subscribe(told.append)
    await Door(Source(identity), events).open(host.p2p)
    member, hello = PeerID.from_base58(host.peer_id), swarm_pb2.Hello(protocol=protocol, software="0.9")

    for _ in range(3):
        welcome = await guest.p2p.call_protobuf_handler(member, HELLO, hello, swarm_pb2.Welcome)

    assert welcome.protocol == versions.PROTOCOL
    assert welcome.software == versions.software()
    assert not welcome.HasField("recipe")
    (event,) = told
    assert f"Potluck 0.9, protocol {protocol}" in event.what
    assert UPGRADE in event.hint


@pytest.mark.swarm
@pytest.mark.parametrize("protocol", [OLDER, NEWER])
async def test_a_joiner_is_told_both_versions_by_a_swarm_of_another_protocol(pair, protocol, monkeypatch):
    _, host, guest = pair
    await Stranger(protocol).add_p2p_handlers(host.p2p, namespace="potluck")

    with pytest.raises(RunMismatch, match=f"Potluck 0.9, protocol {protocol}") as refused:
        await say_hello(guest.p2p, host.peer_id)
    assert UPGRADE in refused.value.hint

    monkeypatch.setattr(versions, "understands", lambda protocol: True)
    with pytest.raises(ProtocolViolation) as misled:  # without the check it looks like a broken peer
        await say_hello(guest.p2p, host.peer_id)
    assert UPGRADE not in misled.value.hint


@pytest.mark.swarm
async def test_the_state_is_not_given_to_another_protocol(pair, monkeypatch):
    identity, host, guest = pair
    await Door(Source(identity)).open(host.p2p)
    monkeypatch.setattr(versions, "understands", lambda protocol: False)

    with pytest.raises(PeerBusy, match=f"I speak protocol {versions.PROTOCOL}"):
        await fetch_state(guest.p2p, host.peer_id, fingerprint=material.RUN, stage=0, max_bytes=100)


@pytest.mark.swarm
async def test_a_member_of_another_protocol_is_not_in_the_view_and_is_told_of(two_nodes, monkeypatch):
    (identity, host), (other, guest) = two_nodes
    members = [DhtMembership(running, who, material.RUN) for who, running in two_nodes]
    for member in members:
        await member.start()
    await members[1].meet(await host.addresses())
    data = record_of(NEWER, identity=other)
    assert await members[1]._dht.store(members[1]._key, data, get_dht_time() + 20, subkey=other.peer_id)

    assert (await members[0].view()).peers == ()
    assert members[0].left_out == {other.peer_id: Speaker(NEWER, "0.9")}

    monkeypatch.setattr(versions, "understands", lambda protocol: True)
    assert [peer.peer_id for peer in (await members[0].view()).peers] == [other.peer_id], (
        "the guard was not what did it"
    )
    for member in members:
        await member.close()
