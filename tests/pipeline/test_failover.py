"""Holders that die, stall or lose their sums: each microbatch still counts once at every stage."""

import asyncio

import pytest
import torch
from small_swarm import HARD

from node.core.types import PeerState
from node.network.round_words import Malformed
from node.v1 import pipeline_pb2 as pb

pytestmark = pytest.mark.swarm
FORWARD, BACKWARD = pb.STAGE_KIND_FORWARD, pb.STAGE_KIND_BACKWARD


def assert_close(got, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def done(node):
    return len(node.of("MicrobatchDone"))


class Saboteur:
    """Stands before a node's server and does something at the n-th request of a kind."""

    def __init__(self, node, kind, at, before=None, after=None):
        self.node, self.kind, self.left, self.before, self.after = node, kind, at, before, after
        self.struck = asyncio.Event()
        self._serve = node.pipeline.server.serve
        node.pipeline.server.serve = self

    async def __call__(self, sender, request, tensors):
        if request.kind == self.kind:
            self.left -= 1
            if self.left == 0:
                self.struck.set()
                if self.before is not None:
                    await self.before(self.node)
                reply = await self._serve(sender, request, tensors)
                if self.after is not None:
                    await self.after(self.node)
                return reply
        return await self._serve(sender, request, tensors)


async def die(node):
    """Vanish as a killed process does: no answer, no record, no sums."""
    node.is_visible = False
    await node.pipeline.transport.close()
    await node.forget()
    raise Malformed("dead")


async def cut(_):
    """Lose the answer, and live on."""
    raise Malformed("cut")


async def stall(node):
    """Say nothing any more, not even to a ping."""
    await node.pipeline.transport.close()
    await asyncio.sleep(3600)


async def add_two_replicas(swarm):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True, **HARD)
    replicas = [await swarm.add(swarm.stack, name, 1, 3, **HARD) for name in ("left", "right")]
    return owner, replicas


@pytest.mark.parametrize("kind", [FORWARD, BACKWARD], ids=["forward", "backward"])
async def test_a_holder_that_dies_is_replaced_and_its_microbatches_redone(swarm, undivided, kind):
    owner, replicas = await add_two_replicas(swarm)
    saboteurs = [Saboteur(replica, kind, 3, before=die) for replica in replicas[:1]]

    swarm.drive("owner")
    async with asyncio.timeout(60):
        await saboteurs[0].struck.wait()
    await swarm.until_done("owner", done(owner) + 4)
    async with asyncio.timeout(60):  # what the dead one had counted is done again
        while owner.driver._redo or owner.driver._book.lost(owner.driver._swarm.sessions()):
            owner.driver.release()
            await asyncio.sleep(0.1)
    await owner.driver.hold()

    total = max(event.id for event in owner.of("MicrobatchDone")) + 1
    expected = undivided(("owner", total), **HARD)
    assert_close(swarm.gradients("owner", "right"), expected)
    assert swarm.nodes["right"].adapters[2].tokens == swarm.nodes["owner"].adapters[0].tokens == owner.driver.tokens


async def test_a_redone_microbatch_stays_with_those_who_have_counted_it(swarm, undivided):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True, **HARD)
    for name, stage in {"left": 1, "right": 1, "first": 2, "second": 2}.items():
        await swarm.add(swarm.stack, name, stage, stage + 1, **HARD)
    saboteur = Saboteur(swarm.nodes["left"], BACKWARD, 4, before=die)

    swarm.drive("owner")
    async with asyncio.timeout(60):
        await saboteur.struck.wait()
    prepared = await swarm.until_done("owner", done(owner) + 4)

    # both replicas of the last stage are alive, and neither counts what the other one has counted
    total = max(event.id for event in owner.of("MicrobatchDone")) + 1
    assert swarm.counted(2) == swarm.counted(0) == (prepared.tokens, prepared.weight)
    assert_close(swarm.gradients("owner", "right", "first", "second"), undivided(("owner", total), **HARD))
    assert not any(swarm.nodes[name].reset_calls for name in ("first", "second")), "nobody had to drop its sums"


async def test_a_driver_that_is_stopped_and_goes_on_passes_over_no_microbatch(swarm, undivided):
    owner, replicas = await add_two_replicas(swarm)
    swarm.drive("owner")
    await swarm.until_done("owner", 2)
    owner.driver.release()
    while len(owner.driver._moving) < 2:
        await asyncio.sleep(0.001)

    await swarm.stop()
    begun = len(owner.driver._began)
    swarm.drive("owner")
    prepared = await swarm.until_done("owner", begun + 2)

    ids = {event.id for event in owner.of("MicrobatchDone")}
    assert ids == set(range(len(ids)))
    assert swarm.counted(0) == swarm.counted(1) == swarm.counted(2) == (prepared.tokens, prepared.weight)
    assert_close(swarm.gradients(), undivided(("owner", len(ids)), **HARD))


async def test_a_holder_that_lost_its_answer_is_made_to_drop_its_sums(swarm, undivided):
    owner, replicas = await add_two_replicas(swarm)
    saboteur = Saboteur(replicas[0], BACKWARD, 2, after=cut)

    swarm.drive("owner")
    async with asyncio.timeout(60):
        await saboteur.struck.wait()
        while not replicas[0].reset_calls:
            await asyncio.sleep(0.05)
    await swarm.until_done("owner", done(owner) + 4)
    owner.driver.release()
    await asyncio.sleep(1.5)  # let the driver look for what was lost
    prepared = await owner.driver.hold()

    total = max(event.id for event in owner.of("MicrobatchDone")) + 1
    assert prepared.doubts == frozenset()
    assert_close(swarm.gradients(), undivided(("owner", total), **HARD))
    assert swarm.counted(1) == swarm.counted(0) == (prepared.tokens, prepared.weight)


async def test_a_holder_that_stalls_is_found_out_by_asking(swarm, undivided):
    owner, replicas = await add_two_replicas(swarm)
    saboteur = Saboteur(replicas[0], FORWARD, 3, before=stall)

    swarm.drive("owner")
    async with asyncio.timeout(30):
        await saboteur.struck.wait()
    replicas[0].is_visible = False
    await replicas[0].forget()
    await swarm.until_done("owner", done(owner) + 4, timeout_s=30)
    owner.driver.release()
    await asyncio.sleep(1.5)
    await owner.driver.hold()

    total = max(event.id for event in owner.of("MicrobatchDone")) + 1
    assert_close(swarm.gradients("owner", "right"), undivided(("owner", total), **HARD))


async def test_a_microbatch_that_meets_another_version_starts_again_and_counts_once(swarm, undivided):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True)
    holder = await swarm.add(swarm.stack, "a", 1, 3)

    async def step(node):
        for other in (owner, node):
            for adapter in other.adapters.values():
                adapter.discard()
                adapter.version = 1
            other.version = 1

    saboteur = Saboteur(holder, BACKWARD, 2, before=step)
    swarm.drive("owner")
    async with asyncio.timeout(30):
        await saboteur.struck.wait()
    await swarm.until_done("owner", done(owner) + 2)

    # nothing of the old version is in the new sums, and each stage holds the same microbatches
    assert swarm.counted(0) == swarm.counted(1) == swarm.counted(2)
    assert all(adapter.version == 1 for adapter in holder.adapters.values())


async def test_a_holder_that_is_there_answers_every_ping(swarm):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True)
    holder = await swarm.add(swarm.stack, "a", 1, 3)

    answers = [await owner.pipeline.transport.ping(holder.peer) for _ in range(300)]

    assert answers.count(False) == 0


async def test_a_chain_goes_round_a_dead_link(swarm, undivided):
    owner = await swarm.add(swarm.stack, "owner", 0, 1, drives=True, wire="chain")
    await swarm.add(swarm.stack, "middle", 1, 2, wire="chain")
    for name in ("left", "right"):
        await swarm.add(swarm.stack, name, 2, 3, wire="chain")
    saboteur = Saboteur(swarm.nodes["left"], FORWARD, 2, before=die)

    swarm.drive("owner")
    async with asyncio.timeout(60):
        await saboteur.struck.wait()
    await swarm.until_done("owner", done(owner) + 4)
    owner.driver.release()
    await asyncio.sleep(1.5)
    await owner.driver.hold()

    total = max(event.id for event in owner.of("MicrobatchDone")) + 1
    assert_close(swarm.gradients("owner", "middle", "right"), undivided(("owner", total)))


async def test_a_holder_that_comes_back_is_used_again(swarm):
    owner, replicas = await add_two_replicas(swarm)
    for replica in replicas:
        replica.state = PeerState.SYNCING
    swarm.drive("owner")
    while not owner.of("StagesMissing"):
        await asyncio.sleep(0.05)

    replicas[1].state = PeerState.TRAINING
    await swarm.until_done("owner", 2)

    assert replicas[1].adapters[1].tokens == owner.driver.tokens
