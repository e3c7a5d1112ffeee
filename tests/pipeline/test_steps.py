"""Three steps of a swarm over stages are the three steps that one process makes of the same microbatches."""

import asyncio

import pytest
import torch
from reference import loaded
from small_swarm import HARD, PACKING, PLAN, RUN, documents

from node.averaging.gradient import GradientStrategy, Rule
from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings
from node.core.types import START_HASH, RoundStatus, Standing
from node.data.stream import MicrobatchStream
from node.network.rounds import RoundTransport
from node.training.adapter import StageAdapter
from node.training.loop import dropout_seed
from node.training.optimizer import AdamWSettings
from node.training.schedule import ScheduleSettings, learning_rate

pytestmark = pytest.mark.swarm
RULE = Rule(AdamWSettings(max_grad_norm=0.05, weight_decay=0.01), ScheduleSettings(1e-2, "linear", 1, 20))
TWICE = {"a": (0, 1, True), "b": (0, 1, True), "c": (1, 3, False), "d": (1, 3, False)}
OVERLAPPING = {"a": (0, 2, True), "b": (1, 3, True)}
WITHOUT_A_STAGE = {"a": (0, 0, True), "b": (0, 2, False), "c": (2, 3, False)}


class Averaging:
    """The rounds of one of the swarm's nodes."""

    def __init__(self, node):
        self.node, self.results = node, []
        self.strategy = GradientStrategy(
            engine=node.engine,
            adapters=tuple(node.adapters.values()),
            work=node.driver,
            rule=RULE,
            standing=Standing(0, START_HASH, 0),
            num_stages=PLAN.num_stages,
            events=node.bus,
        )
        self.averager = Averager(
            self.strategy,
            RoundTransport(node.running.p2p, fingerprint=RUN),
            AveragerSettings(num_stages=PLAN.num_stages, codec="none"),
            me=node.peer,
            events=node.bus,
        )

    async def open(self, stack):
        await self.averager.open()
        stack.push_async_callback(self.averager.close)

    def follow(self):
        """Let the holder serve at the version that it has stepped to."""
        self.node.version = self.strategy.standing.version


async def one_round(rounds):
    alive = {r.node.peer: r.strategy.shard for r in rounds}
    before = [len(r.node.of("RoundFinished")) for r in rounds]
    for each in rounds:
        each.averager.saw(alive)
    min(rounds, key=lambda r: r.node.peer).averager.lead(set(alive), alive, budget_s=30.0)
    async with asyncio.timeout(40):
        while any(len(r.node.of("RoundFinished")) == n for r, n in zip(rounds, before, strict=True)):
            await asyncio.sleep(0.01)
    for each in rounds:
        each.follow()
    return [r.node.of("RoundFinished")[-1].result for r in rounds]


def one_process(folder, steps, spec):
    """Train each step's microbatches in one piece; return the adapter's values by parameter."""
    whole = loaded(folder, **spec)
    adapter = StageAdapter(0, whole.lora)
    streams = {name: MicrobatchStream(documents(name), PACKING, seed=1, salt=name) for name in "abcd"}
    batches = {name: {} for name in streams}
    for version, ids in enumerate(steps):
        for name, wanted in ids.items():
            for id in sorted(wanted):
                while id not in batches[name]:
                    batch = next(streams[name])
                    batches[name][batch.id] = batch
                whole.train_microbatch(batches[name][id], dropout_seed=dropout_seed(f"1:{name}", id))
                adapter.count(batches[name][id].num_tokens, batches[name][id].num_labels)
        sealed = adapter.seal()
        mean = sealed.gradient / sealed.weight
        norm_sq = float(mean.double().dot(mean.double()))
        adapter.step(mean, norm_sq, sealed.tokens, RULE.optimizer, learning_rate(RULE.schedule, version))
    return adapter.layout.views(adapter.values)


@pytest.mark.parametrize("layout", [TWICE, OVERLAPPING, WITHOUT_A_STAGE], ids=["2 x 2", "overlapping", "no stage"])
async def test_three_steps_over_stages_are_those_of_one_process(swarm, tiny_folder, layout):
    spec = HARD
    for name, (first, stop, drives) in layout.items():
        await swarm.add(swarm.stack, name, first, stop, drives=drives, **spec)
    rounds = [Averaging(node) for node in swarm.nodes.values()]
    for each in rounds:
        await each.open(swarm.stack)
    drivers = [name for name, (_, _, drives) in layout.items() if drives]
    for name in drivers:
        swarm.drive(name)

    steps, seen = [], dict.fromkeys(drivers, 0)
    for number in range(3):
        async with asyncio.timeout(60):
            while any(len(swarm.nodes[name].of("MicrobatchDone")) < seen[name] + 2 + number for name in drivers):
                await asyncio.sleep(0.02)
        results = await one_round(rounds)

        assert {r.status for r in results} == {RoundStatus.COMMITTED}, results
        ids, tokens = {}, 0
        for name in drivers:
            events = swarm.nodes[name].events
            kinds = [type(event).__name__ for event in events]
            opened = len(kinds) - 1 - kinds[::-1].index("RoundStarted")
            done = [e for e in events[:opened] if type(e).__name__ == "MicrobatchDone"]
            ids[name] = {event.id for event in done[seen[name] :]}
            tokens += sum(event.tokens for event in done[seen[name] :])
            seen[name] = len(done)
        assert {r.tokens for r in results} == {tokens}
        steps.append(ids)

    expected = one_process(tiny_folder, steps, spec)
    for node in swarm.nodes.values():
        for adapter in node.adapters.values():
            for key, values in adapter.layout.views(adapter.values).items():
                torch.testing.assert_close(values, expected[key], rtol=1e-5, atol=1e-5, msg=key)
    for stage in range(PLAN.num_stages):
        replicas = [node.adapters[stage] for node in swarm.nodes.values() if stage in node.adapters]
        assert len({replica.digest() for replica in replicas}) == 1, f"stage {stage}"
