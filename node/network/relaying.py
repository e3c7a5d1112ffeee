"""Who relays, and how much: what hivemind's libp2p daemon gets wrong, put right.

Given `-relay=1`, which a node needs in order to call others through a relay, the daemon answers as a relay itself,
whatever `-relayService` says, and within libp2p's smallest limits: 128 KiB and two minutes a connection, and then it
cuts. The relay that `-relayService=1` asks for begins when the daemon takes itself for public; whichever of the two
begins last answers. So the answering is taken away from a node's daemon, and the daemon of a relay runs on one core,
where the relay that was asked for begins last (60 times of 60, on an idle and on a busy machine).
"""

from __future__ import annotations

import asyncio

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

HOP = "/libp2p/circuit/relay/0.2.0/hop"
"""Where a relay is asked to relay (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md)."""
RELAY_ENVIRONMENT = {"GOMAXPROCS": "1"}
"""For the daemon of a relay."""


async def stop_relaying(p2p: P2P) -> None:
    """Relay for nobody: take the place of what answers, and leave it empty."""

    async def refuse(_: StreamInfo, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    await p2p.add_binary_stream_handler(HOP, refuse)
    await p2p.remove_binary_stream_handler(HOP)
