"""A node that comes back: whose bits it takes, and when it goes on with those that it has."""

import dataclasses

import pytest
import torch
from torch import nn

from node import syncing
from node.core.errors import PeerBusy
from node.core.events import AdapterSynced, EventBus, Fault
from node.core.types import Peer, PeerId, PeerState, Progress, Shard, SwarmView
from node.network.door import Door, StageState
from node.syncing import Sync
from node.training.adapter import StageAdapter
from node.training.state import encode
from node.trust.seal import ModelIdentity, RunSeal, seal_run

pytestmark = pytest.mark.swarm
RUN = "cd" * 32


def adapter_at(version, fill):
    adapter = StageAdapter(1, {"w": nn.Parameter(torch.full((5,), fill))})
    adapter.load_state(dataclasses.replace(adapter.state(), version=version, committed_tokens=100 * version))
    return adapter


def at(version):
    return Progress(version, f"{version:02x}", 100 * version, 0, 0.0, 0.0)


def peer(name, stages, version):
    return Peer(name, name, (), Shard(*stages), PeerState.TRAINING, None, 0, at(version), 1e12)


class Rounds:
    """Stands for the averaging rounds: takes in what was fetched."""

    def __init__(self, adapter):
        self.adapter = adapter
        self.progress = at(adapter.version)

    async def adopt(self, states, standing, lineage):
        for state in states.values():
            self.adapter.load_state(state)
        self.progress = at(standing.version)


class Source:
    """The door of a replica."""

    state = PeerState.TRAINING

    def __init__(self, sealed_run, adapter):
        self.sealed_run = sealed_run
        self.adapter = adapter

    async def export_state(self, stage):
        if stage != self.adapter.stage:
            raise PeerBusy("not mine", peer_id="x", retry_after_s=1)
        return StageState(
            encode(self.adapter.state(), self.adapter.layout),
            ("r1",),
            self.adapter.version,
            at(self.adapter.version).base_hash,
        )


@pytest.fixture
async def swarm(two_nodes, monkeypatch):
    """A node at step 3 with stage 1 whose replica serves step 5, and the parts of a view."""
    monkeypatch.setattr(syncing, "_RETRY_S", 0.0)
    (identity, replica), (_, mine) = two_nodes
    await mine.connect((await replica.addresses())[0])
    model = ModelIdentity(digest="ab" * 32, config={})
    seal = RunSeal(fingerprint=RUN, recipe="{}", model=model, founded_at_s=1.0)
    door = Door(Source(seal_run(seal, identity), adapter_at(5, 5.0)))
    await door.open(replica.p2p)
    return mine, PeerId(replica.peer_id)


def start_sync(running, adapter, events, unknown=()):
    rounds = Rounds(adapter)
    bus = EventBus()
    bus.subscribe(events.append)
    return rounds, Sync(
        running=running,
        fingerprint=RUN,
        adapters={1: adapter},
        unknown=unknown,
        rounds=rounds,
        progress=lambda: rounds.progress,
        events=bus,
    )


async def test_older_bits_never_stand_in_for_newer_ones_of_a_replica(swarm):
    running, replica = swarm
    adapter, events = adapter_at(3, 3.0), []
    rounds, sync = start_sync(running, adapter, events)
    me, owner = peer(running.peer_id, (1, 2), 3), peer("owner", (0, 1), 5)

    # the replica's record is a step behind the owner's, as records are
    behind = SwarmView(running.peer_id, (me, owner, peer(replica, (1, 2), 4)))
    for _ in range(3):
        assert not await sync.step(behind)
    assert rounds.progress.version == 3

    there = SwarmView(running.peer_id, (me, owner, peer(replica, (1, 2), 5)))
    await sync.step(there)

    assert rounds.progress.version == 5
    assert torch.equal(adapter.values, torch.full((5,), 5.0))
    assert [event.peer_id for event in events if isinstance(event, AdapterSynced)] == [replica]


async def test_the_last_bits_of_a_stage_go_on_once_nobody_else_is_seen(swarm, monkeypatch):
    running, _ = swarm
    adapter, events = adapter_at(3, 3.0), []
    rounds, sync = start_sync(running, adapter, events)
    view = SwarmView(running.peer_id, (peer(running.peer_id, (1, 2), 3), peer("owner", (0, 1), 5)))

    assert not await sync.step(view)
    assert rounds.progress.version == 3, "it looks for a moment first"
    monkeypatch.setattr(syncing, "LOOK_FOR_S", 0.0)
    await sync.step(view)

    assert rounds.progress.version == 5
    assert torch.equal(adapter.values, torch.full((5,), 3.0))


@pytest.mark.parametrize(("version", "unknown"), [(0, ()), (3, (1,))])
async def test_a_stage_that_nobody_brings_back_begins_anew_only_after_a_long_wait(swarm, monkeypatch, version, unknown):
    running, _ = swarm
    adapter, events = adapter_at(version, 1.0), []
    rounds, sync = start_sync(running, adapter, events, unknown)
    view = SwarmView(running.peer_id, (peer(running.peer_id, (1, 2), version), peer("owner", (0, 1), 5)))
    monkeypatch.setattr(syncing, "LOOK_FOR_S", 0.0)

    for _ in range(3):
        assert not await sync.step(view)
    assert rounds.progress.version == version
    assert [event.what for event in events if isinstance(event, Fault)] == [
        "Nobody here has the adapter of stage 1 at this step."
    ]

    monkeypatch.setattr(syncing, "LOST_AFTER_S", 0.0)
    await sync.step(view)

    assert rounds.progress.version == 5
    assert events[-1].what == "The adapter of stage 1 is lost; it begins anew."
