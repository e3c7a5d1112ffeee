"""What `potluck doctor` learns from a node of the swarm: versions, clocks, and whether that one reaches this one."""

import socket

import pytest
from hivemind.p2p import P2PContext, ServicerBase

from node.core.types import PeerState
from node.doctor.finding import Level
from node.doctor.reach import from_outside
from node.doctor.swarm import ask, clock
from node.network.door import Door, say_hello
from node.trust.seal import ModelIdentity, RunSeal, seal_run
from node.v1 import swarm_pb2

RUN = "cd" * 32
ANY_PORT = ["/ip4/127.0.0.1/tcp/0"]


class Source:
    state = PeerState.TRAINING

    def __init__(self, identity):
        model = ModelIdentity(digest="ab" * 32, config={})
        self.sealed_run = seal_run(RunSeal(fingerprint=RUN, recipe="{}", model=model, founded_at_s=1.0), identity)


class Stranger(ServicerBase):
    """A node of a later protocol."""

    async def rpc_hello(self, request: swarm_pb2.Hello, context: P2PContext) -> swarm_pb2.Welcome:
        return swarm_pb2.Welcome(protocol=9, software="9.0")


Stranger.__name__ = "Door"  # the name on the wire is the class's


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.mark.swarm
async def test_a_node_of_the_swarm_compares_its_clock_and_knocks(two_nodes):
    (identity, host), _ = two_nodes
    await Door(Source(identity)).open(host.p2p)

    found = by_name(await ask((await host.addresses())[0], ANY_PORT, None))

    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(
        ("swarm", "clock", "reachable"), Level.OK
    )
    assert RUN[:12] in found["swarm"].text
    assert "reached 127.0.0.1" in found["reachable"].text


@pytest.mark.swarm
async def test_a_port_that_is_closed_is_found_closed_and_nobody_is_knocked_at_unasked(two_nodes):
    (identity, host), (_, guest) = two_nodes
    await Door(Source(identity)).open(host.p2p)
    await guest.connect((await host.addresses())[0])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    asked = await say_hello(guest.p2p, host.peer_id, knock_port=port)
    unasked = await say_hello(guest.p2p, host.peer_id)
    senseless = await say_hello(guest.p2p, host.peer_id, knock_port=1 << 31)

    assert (asked.port_is_open, asked.seen_at) == (False, "127.0.0.1")
    assert unasked.port_is_open is None
    assert senseless.port_is_open is None


@pytest.mark.swarm
async def test_another_protocol_fails_with_the_command_that_helps(two_nodes):
    (_, host), _ = two_nodes
    await Stranger().add_p2p_handlers(host.p2p, namespace="potluck")

    found = by_name(await ask((await host.addresses())[0], ANY_PORT, None))

    assert found["swarm"].level is Level.FAIL
    assert "protocol 9" in found["swarm"].text
    assert "git pull" in found["swarm"].fix


@pytest.mark.swarm
async def test_an_address_where_nobody_is_fails(two_nodes):
    _, (_, guest) = two_nodes
    address = (await guest.addresses())[0]
    await guest.close()

    found = by_name(await ask(address, ANY_PORT, None))

    assert found["swarm"].level is Level.FAIL
    assert "No peer answers" in found["swarm"].text


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [(None, Level.OK), (0.2, Level.OK), (-6.0, Level.WARN), (59.0, Level.WARN), (61.0, Level.FAIL), (-9e4, Level.FAIL)],
)
def test_a_clock_that_is_shifted_is_told_by_how_much(ahead_s, level):
    finding = clock(ahead_s)

    assert finding.level is level
    if level is not Level.OK:
        assert "timedatectl" in finding.fix
        assert ("ahead of" in finding.text) == (ahead_s > 0)


@pytest.mark.parametrize(
    ("is_open", "seen_at", "level", "fix"),
    [
        (True, "45.1.1.7", Level.OK, ""),
        (False, "192.168.1.20", Level.WARN, "ufw allow 4040/tcp"),
        (False, "45.1.1.7", Level.WARN, "--announce /ip4/45.1.1.7/tcp/4040"),
        (None, "", Level.WARN, "another node"),
    ],
    ids=["open", "firewall", "router", "no knock"],
)
def test_what_stands_between_is_told_apart(is_open, seen_at, level, fix):
    finding = from_outside(4040, is_open=is_open, seen_at=seen_at, own=["127.0.0.1", "192.168.1.20"])

    assert finding.level is level
    assert fix in finding.fix
