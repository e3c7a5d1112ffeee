"""Newcomers: what they are told, what they can fetch, and what they refuse."""

import asyncio
import dataclasses
import hashlib
from typing import AsyncIterator  # noqa: UP035

import pytest
from hivemind.p2p import P2PContext, ServicerBase

from node.core.errors import ConfigError, NoPeerReachable, PeerBusy, PeerError, ProtocolViolation
from node.core.types import PeerState
from node.enlist import _check_clock
from node.network import door as door_module
from node.network.door import Door, StageState, fetch_state, say_hello
from node.trust.seal import ModelIdentity, RunSeal, SealedRun, seal_run
from node.v1 import swarm_pb2

pytestmark = pytest.mark.swarm
RUN = "cd" * 32
STATE = bytes(range(256)) * 4096  # 1 MiB: several parts


class Source:
    state = PeerState.TRAINING

    def __init__(self, run: SealedRun):
        self.sealed_run = run
        self.is_busy = False

    async def export_state(self, stage):
        if self.is_busy or stage != 0:
            raise PeerBusy("I am syncing", peer_id="x", retry_after_s=1)
        return StageState(STATE, ("r1", "r2"), 7, "0b")


class Cheat(ServicerBase):
    """Answers wrongly on purpose."""

    def __init__(self, mode):
        self.mode = mode

    async def rpc_state(
        self, request: swarm_pb2.StateRequest, context: P2PContext
    ) -> AsyncIterator[swarm_pb2.StateChunk]:
        if self.mode == "strange lineage":
            header = swarm_pb2.StateHeader(lineage=["r"], version=1, base_hash="not hex")
            yield swarm_pb2.StateChunk(header=header)
        yield swarm_pb2.StateChunk(part=STATE[:1000])
        if self.mode == "cut off":
            return
        if self.mode == "too much":
            for _ in range(10):
                yield swarm_pb2.StateChunk(part=STATE)
        is_right = self.mode in ("strange lineage", "no header")
        digest = hashlib.sha256(STATE[:1000] if is_right else b"something else").digest()
        yield swarm_pb2.StateChunk(end=swarm_pb2.StateEnd(num_bytes=1000, sha256=digest))


Cheat.__name__ = "Door"  # the name on the wire is the class's


@pytest.fixture
async def pair(two_nodes):
    (identity, host), (_, guest) = two_nodes
    await guest.connect((await host.addresses())[0])
    seal = RunSeal(fingerprint=RUN, recipe="{}", model=ModelIdentity(digest="ab" * 32, config={}), founded_at_s=1.0)
    return Source(seal_run(seal, identity)), host, guest


def fetch(guest, host, **changes):
    settings = {"fingerprint": RUN, "stage": 0, "max_bytes": 2 * len(STATE), **changes}
    return fetch_state(guest.p2p, host.peer_id, **settings)


async def test_a_newcomer_is_told_the_signed_run_and_gets_the_state_whole(pair):
    source, host, guest = pair
    await Door(source).open(host.p2p)

    welcomed = await say_hello(guest.p2p, host.peer_id)
    fetched = await fetch(guest, host)

    assert welcomed.run.seal == source.sealed_run.seal
    assert abs(welcomed.clock_ahead_s) < 5
    assert fetched == StageState(STATE, ("r1", "r2"), 7, "0b")


async def test_whoever_is_not_ready_or_trains_something_else_says_so(pair):
    source, host, guest = pair
    with pytest.raises(NoPeerReachable, match="does not answer as a Potluck node"):
        await say_hello(guest.p2p, host.peer_id)
    await Door(source).open(host.p2p)

    source.is_busy = True
    with pytest.raises(PeerBusy, match="I am syncing"):
        await fetch(guest, host)
    with pytest.raises(PeerBusy, match="another run"):
        await fetch(guest, host, fingerprint="ee" * 32)


@pytest.mark.parametrize(
    ("mode", "error", "text"),
    [
        ("cut off", PeerError, "stopped in the middle"),
        ("too much", ProtocolViolation, "more than"),
        ("wrong digest", ProtocolViolation, "digest does not match"),
        ("strange lineage", ProtocolViolation, "impossible lineage"),
        ("no header", ProtocolViolation, "impossible lineage"),
    ],
)
async def test_a_state_that_is_cut_off_oversized_or_altered_is_refused(pair, mode, error, text):
    _, host, guest = pair
    await Cheat(mode).add_p2p_handlers(host.p2p, namespace="potluck")

    with pytest.raises(error, match=text):
        await asyncio.wait_for(fetch(guest, host), 20)


@pytest.mark.parametrize(
    ("ahead_s", "text"), [(-90, "90 s behind"), (3 * 3600, "3 h ahead"), (5 * 86400, "5 days ahead")]
)
def test_a_wrong_clock_is_named(ahead_s, text):
    welcomed = door_module.Welcomed(run=None, peer_state="training", clock_ahead_s=ahead_s)
    with pytest.raises(ConfigError, match=text) as error:
        _check_clock(welcomed)
    assert "timedatectl" in error.value.hint
    _check_clock(dataclasses.replace(welcomed, clock_ahead_s=59.0))
