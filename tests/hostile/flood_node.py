"""A node's network in a process of its own, to be flooded: all doors over a real daemon. Asked by lines of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psutil

from hostile import seeds
from hostile.doors import Bulks, Owned
from node.control.server import POINTER, ControlServer
from node.core.events import EventBus
from node.network.dht import DhtMembership
from node.network.door import Door
from node.network.processes import start_p2p
from node.network.rounds import RoundTransport
from node.network.stages import StageTransport
from node.network.weights import WeightServer


def memory(pid: int) -> dict[str, int]:
    """Return what this process and the daemon hold, in bytes, and their open files."""
    mine, daemon = psutil.Process(), psutil.Process(pid)
    return {
        "python": mine.memory_info().rss,
        "daemon": daemon.memory_info().rss,
        "files": mine.num_fds(),
        "daemon_files": daemon.num_fds(),
    }


async def serve(home: Path) -> None:
    """Serve until the input ends."""
    world, told = seeds.World(home), []
    running = await start_p2p(home / "p2p", identity_path=world.identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
    running.told = told.append
    line = running.p2p
    await Door(world, EventBus(), running.told).open(line)
    rounds = RoundTransport(line, fingerprint=seeds.RUN, told=running.told)
    await rounds.open(lambda sender, word: None, Bulks())
    stages = StageTransport(line, fingerprint=seeds.RUN, told=running.told)
    await stages.open(world.stage_server(stages, EventBus()))
    await WeightServer(line, fingerprint=seeds.RUN, source=world.store, told=running.told).open()
    membership = DhtMembership(running, world.identity, seeds.RUN)
    await membership.start()
    control = ControlServer(home, Owned())
    await control.start()
    socket = json.loads((home / POINTER).read_text())["address"].removeprefix("unix:")
    print(
        json.dumps({"address": (await running.addresses())[0], "peer": running.peer_id, "socket": socket}), flush=True
    )
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        storage = membership._dht.protocol.storage
        records = sum(len(item.value) for _, item in storage.items() if hasattr(item.value, "data"))
        state = {**memory(running.pid), "told": list(told), "keys": len(storage), "records": records}
        print(json.dumps(state), flush=True)
    await control.close()
    await membership.close()
    await running.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
