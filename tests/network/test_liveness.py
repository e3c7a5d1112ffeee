"""Telling a peer that is dead from one whose link is full."""

import asyncio

import pytest

from node.core.types import PeerId
from node.network import stages as stages_module
from node.network.stages import StageTransport
from node.v1 import pipeline_pb2 as pb

pytestmark = pytest.mark.swarm
RUN = "cd" * 32
TENSOR = bytes(8 << 20)


class FullLink(StageTransport):
    """A holder whose link passes 1 MB/s on, and pings only behind everything else."""

    piece, passed = 50_000, 0

    async def _answer(self, sender, reader, writer):
        request = pb.StageRequest()
        await stages_module.read_frame(reader, request, max_bytes=stages_module.MAX_REQUEST_BYTES)
        if request.kind == pb.STAGE_KIND_PING:
            await asyncio.sleep(4)
        while True:
            await reader.readexactly(self.piece)
            FullLink.passed += self.piece
            await asyncio.sleep(0.05)


class Nothing:
    """Serves nothing: the link above never hands a request on."""


@pytest.fixture
async def pair(two_nodes):
    (_, driver), (_, holder) = two_nodes
    await driver.connect((await holder.addresses())[0])
    far = FullLink(holder.p2p, fingerprint=RUN)
    await far.open(Nothing())
    return StageTransport(driver.p2p, fingerprint=RUN), PeerId(holder.peer_id)


async def test_a_peer_that_takes_what_is_sent_is_alive_though_its_pings_are_late(pair, monkeypatch):
    monkeypatch.setattr(stages_module, "_PING_S", 1.5)
    near, peer = pair
    request = pb.StageRequest(kind=pb.STAGE_KIND_FORWARD, has_tensor=True)
    sending = asyncio.create_task(near.call(peer, request, (TENSOR,), reply_bytes=0, timeout_s=60))
    while FullLink.passed < 1 << 20:
        await asyncio.sleep(0.01)

    assert await near.ping(peer)

    near._moved_at.clear()  # as if chunks that move counted for nothing
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert not await near.ping(peer), "nothing moves any more"
