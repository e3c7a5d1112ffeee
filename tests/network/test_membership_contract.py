"""One contract for both forms of membership: by the DHT alone, and helped by a coordinator.

With a coordinator nobody is given another's address: they find each other through it.
"""

import asyncio
import dataclasses
from contextlib import AsyncExitStack

import pytest
from serving_here import Killable, coordinator, until
from test_membership import RUN, Node

from coordinator.address import CoordinatorAddress
from coordinator.client import CoordinatorClient
from coordinator.v1 import coordinator_pb2 as pb
from node.core.orders import Orders
from node.core.types import PeerState, RoundResult, RoundStatus
from node.network import coordinator_link
from node.network.coordinated import CoordinatedMembership
from node.network.coordinator_link import CoordinatorLink, Watch
from node.network.dht import DhtMembership
from node.network.processes import start_p2p
from node.trust.identity import Identity

pytestmark = pytest.mark.swarm


class Told:
    """What a link told."""

    def __init__(self):
        self.log, self.orders = [], Orders()
        self.watch = Watch(
            found=lambda: self.log.append("found"),
            lost=lambda reason: self.log.append("lost"),
            ordered=lambda: self.log.append(dataclasses.replace(self.orders)),
            evicted=lambda: self.log.append("evicted"),
        )


class World:
    """Nodes of one run."""

    def __init__(self, folder, stack, address):
        self.folder, self.stack, self.address, self.nodes = folder, stack, address, []

    async def node(self):
        home = self.folder / f"node-{len(self.nodes)}"
        identity = Identity.load_or_create(home / "identity.key")
        running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
        self.stack.push_async_callback(running.close)
        membership = dht = DhtMembership(running, identity, RUN)
        await dht.start()
        node = Node(running, identity, membership)
        node.told = Told()
        if self.address is not None:
            client = CoordinatorClient(CoordinatorAddress.parse(self.address), identity)
            run = pb.Run(
                fingerprint=RUN, sealed=b"run", name="demo", base_model="m", num_stages=4, num_layers=4,
                max_steps=10_000, target_batch_tokens=10**9,
            )  # fmt: skip
            node.link = CoordinatorLink(client, identity, run, node.told.orders, node.told.watch)
            node.link.start()
            node.membership = CoordinatedMembership(dht, node.link, lambda: (None, 0))
        elif self.nodes:
            await dht.meet([await self.nodes[0].address])
        self.stack.push_async_callback(node.membership.close)
        self.nodes.append(node)
        await node.announce()
        return node


async def announce(self, **changes):
    return await self.membership.announce(self.peer([await self.address], **changes))


Node.announce = announce


@pytest.fixture(params=["dht", "coordinated"])
async def world(request, tmp_path):
    async with AsyncExitStack() as stack:
        address = None
        if request.param == "coordinated":
            here = await stack.enter_async_context(coordinator(tmp_path / "coordinator"))
            address = str(here.address)
        yield World(tmp_path, stack, address)


async def sees(node, condition, seconds=12.0):
    """Look around until the view is as expected."""
    async with asyncio.timeout(seconds):
        while not condition(view := await node.membership.view()):
            await asyncio.sleep(0.05)
    return view


def ids(view):
    return {peer.peer_id for peer in view.peers}


async def test_all_who_announce_themselves_see_each_other(world):
    nodes = [await world.node() for _ in range(3)]
    everybody = {node.identity.peer_id for node in nodes}

    for node in nodes:
        await sees(node, lambda view: ids(view) == everybody)


async def test_who_leaves_is_gone_at_once_and_who_announces_itself_again_is_back(world):
    a, b = await world.node(), await world.node()
    await sees(a, lambda view: b.identity.peer_id in ids(view))
    await sees(b, lambda view: a.identity.peer_id in ids(view))

    await b.membership.leave()
    await sees(a, lambda view: b.identity.peer_id not in ids(view), 3)

    await b.announce()
    await sees(a, lambda view: b.identity.peer_id in ids(view), 3)


async def test_who_is_counted_out_is_back_when_it_announces_itself(world):
    a, b = await world.node(), await world.node()
    await sees(a, lambda view: b.identity.peer_id in ids(view))
    await sees(b, lambda view: a.identity.peer_id in ids(view))

    a.membership.count_out(b.identity.peer_id)
    assert b.identity.peer_id not in ids(await a.membership.view())

    await asyncio.sleep(0.05)
    await b.announce(state=PeerState.SYNCING)
    view = await sees(a, lambda view: b.identity.peer_id in ids(view), 3)
    assert view.peer(b.identity.peer_id).state is PeerState.SYNCING


async def test_what_changes_is_seen_by_the_others(world):
    a, b = await world.node(), await world.node()
    await sees(b, lambda view: a.identity.peer_id in ids(view))

    await a.announce(tokens_given=4711, state=PeerState.PAUSED)

    view = await sees(b, lambda view: view.peer(a.identity.peer_id).state is PeerState.PAUSED, 3)
    assert view.peer(a.identity.peer_id).tokens_given == 4711
    assert view.me == b.identity.peer_id


async def test_members_go_on_without_the_coordinator_and_come_back_to_it(tmp_path, unused_tcp_port):
    async with AsyncExitStack() as stack:
        server = Killable(tmp_path / "coordinator", unused_tcp_port).start()
        stack.callback(server.kill)
        world = World(tmp_path, stack, server.address)
        a, b = await world.node(), await world.node()
        await sees(a, lambda view: b.identity.peer_id in ids(view))
        await sees(b, lambda view: a.identity.peer_id in ids(view))

        for _ in range(3):
            server.kill()
            await until(lambda: a.told.log[-2:].count("lost") and not b.link.is_connected)
            await a.announce(tokens_given=a.peer().tokens_given + 1)
            assert b.identity.peer_id in ids(await a.membership.view()), "the swarm outlives it"
            await b.announce(state=PeerState.SYNCING)
            await sees(a, lambda view: view.peer(b.identity.peer_id).state is PeerState.SYNCING, 3)
            await b.announce()

            server.start()
            await until(lambda: a.link.is_connected and b.link.is_connected, 15)
            await sees(a, lambda _: b.identity.peer_id in a.link.members)
        assert a.told.log.count("found") == 4
        assert a.told.log.count("lost") == 3


async def test_a_node_that_steps_and_ends_rounds_all_the_time_keeps_its_coordinator(tmp_path):
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(coordinator(tmp_path / "coordinator"))
        world = World(tmp_path, stack, str(here.address))
        a, b = await world.node(), await world.node()
        await sees(a, lambda view: b.identity.peer_id in ids(view))

        for version in range(1, 150):
            a.link.report(RoundResult(version, RoundStatus.COMMITTED, (a.identity.peer_id,), 256, 0.01, 0, ""))
            me = a.peer(progress=dataclasses.replace(a.peer().progress, version=version))
            a.link.announce(me, held_out_loss=None, bytes_sent=0)
            await asyncio.sleep(0.02)
        told = here.hub.runs[RUN].rounds
        await until(lambda: told[-1][1].version == 149)

        assert a.told.log.count("found") == 1
        assert "lost" not in a.told.log
        assert len(told) > 4, "of some it is told meanwhile"


async def test_a_coordinator_that_takes_no_more_calls_for_now_is_not_lost(tmp_path, monkeypatch):
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(coordinator(tmp_path / "coordinator"))
        world = World(tmp_path, stack, str(here.address))
        a, b = await world.node(), await world.node()
        await sees(b, lambda view: a.identity.peer_id in ids(view))
        tally = here.hub.tally

        with monkeypatch.context() as without_gaps:
            without_gaps.setattr(coordinator_link, "_LEAST_GAP_S", 0.0)
            for port in range(1, 1000):
                me = a.peer([f"/ip4/127.0.0.1/tcp/{port}"])
                a.link.announce(me, held_out_loss=None, bytes_sent=0)
                if tally.refused["rate"]:
                    break
                await asyncio.sleep(0.005)
        assert tally.refused["rate"], "there was one call too many"
        await a.announce(state=PeerState.PAUSED)

        await sees(b, lambda view: view.peer(a.identity.peer_id).state is PeerState.PAUSED, 5)
        assert a.told.log.count("found") == 1
        assert "lost" not in a.told.log


async def test_a_coordinator_that_was_never_there_keeps_nobody_waiting(tmp_path, unused_tcp_port):
    async with AsyncExitStack() as stack:
        absent = f"coordinator://127.0.0.1:{unused_tcp_port}/{'t' * 32}#{'ab' * 32}"
        world = World(tmp_path, stack, absent)
        a, b = await world.node(), await world.node()
        await b.membership.meet([await a.address])
        await sees(a, lambda view: b.identity.peer_id in ids(view))
        await until(lambda: a.told.log.count(Orders()) >= 2)  # it was looked for twice

        assert not a.link.is_connected
        assert [told for told in a.told.log if told != Orders()] == ["lost"], "and that is told once"


async def test_the_operators_word_arrives_and_ends_with_the_coordinator(tmp_path):
    async with AsyncExitStack() as stack:
        inner = await stack.enter_async_context(AsyncExitStack())
        here = await inner.enter_async_context(coordinator(tmp_path / "coordinator"))
        world = World(tmp_path, stack, str(here.address))
        a, b = await world.node(), await world.node()
        await sees(a, lambda view: b.identity.peer_id in ids(view))
        run = here.hub.runs[RUN]

        here.hub.changed(run, run.pause())
        await until(lambda: a.told.orders.is_paused and b.told.orders.is_paused)
        here.hub.changed(run, run.resume())
        await until(lambda: not a.told.orders.is_paused)

        here.hub.changed(run, run.evict(b.identity.peer_id))
        await until(lambda: "evicted" in b.told.log)
        await sees(a, lambda view: b.identity.peer_id not in ids(view))
        await b.announce()
        await asyncio.sleep(0.3)
        assert b.identity.peer_id not in ids(await a.membership.view())

        here.hub.changed(run, run.pause())
        await until(lambda: a.told.orders.is_paused)
        await inner.aclose()
        await until(lambda: not a.told.orders.is_paused)
