"""A real node under floods: its memory, honest calls meanwhile, and how soon the offender is cut."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hostile import floods, seeds
from hostile.floods import Honest, Node, Offender

from node.network.dht import DhtMembership
from node.network.processes import start_p2p
from node.trust.identity import Identity

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(900)]
MAX_GROWTH_BYTES = 100 << 20
CUT_WITHIN_S = 5.0
SLACK_S = 2.0
"""For a machine that does other things as well."""
CALLS = 10


@pytest.fixture
async def arena(tmp_path):
    """A node in a process of its own, an honest peer, and an offender, each with its own daemon."""
    async with AsyncExitStack() as stack:
        node = await Node.start(tmp_path / "node")
        stack.push_async_callback(node.close)
        peers = []
        for name in ("honest", "offender"):
            identity = Identity.load_or_create(tmp_path / name / "identity.key")
            running = await start_p2p(tmp_path / name, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
            stack.push_async_callback(running.close)
            await running.connect(node.address)
            peers.append((identity, running))
        membership = DhtMembership(peers[1][1], peers[1][0], seeds.RUN)
        await membership.start()
        stack.push_async_callback(membership.close)
        yield node, Honest(peers[0][1].p2p, node), Offender(peers[1][1].p2p, node), membership


def kinds(is_soak):
    """Return the floods by name: what is done, and which quota is named in the log (none where the flood is refused
    for its form)."""
    many = 10_000 if is_soak else 1000
    return {
        "declared length of 4 GiB": (lambda node, o, m: o.declare(8), "streams_of_peer"),
        "silent streams": (lambda node, o, m: o.be_silent(many), "streams_of_peer"),
        "a byte a second": (lambda node, o, m: o.trickle(3), ""),
        "words": (lambda node, o, m: o.say_words(many), "requests_per_s"),
        "subkeys": (lambda node, o, m: o.store(m, many), ""),
        "control API": (lambda node, o, m: floods.call_control(node.socket), ""),
        "connections": (lambda node, o, m: _connected(node.address, many), ""),
    }


async def _connected(address, count):
    assert await floods.connect(address, count) >= min(count, 500)
    return 0.0


@pytest.mark.parametrize("name", kinds(False))
async def test_a_flood_takes_little_and_is_cut(name, arena, is_soak, record_property):
    node, honest, offender, membership = arena
    flood, quota = kinds(is_soak)[name]
    calm_s = await honest.median_s(CALLS)
    before = await node.look()

    flooding = asyncio.ensure_future(flood(node, offender, membership))
    times, most = [], before
    while not flooding.done() or len(times) < CALLS:
        times.append(await honest.once())
        state = await node.look()
        most = {key: max(state[key], most[key]) for key in ("python", "daemon", "files", "daemon_files")}
        before["told"] += state["told"]
        await asyncio.sleep(0.02)
    cut_s, flooded_s = flooding.result(), sorted(times)[len(times) // 2]

    after = await node.look()
    grown = {key: (most[key] - before[key]) >> 20 for key in ("python", "daemon")}
    figures = f"{name}: +{grown['python']} MB, daemon +{grown['daemon']} MB, {most['files']} and {most['daemon_files']} files, "
    figures += f"honest calls {1e3 * calm_s:.1f} -> {1e3 * flooded_s:.1f} ms (longest {1e3 * max(times):.0f}), cut {cut_s:.1f} s"
    record_property("figures", figures)
    print(figures)
    assert grown["python"] << 20 <= MAX_GROWTH_BYTES, figures
    assert cut_s <= CUT_WITHIN_S + SLACK_S, figures
    assert flooded_s < max(3 * calm_s, 0.25), figures
    assert after["keys"] <= 1, "something is kept under another key"
    assert after["records"] <= 2
    if quota:
        assert any(f"quota {quota}" in line for line in before["told"] + after["told"]), before["told"] + after["told"]
