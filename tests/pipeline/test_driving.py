"""Drivers and holders over real streams: the gradients are those of one process, whatever happens on the way."""

import asyncio

import pytest
import torch
from small_swarm import HARD

from node.core.types import PeerState

pytestmark = pytest.mark.swarm


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def done(node):
    return len(node.of("MicrobatchDone"))


@pytest.mark.parametrize("wire", ["star", "chain"])
async def test_three_nodes_get_the_gradients_of_one_process(swarm, undivided, wire):
    await swarm.add(swarm.stack, "owner", 0, 1, drives=True, wire=wire, **HARD)
    await swarm.add(swarm.stack, "middle", 1, 2, wire=wire, **HARD)
    await swarm.add(swarm.stack, "end", 2, 3, wire=wire, **HARD)

    swarm.drive("owner")
    prepared = await swarm.until_done("owner", 6)

    count = done(swarm.nodes["owner"])
    assert_close(swarm.gradients(), undivided(("owner", count), **HARD))
    assert swarm.counted(0) == swarm.counted(1) == swarm.counted(2) == (prepared.tokens, prepared.weight)


async def test_a_node_without_a_stage_trains_through_others(swarm, undivided):
    await swarm.add(swarm.stack, "owner", 0, 0, drives=True)
    await swarm.add(swarm.stack, "a", 0, 2)
    await swarm.add(swarm.stack, "b", 2, 3)

    swarm.drive("owner")
    await swarm.until_done("owner", 4)

    assert_close(swarm.gradients("a", "b"), undivided(("owner", done(swarm.nodes["owner"]))))


async def test_two_that_drive_through_each_other_do_not_block(swarm, undivided):
    await swarm.add(swarm.stack, "a", 0, 2, drives=True)
    await swarm.add(swarm.stack, "b", 2, 3, drives=True)

    swarm.drive("a")
    swarm.drive("b")
    await swarm.until_done("a", 6)
    await swarm.until_done("b", 6)

    counts = [(name, done(swarm.nodes[name])) for name in "ab"]
    assert_close(swarm.gradients(), undivided(*counts))


async def test_overlapping_shards_count_each_microbatch_once(swarm, undivided):
    await swarm.add(swarm.stack, "a", 0, 2, drives=True)
    await swarm.add(swarm.stack, "b", 1, 3, drives=True)

    swarm.drive("a")
    swarm.drive("b")
    first, second = await swarm.until_done("a", 5), await swarm.until_done("b", 5)

    assert_close(swarm.gradients(), undivided(("a", done(swarm.nodes["a"])), ("b", done(swarm.nodes["b"]))))
    for stage in range(3):
        assert swarm.counted(stage) == (first.tokens + second.tokens, first.weight + second.weight)


async def test_a_chain_halves_what_the_owner_sends_and_takes_in(swarm):
    traffic = {}
    for wire in ("star", "chain"):
        for name, (first, stop) in {"owner": (0, 0), "a": (0, 1), "b": (1, 2), "c": (2, 3)}.items():
            await swarm.add(swarm.stack, f"{wire}-{name}", first, stop, drives=name == "owner", wire=wire, codec="bf16")
        owner = f"{wire}-owner"
        swarm.drive(owner)
        prepared = await swarm.until_done(owner, 4)
        transport = swarm.nodes[owner].pipeline.transport
        traffic[wire] = (transport.bytes_sent + transport.bytes_received) / prepared.tokens
        await swarm.stop()
        swarm.nodes.clear()

    # three hops: 6 transfers forward and 5 back against 2 and 1 (no gradient goes to the frozen embedding)
    assert traffic["chain"] <= 0.5 * traffic["star"]
    assert traffic["star"] == pytest.approx(11 * 64 * 2, rel=0.01)


async def test_an_owner_waits_for_a_missing_stage_and_goes_on_by_itself(swarm, undivided):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True)
    await swarm.add(swarm.stack, "a", 1, 2)

    swarm.drive("owner")
    while not owner.of("StagesMissing"):
        await asyncio.sleep(0.05)
    assert done(owner) == 0
    await swarm.add(swarm.stack, "b", 2, 3)
    await swarm.until_done("owner", 3)

    assert "layers 4-5" in owner.of("StagesMissing")[0].message
    assert owner.of("StagesFound")
    assert_close(swarm.gradients(), undivided(("owner", done(owner))))


async def test_a_round_does_not_wait_for_a_microbatch_whose_stage_is_missing(swarm):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True)
    swarm.drive("owner")
    while not owner.of("StagesMissing"):
        await asyncio.sleep(0.05)

    prepared = await asyncio.wait_for(owner.driver.hold(), 5)

    assert (prepared.tokens, prepared.weight) == (0, 0)


async def test_a_busy_holder_is_asked_again(swarm, undivided):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True)
    busy = await swarm.add(swarm.stack, "a", 1, 3)
    real = busy.state
    calls = []
    busy.pipeline.server._not_ready = lambda: "" if len(calls) > 2 else calls.append(1) or "loading"

    swarm.drive("owner")
    await swarm.until_done("owner", 2)

    assert real is PeerState.TRAINING
    assert len(calls) == 3
    assert_close(swarm.gradients(), undivided(("owner", done(owner))))
