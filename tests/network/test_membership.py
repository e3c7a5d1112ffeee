"""Real libp2p daemons on loopback: who sees whom, and who is turned away."""

import asyncio
import dataclasses
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hivemind.utils import get_dht_time

from node.core.errors import ConfigError, NoPeerReachable
from node.core.types import Peer, PeerState, Progress, Shard
from node.network.dht import DhtMembership
from node.network.processes import start_p2p
from node.network.records import encode_peer
from node.trust.identity import Identity

pytestmark = pytest.mark.swarm
RUN = "ab" * 32


class Node:
    def __init__(self, running, identity, membership):
        self.running, self.identity, self.membership = running, identity, membership

    @classmethod
    async def start(cls, home: Path, stack: AsyncExitStack, run: str = RUN):
        identity = Identity.load_or_create(home / "identity.key")
        running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
        stack.push_async_callback(running.close)
        membership = DhtMembership(running, identity, run)
        await membership.start()
        stack.push_async_callback(membership.close)
        return cls(running, identity, membership)

    @property
    async def address(self):
        return (await self.running.addresses())[0]

    def peer(self, addresses=(), **changes):
        progress = Progress(3, "00ff", 1000, 20, 55.5, time.time(), ((2, "0a"), (3, "0b")))
        peer = Peer(
            self.identity.peer_id,
            "näme\x1b[31m",
            tuple(addresses),
            Shard(2, 4),
            PeerState.TRAINING,
            2.5,
            77,
            progress,
            0.0,
            session="5e",
            drives=False,
        )
        return dataclasses.replace(peer, **changes)


async def test_three_nodes_see_each_other_and_the_founder_may_leave(tmp_path):
    async with AsyncExitStack() as stack:
        a, b, c = [await Node.start(tmp_path / name, stack) for name in "abc"]
        assert await b.membership.meet([await a.address]) == [a.identity.peer_id]
        assert await c.membership.meet([await b.address]) == [b.identity.peer_id]

        for node in (a, b, c):
            assert await node.membership.announce(node.peer([await node.address]))
        everybody = {a.identity.peer_id, b.identity.peer_id, c.identity.peer_id}
        for node in (a, b, c):
            view = await node.membership.view()
            assert {p.peer_id for p in view.peers} == everybody
        seen = view.peer(a.identity.peer_id)
        assert seen.name == "näme[31m"  # nothing unprintable reaches a terminal
        told = a.peer([await a.address], name=seen.name)
        told = dataclasses.replace(told, progress=dataclasses.replace(told.progress, at_s=seen.progress.at_s))
        assert dataclasses.replace(seen, expires_at_s=0.0) == told
        assert seen.loss == 2.5

        await a.membership.leave()
        await a.membership.close()
        await a.running.close()
        view = await c.membership.view()
        assert {p.peer_id for p in view.peers} == everybody - {a.identity.peer_id}
        await b.membership.announce(b.peer([await b.address], tokens_given=99))
        view = await c.membership.view()
        assert view.peer(b.identity.peer_id).tokens_given == 99


async def test_a_peer_that_is_counted_out_comes_back_when_it_announces_again(tmp_path):
    async with AsyncExitStack() as stack:
        a, b = [await Node.start(tmp_path / name, stack) for name in "ab"]
        await b.membership.meet([await a.address])
        await a.membership.announce(a.peer())
        await b.membership.announce(b.peer())

        a.membership.count_out(b.identity.peer_id)

        assert (await a.membership.view()).peer(b.identity.peer_id) is None
        await asyncio.sleep(0.02)
        await b.membership.announce(b.peer())
        assert (await a.membership.view()).peer(b.identity.peer_id) is not None


async def test_a_record_under_another_peers_name_is_not_stored(tmp_path):
    async with AsyncExitStack() as stack:
        a, b = [await Node.start(tmp_path / name, stack) for name in "ab"]
        await b.membership.meet([await a.address])
        forged = encode_peer(b.peer(), fingerprint=RUN, at_s=time.time(), identity=b.identity)
        node, key = b.membership._dht, f"potluck/{RUN}/peers"

        assert not await node.store(key, forged, get_dht_time() + 20, subkey=a.identity.peer_id)
        assert not await node.store(key, b"garbage", get_dht_time() + 20, subkey=b.identity.peer_id)
        assert await node.store(key, forged, get_dht_time() + 20, subkey=b.identity.peer_id)
        assert (await a.membership.view()).peer(b.identity.peer_id) is not None


async def test_an_address_where_nobody_listens_is_a_clear_error_within_seconds(tmp_path):
    async with AsyncExitStack() as stack:
        a = await Node.start(tmp_path / "a", stack)
        absent = Identity.load_or_create(tmp_path / "b" / "identity.key").peer_id
        started = time.monotonic()

        with pytest.raises(NoPeerReachable, match="connection was refused"):
            await a.running.connect(f"/ip4/127.0.0.1/tcp/9/p2p/{absent}")

        assert time.monotonic() - started < 10
        with pytest.raises(ConfigError, match="not a node's address"):
            await a.running.connect("192.168.1.1:4040")
        with pytest.raises(ConfigError, match="own address"):
            await a.running.connect(await a.address)


async def test_a_port_that_is_taken_is_refused_and_not_shared_silently(tmp_path):
    async with AsyncExitStack() as stack:
        a = await Node.start(tmp_path / "a", stack)
        taken = (await a.address).split("/p2p/")[0]
        identity = Identity.load_or_create(tmp_path / "b" / "identity.key")

        with pytest.raises(ConfigError, match="Cannot listen"):
            await start_p2p(tmp_path / "b", identity_path=identity.path, listen=[taken])


async def test_the_daemon_dies_with_its_parent(tmp_path):
    program = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from node.network.processes import start_p2p\nfrom node.trust.identity import Identity\n"
        "async def main():\n"
        "    home = Path(sys.argv[1])\n"
        "    identity = Identity.load_or_create(home / 'identity.key')\n"
        "    running = await start_p2p(home, identity_path=identity.path, listen=['/ip4/127.0.0.1/tcp/0'])\n"
        "    print(running.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        os.sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    daemon = int(await asyncio.wait_for(child.stdout.readline(), 60))
    assert Path(f"/proc/{daemon}").exists()

    child.send_signal(signal.SIGKILL)
    await child.wait()

    for _ in range(100):
        status = Path(f"/proc/{daemon}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        await asyncio.sleep(0.05)
    pytest.fail("the network daemon outlived its parent")
