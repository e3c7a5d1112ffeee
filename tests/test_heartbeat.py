"""A node that cannot remember its peers goes on all the same."""

import time

from faults.durable import durable_steps
from faults.fault import Fault as InjectedFault
from faults.injector import injected

from node.core.events import EventBus, Fault
from node.core.types import NO_SHARD, Peer, PeerState, SwarmView
from node.core.versions import Speaker
from node.host.home import RunFolder
from node.swarm import Heartbeat


def make_peer(name):
    return Peer(
        peer_id=name,
        name=name,
        addresses=(f"/ip4/10.0.0.1/tcp/1/p2p/{name}",),
        shard=NO_SHARD,
        state=PeerState.TRAINING,
        loss=None,
        tokens_given=0,
        progress=None,
        expires_at_s=time.time() + 20,
    )


class Membership:
    """A swarm of this node and one other."""

    def __init__(self):
        self.left_out = {}

    async def announce(self, peer):
        """Tell nobody."""

    async def view(self):
        return SwarmView("me", (make_peer("me"), make_peer("other")))


async def test_a_full_disk_does_not_end_the_heartbeat(tmp_path):
    told, events = [], EventBus()
    events.subscribe(told.append)
    folder = RunFolder(tmp_path / "run")
    beat = Heartbeat(Membership(), describe=lambda: make_peer("me"), folder=folder, addresses=(), events=events)

    with injected(InjectedFault("core.files:*", "fail", code="ENOSPC"), durable_steps()) as injector:
        view = await beat.beat()

    assert injector.struck
    assert len(view.peers) == 2
    (fault,) = [event for event in told if isinstance(event, Fault)]
    assert str(folder.path / "peers.json") in fault.what
    assert "It needs" in fault.what


async def test_a_peer_of_another_protocol_is_told_of_once(tmp_path):
    told, events = [], EventBus()
    events.subscribe(told.append)
    membership = Membership()
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    beat = Heartbeat(membership, describe=lambda: make_peer("me"), folder=folder, addresses=(), events=events)

    membership.left_out = {"somebody": Speaker(9, "0.9")}
    await beat.beat()
    await beat.beat()

    (fault,) = [event for event in told if isinstance(event, Fault)]
    assert "Potluck 0.9, protocol 9" in fault.what
