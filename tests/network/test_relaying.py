"""A node relays for nobody; a relay passes on enough for states and gradients."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hivemind.p2p import PeerID

from node.network import processes
from node.network.processes import PEER_FAILED, start_p2p
from node.network.relaying import HOP
from node.trust.identity import Identity

pytestmark = pytest.mark.swarm
DEFAULT_BYTES, DEFAULT_S = 128 << 10, 120
RESERVE = bytes([2, 0x08, 0])


def fields(data):
    """Return the fields of a protobuf message, for one that is not ours."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        value = varint()
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        found[key >> 3] = value
    return found


async def limit_of(p2p, relay):
    """Ask a relay to relay for this peer; return seconds and bytes after which it cuts a connection."""
    async with asyncio.timeout(5):
        _, reader, writer = await p2p.call_binary_stream_handler(PeerID.from_base58(relay), HOP)
        writer.write(RESERVE)
        answer = b""
        while not answer or len(answer) <= answer[0] & 0x7F:
            answer += await reader.readexactly(1)
            if len(answer) == 2 and answer[0] > 0x7F:  # a length in two bytes
                answer = await reader.readexactly(answer[0] - 0x80 + (answer[1] << 7))
                break
        else:
            answer = answer[1:]
        writer.close()
    limit = fields(fields(answer)[4])
    return limit[1], limit[2]


async def asked(tmp_path, *, relays_for_others):
    async with AsyncExitStack() as stack:

        async def peer(name, **options):
            identity = Identity.load_or_create(tmp_path / name / "identity.key")
            running = await start_p2p(
                tmp_path / name, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"], **options
            )
            stack.push_async_callback(running.close)
            return running

        other = await peer("other", relays_for_others=relays_for_others)
        me = await peer("me")
        await me.connect((await other.addresses())[0])
        return await limit_of(me.p2p, other.peer_id)


async def test_a_node_relays_for_nobody(tmp_path):
    with pytest.raises(PEER_FAILED):
        await asked(tmp_path, relays_for_others=False)


async def test_a_node_would_relay_if_its_daemon_were_left_alone(tmp_path, monkeypatch):
    async def leave_alone(_):
        pass

    monkeypatch.setattr(processes, "stop_relaying", leave_alone)
    assert await asked(tmp_path, relays_for_others=False) == (DEFAULT_S, DEFAULT_BYTES)


async def test_a_relay_passes_on_more_than_a_state(tmp_path):
    assert await asked(tmp_path, relays_for_others=True) == (30 * 60, 4 << 30)
