"""A real node under floods: its memory, honest calls meanwhile, and how soon the offender is cut."""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from random import Random

import pytest
import pytest_asyncio
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError, P2PHandlerError
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure

from hostile.floods import KINDS, SPACE, STREAMS, Elsewhere, Honest, Node
from node.network.door import HELLO
from node.network.processes import start_p2p
from node.trust.identity import Identity

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]
MANY, SOAK_MANY = 10_000, 100_000
MAX_GROWTH_BYTES = 100 << 20
CUT_WITHIN_S = 5.0
SLACK_S = 2.0
"""For a machine that does other things as well."""
CALLS = 20
EACH = 100
OVER_STREAMS = {
    "state-request": STREAMS["state"],
    "parts": STREAMS["exchange"],
    "stage-request": STREAMS["stages"],
    "weight-request": STREAMS["weights"],
}
OVER_CALLS = {
    "hello": HELLO,
    "word": f"{SPACE}/round::RoundTransport.rpc_word",
    "dht-ping": "DHTProtocol.rpc_ping",
    "dht-find": "DHTProtocol.rpc_find",
    "dht-store": "DHTProtocol.rpc_store",
}
QUOTAS = {"silent streams": "streams_of_peer", "words": "requests_per_s", "subkeys": "requests_per_s"}
"""What is named in the log; the others are refused for their form, and of connections no handler hears."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(tmp_path_factory):
    """A node and an offender in processes of their own, and an honest peer, each with its own daemon."""
    folder = tmp_path_factory.mktemp("arena")
    async with AsyncExitStack() as stack:
        node = await Node.start(folder / "node")
        stack.push_async_callback(node.close)
        offender = await Elsewhere.start(folder / "offender", node)
        stack.push_async_callback(offender.close)
        identity = Identity.load_or_create(folder / "honest" / "identity.key")
        running = await start_p2p(folder / "honest", identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
        stack.push_async_callback(running.close)
        await running.connect(node.address)
        yield node, Honest(running.p2p, node), offender


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flood_takes_little_and_is_cut(kind, arena, is_soak, record_property):
    node, honest, offender = arena
    await honest.median_s(CALLS)
    calm_s, before = await honest.median_s(CALLS), await node.look()

    flooding = asyncio.ensure_future(offender.flood(kind, SOAK_MANY if is_soak else MANY))
    times, most = [], before
    while not flooding.done() or len(times) < CALLS:
        times.append(await honest.once())
        state = await node.look()
        most = {key: max(state[key], most[key]) for key in ("python", "daemon", "files", "daemon_files")}
        await asyncio.sleep(0.02)
    cut_s, flooded_s = flooding.result(), sorted(times)[len(times) // 2]

    after = await node.look()
    python_mb, daemon_mb = ((most[key] - before[key]) >> 20 for key in ("python", "daemon"))
    figures = (
        f"{kind}: +{python_mb} MB, daemon +{daemon_mb} MB, {most['files']} and {most['daemon_files']} files, honest calls "
        f"{1e3 * calm_s:.1f} -> {1e3 * flooded_s:.1f} ms (longest {1e3 * max(times):.0f}), cut after {cut_s:.1f} s"
    )
    record_property("figures", figures)
    print(figures)
    assert most["python"] - before["python"] <= MAX_GROWTH_BYTES, figures
    assert cut_s <= CUT_WITHIN_S + SLACK_S, figures
    assert flooded_s < max(3 * calm_s, 0.25), figures
    assert after["keys"] <= 1, "something is kept under another key"
    assert after["records"] <= 2
    if quota := QUOTAS.get(kind):
        assert any(f"over_quota: {offender.name}" in line and f"quota {quota}" in line for line in after["told"])


async def test_damaged_frames_over_a_real_daemon_leave_the_node_as_it_was(arena, targets, record_property):
    node, honest, _ = arena
    target, rng = PeerID.from_base58(node.peer), Random("over a daemon")
    before = await node.look()

    async def stream(name, data):
        _, reader, writer = await honest.p2p.call_binary_stream_handler(target, name)
        with contextlib.suppress(ConnectionError, OSError):
            writer.write(data)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 30)
        writer.close()

    async def call(name, data):
        with contextlib.suppress(P2PHandlerError, P2PDaemonError):
            await asyncio.wait_for(honest.p2p._client.call_unary_handler(target, name, data), 30)

    doors = {door: (stream, name) for door, name in OVER_STREAMS.items()} | {
        d: (call, n) for d, n in OVER_CALLS.items()
    }
    for door, (send, name) in doors.items():
        for _ in range(EACH):
            with contextlib.suppress(ControlFailure):  # the daemon itself refused the stream
                await send(name, targets[door].make(rng))
    await asyncio.sleep(2)  # what the quota of requests took back is given again

    assert await honest.once() < 5, "the node does not answer any more"
    grown = (await node.look())["python"] - before["python"]
    record_property("figures", f"{EACH * len(doors)} frames over the daemon, +{grown >> 20} MB")
    assert grown <= MAX_GROWTH_BYTES
