"""Deadlines that follow the measured times, on real p2p streams: a slow peer stays, a dead one costs a round at most."""

import asyncio
import os
import secrets
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from faults.fault import Fault
from faults.injector import injected
from faults.protocol import protocol_steps
from faults.rounds_wire import SlowLine, mischief_on_the_wire
from faults.rounds_world import Node, World, daemons

from node.averaging import patience
from node.core import deadline
from node.core.deadline import NUM_NEEDED
from node.core.types import RoundStatus

pytestmark = pytest.mark.swarm
CEILING_S = 30.0
FLOOR_S = 1.0
"""Instead of `deadline.FLOOR_S`, to save time."""
SENT_BYTES = 3_300_000
"""By each of three peers in a round: parts to two others, and its result to both. At 10 Mbit/s that takes 2.6 s, which
is more than a round of fast peers is given and less than twice that."""
NUM_VALUES = SENT_BYTES * 3 // 16


@asynccontextmanager
async def swarm(folder, monkeypatch, *, num_values, line=None, slow_after=0):
    """Three nodes; from the given passing on, what the last one sends goes over a slow line."""
    monkeypatch.setattr(deadline, "FLOOR_S", FLOOR_S)
    run = secrets.token_hex(32)
    async with AsyncExitStack() as stack:
        running = await daemons(folder, stack, 3)
        nodes = [Node(one, run, num_values=num_values) for one in running]
        world = World(nodes, nodes[-1])
        faults = []
        if line is not None:
            options = {"change": line.through, "nth": slow_after + 1, "times": 0, "where": nodes[-1].owns}
            faults = [
                Fault("RoundTransport.exchange", "change", argument=3, **options),
                Fault("Streams.take_parts", "change", argument=2, **options),
            ]
        stack.enter_context(mischief_on_the_wire(monkeypatch))
        stack.enter_context(injected(*faults, protocol_steps()))
        for node in nodes:
            await node.averager.open()
            stack.push_async_callback(node.averager.close)
        yield world


async def one_round(world, called=None):
    """Let the first node call all whom it does not leave out; return how it ended for it, and in how many seconds."""
    leader = world.nodes[0]
    for number, node in enumerate(world.nodes):
        node.strategy.train([number])
    left_out = leader.averager.left_out()
    began = await world.call(leader, [n for n in world.nodes if n.id not in left_out], CEILING_S)
    await world.all_at_rest([leader], began + CEILING_S + 2.0)
    took_s = time.monotonic() - began
    others = [n for n in world.nodes if n.id in leader.results[-1][1].members]
    await world.all_at_rest([n for n in others if n is not world.faulty], began + CEILING_S + 2.0)
    return leader.results[-1][1], took_s


async def until_known(world):
    """Do as many rounds as it takes to know how long they take."""
    for _ in range(NUM_NEEDED):
        result, _ = await one_round(world)
        assert result.status is RoundStatus.COMMITTED, result


async def until_slow_commits(world, max_rounds=3):
    results = []
    for _ in range(max_rounds):
        result, _ = await one_round(world)
        await world.all_at_rest(world.nodes, time.monotonic() + 5.0)
        results.append(result)
        if result.status is RoundStatus.COMMITTED:
            break
    return results


async def test_a_peer_whose_line_falls_to_10_mbit_is_given_time_and_not_left_out(tmp_path, monkeypatch):
    line = SlowLine(10.0)
    async with swarm(tmp_path, monkeypatch, num_values=NUM_VALUES, line=line, slow_after=2 * NUM_NEEDED) as world:
        await until_known(world)
        assert SENT_BYTES / line.bytes_per_s > 2 * FLOOR_S

        results = await until_slow_commits(world)

        assert results[-1].status is RoundStatus.COMMITTED, results
        assert len(results) == 2, "one round runs out of time, and the next has twice as much"
        assert world.faulty.id in results[-1].members
        assert not any(node.averager.left_out() for node in world.nodes)
        assert len({node.strategy.standing for node in world.nodes}) == 1
        assert set(world.nodes[0].strategy.counts[:3].tolist()) == {NUM_NEEDED + 2}, "nothing lost, nothing twice"


async def test_without_a_look_at_what_moves_the_slow_peer_would_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "MOVED_WITHIN_S", -1.0)
    line = SlowLine(10.0)
    async with swarm(tmp_path, monkeypatch, num_values=NUM_VALUES, line=line, slow_after=2 * NUM_NEEDED) as world:
        await until_known(world)

        results = await until_slow_commits(world, max_rounds=1)

        assert results[0].status is RoundStatus.DROPPED
        assert world.nodes[0].averager.left_out() == {world.faulty.id}


async def test_a_peer_that_stops_costs_one_round_which_ends_long_before_the_recipes_limit(tmp_path, monkeypatch):
    async with swarm(tmp_path, monkeypatch, num_values=300_000) as world:
        await until_known(world)
        stopped = world.faulty
        exchange_begins = world.nodes[0].averager._streams.scatter

        def stop_then_begin(*arguments, **options):
            os.kill(stopped.daemon, signal.SIGSTOP)
            exchange_begins(*arguments, **options)

        world.nodes[0].averager._streams.scatter = stop_then_begin
        try:
            first, first_s = await one_round(world)
            world.nodes[0].averager._streams.scatter = exchange_begins
            second, second_s = await one_round(world)

            assert first_s < CEILING_S / 3, "it follows the measured times"
            assert (first.status, second.status) == (RoundStatus.DROPPED, RoundStatus.COMMITTED), (first, second)
            assert second_s < CEILING_S / 3
            third, _ = await one_round(world)
            assert third.status is RoundStatus.COMMITTED
            assert stopped.id not in {*second.members, *third.members}
        finally:
            os.kill(stopped.daemon, signal.SIGCONT)
            await asyncio.sleep(0.2)
