"""What does a node send that only tells the others of itself?

Nodes of one swarm on loopback, announcing and looking around as a node does when nothing changes; against the plain way,
in which each stores its record and searches for all records by hivemind's own calls once a second. Bytes are those of
the loopback interface, headers included, by node and second. In a network namespace, so that nothing else is counted:

    unshare -rn sh -c 'ip link set lo up; python benchmarks/idle_traffic.py'
"""

import argparse
import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from hivemind.utils import get_dht_time

from node.core.types import Peer, PeerState, Progress, Shard
from node.network.dht import RECORD_LIFETIME_S, DhtMembership
from node.network.processes import start_p2p
from node.network.records import encode_peer
from node.swarm import ANNOUNCE_EVERY_S
from node.trust.identity import Identity

RUN = "ab" * 32


def sent_bytes():
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    raise SystemExit("there is no loopback interface")


class Member:
    def __init__(self, identity, membership, addresses):
        self.identity, self.membership = identity, membership
        progress = Progress(3, "00" * 32, 1000, 20, 55.5, time.time(), ((0, "0a"),))
        self.peer = Peer(
            identity.peer_id,
            "node",
            tuple(addresses),
            Shard(0, 1),
            PeerState.TRAINING,
            2.5,
            77,
            progress,
            0.0,
            session="5e",
        )

    async def push(self):
        while True:
            await self.membership.announce(self.peer)
            for _ in range(round(ANNOUNCE_EVERY_S)):
                await self.membership.view()
                await asyncio.sleep(1)

    async def search(self):
        dht, key = self.membership._dht, self.membership._key  # noqa: SLF001
        while True:
            record = encode_peer(self.peer, fingerprint=RUN, at_s=time.time(), identity=self.identity)
            await dht.store(key, record, get_dht_time() + RECORD_LIFETIME_S, subkey=self.identity.peer_id)
            await dht.get(key, latest=True)
            await asyncio.sleep(1)


async def measure(number, way, settle_s, seconds):
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        members, first = [], None
        for index in range(number):
            home = folder / str(index)
            identity = Identity.load_or_create(home / "identity.key")
            running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
            stack.push_async_callback(running.close)
            membership = DhtMembership(running, identity, RUN)
            await membership.start()
            stack.push_async_callback(membership.close)
            addresses = await running.addresses()
            if first is not None:
                await membership.meet([first])
            first = first or addresses[0]
            members.append(Member(identity, membership, addresses))
        tasks = [asyncio.create_task(getattr(member, way)()) for member in members]
        await asyncio.sleep(settle_s)
        before, begin = sent_bytes(), time.monotonic()
        await asyncio.sleep(seconds)
        rate = (sent_bytes() - before) / (time.monotonic() - begin) / number
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--settle", type=float, default=100, help="seconds before counting")
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    for number in options.nodes:
        ours = asyncio.run(measure(number, "push", options.settle, options.seconds))
        plain = asyncio.run(measure(number, "search", 10, options.seconds))
        print(f"{number} nodes: {ours:.0f} B/s a node, the plain way {plain:.0f}: ratio {ours / plain:.3f}", flush=True)


if __name__ == "__main__":
    main()
