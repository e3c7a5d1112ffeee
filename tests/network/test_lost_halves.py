"""Two halves of a swarm that have forgotten each other find together again, since each node looks for those it lost."""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from test_membership import Node

from node import swarm
from node.core.events import EventBus
from node.core.types import SwarmView
from node.host.home import KnownPeer, RunFolder
from node.swarm import Heartbeat, lost_addresses


def known(*names):
    return tuple(KnownPeer(peer_id=peer_id(n), addresses=(address(n),), seen_at_s=1.0) for n in names)


def peer_id(name):
    return "Qm" + (name * 44)[:44]


def address(name):
    return f"/ip4/10.0.0.1/tcp/4040/p2p/{peer_id(name)}"


def view_of(*names):
    nodes = [Node(None, SimpleNamespace(peer_id=peer_id(name)), None) for name in names]
    return SwarmView(peer_id("A"), tuple(node.peer() for node in nodes))


def test_those_who_are_here_are_not_dialled_and_those_who_are_lost_are():
    found = lost_addresses(known(*"BCD"), [address("E"), address("B")], view_of("A", "B"))

    assert set(found) == {address("C"), address("D"), address("E")}
    assert lost_addresses(known("B"), [address("B")], view_of("A", "B")) == ()


def test_of_many_lost_peers_a_few_are_dialled_the_latest_always():
    names = "BCDEFGHJKLMNPQRSTUVWXYZ"

    found = [lost_addresses(known(*names), [], view_of("A")) for _ in range(30)]

    assert all(len(addresses) == swarm._REDIALLED_AT_ONCE for addresses in found)
    assert all(set(map(address, "BCDE")) <= set(addresses) for addresses in found)
    assert len(set().union(*found)) > swarm._REDIALLED_AT_ONCE, "and not always the same others"


async def two_halves(tmp_path, stack):
    """Four nodes in two DHTs that do not know of each other; each remembers somebody of the other half."""
    nodes = [await Node.start(tmp_path / name, stack) for name in "abcd"]
    for one, other in ((0, 1), (2, 3)):
        await nodes[one].membership.meet([await nodes[other].address])
    hearts = []
    for node, lost in zip(nodes, (nodes[2], nodes[3], nodes[0], nodes[1]), strict=True):
        folder = RunFolder(tmp_path / f"run-{node.identity.peer_id}")
        folder.path.mkdir()
        folder.remember_peers([(lost.identity.peer_id, (await lost.address,))])
        mine = node.peer([await node.address])
        hearts.append(
            Heartbeat(node.membership, describe=lambda mine=mine: mine, folder=folder, addresses=(), events=EventBus())
        )
    return hearts


async def all_four_within(hearts, timeout_s):
    tasks = [asyncio.create_task(heart.run(every_s=0.2)) for heart in hearts]
    try:
        async with asyncio.timeout(timeout_s):
            while any(len(heart.view.peers) < 4 for heart in hearts):
                await asyncio.sleep(0.05)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.mark.swarm
async def test_halves_that_have_forgotten_each_other_are_one_swarm_again(tmp_path, monkeypatch):
    monkeypatch.setattr(swarm, "_REDIAL_EVERY_S", 0.5)
    async with AsyncExitStack() as stack:
        await all_four_within(await two_halves(tmp_path, stack), 20.0)


@pytest.mark.swarm
async def test_without_looking_for_the_lost_they_would_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(swarm, "_REDIAL_EVERY_S", 0.5)
    monkeypatch.setattr(swarm, "lost_addresses", lambda *_: ())
    async with AsyncExitStack() as stack:
        hearts = await two_halves(tmp_path, stack)

        with pytest.raises(TimeoutError):
            await all_four_within(hearts, 3.0)
