"""An offender as a process: told which flood to make by lines of JSON, it answers with how long it was let."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from hostile import seeds
from hostile.floods import KINDS, Node, Offender
from node.network.dht import DhtMembership
from node.network.processes import start_p2p
from node.trust.identity import Identity


async def offend(home: Path, node: Node) -> None:
    """Flood until the input ends."""
    os.nice(19)
    identity = Identity.load_or_create(home / "identity.key")
    running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
    await running.connect(node.address)
    membership = DhtMembership(running, identity, seeds.RUN)
    await membership.start()
    offender = Offender(running.p2p, node)
    print(json.dumps(offender.name), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        kind, many = json.loads(line)
        print(json.dumps(await KINDS[kind](node, offender, membership, many)), flush=True)
    await membership.close()
    await running.close()


if __name__ == "__main__":
    asyncio.run(offend(Path(sys.argv[1]), Node(None, json.loads(sys.argv[2]))))
