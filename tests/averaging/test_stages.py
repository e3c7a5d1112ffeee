"""Rounds over several stages, over real streams: the step is the one that a single process makes of all sums."""

import asyncio
from contextlib import AsyncExitStack

import pytest
import torch
from torch import nn

from node.averaging.gradient import GradientStrategy, Rule
from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings, Prepared
from node.core.errors import NodeError
from node.core.events import EventBus, RoundFinished, Stepped
from node.core.types import START_HASH, RoundStatus, Shard, Standing
from node.data.stream import Cursor
from node.network.processes import start_p2p
from node.network.rounds import RoundTransport
from node.training.adapter import StageAdapter
from node.training.engine import Engine
from node.training.optimizer import AdamWSettings
from node.training.schedule import ScheduleSettings, learning_rate
from node.trust.identity import Identity

pytestmark = pytest.mark.swarm
RUN = "ab" * 32
SIZES = (997, 1203, 800)
RULE = Rule(AdamWSettings(max_grad_norm=0.05, weight_decay=0.01), ScheduleSettings(1e-2, "linear", 1, 20))
DOUBLED = {"a": (0, 1), "b": (0, 1), "c": (1, 2), "d": (1, 2)}
OVERLAPPING = {"a": (0, 2), "b": (1, 3), "c": (0, 1), "d": (2, 3), "e": (0, 0)}


def stage_adapter(stage):
    generator = torch.Generator().manual_seed(stage)
    weight = nn.Parameter(torch.randn(SIZES[stage], generator=generator) * 0.1)
    return StageAdapter(stage, {f"model.layers.{stage}.w.lora_A.weight": weight})


class Desk:
    """Work that is finished already: this many labels of the node's own, and whatever the adapters hold."""

    def __init__(self):
        self.session, self.cursor, self.epoch = "00", Cursor(), 0.0
        self.labels = self.tokens = 0
        self.is_held, self.doubts, self.ends = False, frozenset(), []

    async def hold(self):
        self.is_held = True
        return Prepared(self.labels, self.tokens, self.doubts)

    def sealed(self):
        assert self.is_held, "sums are sealed at rest"

    def release(self):
        self.is_held = False

    def settle(self, shares, *, committed):
        self.ends.append((tuple((share.peer_id, share.session) for share in shares), committed))
        if committed:
            self.labels = self.tokens = 0

    def discard(self):
        self.session = f"{int(self.session, 16) + 1:02x}"


class Member:
    def __init__(self, name, stages, num_stages):
        self.name, self.num_stages, self.work, self.results = name, num_stages, Desk(), []
        self.events = EventBus()
        self.events.subscribe(self._note)
        self.engine = Engine(num_threads=1)
        self.adapters = {stage: stage_adapter(stage) for stage in range(*stages)}
        self.norms = []
        self.strategy = GradientStrategy(
            engine=self.engine,
            adapters=tuple(self.adapters.values()),
            work=self.work,
            rule=RULE,
            standing=Standing(0, START_HASH, 0),
            num_stages=num_stages,
            events=self.events,
        )

    def _note(self, event):
        if isinstance(event, RoundFinished):
            self.results.append(event.result)
        elif isinstance(event, Stepped):
            self.norms.append(event.gradient_norm)

    async def open(self, home, stack, codec):
        identity = Identity.load_or_create(home / "identity.key")
        self.running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
        stack.push_async_callback(self.running.close)
        self.id = self.running.peer_id
        self.averager = Averager(
            self.strategy,
            RoundTransport(self.running.p2p, fingerprint=RUN),
            AveragerSettings(num_stages=self.num_stages, codec=codec),
            me=self.id,
            events=self.events,
        )
        await self.averager.open()
        stack.push_async_callback(self.averager.close)
        stack.push_async_callback(self.engine.close)
        return self

    def count(self, generator, labels):
        """Add a sum of this many labels to each of the node's stages."""
        for adapter in self.adapters.values():
            adapter.gradients += labels * torch.randn(adapter.gradients.shape, generator=generator)
            adapter.count(labels + 1, labels)

    def sums(self):
        return {stage: (a.gradients.clone(), a.weight) for stage, a in self.adapters.items()}


async def swarm(tmp_path, stack, layout, num_stages, codec="none"):
    made = [Member(name, stages, num_stages) for name, stages in layout.items()]
    members = [await member.open(tmp_path / member.name, stack, codec) for member in made]
    for member in members:
        for other in members:
            if other is not member:
                await member.running.connect((await other.running.addresses())[0])
    return sorted(members, key=lambda m: m.id)


async def one_round(members, budget_s=10.0):
    """Let the first of the members call all; return how it ended for each."""
    alive = {m.id: m.strategy.shard for m in members}
    before = [len(m.results) for m in members]
    for member in members:
        member.averager.saw(alive)
    members[0].averager.lead(set(alive), alive, budget_s=budget_s)
    async with asyncio.timeout(30):
        while any(len(m.results) == n for m, n in zip(members, before, strict=True)):
            await asyncio.sleep(0.01)
    return [member.results[-1] for member in members]


def reference(num_stages):
    """One process's adapter over all stages, as one vector."""
    whole = StageAdapter(
        0, {f"model.layers.{s}.w.lora_A.weight": nn.Parameter(stage_adapter(s).values) for s in range(num_stages)}
    )
    return whole, [0, *torch.tensor(SIZES[:num_stages]).cumsum(0).tolist()]


@pytest.mark.parametrize(("layout", "num_stages"), [(DOUBLED, 2), (OVERLAPPING, 3)], ids=["2 x 2", "overlapping"])
async def test_all_stages_step_as_one_process_would_and_replicas_hold_the_same_bits(tmp_path, layout, num_stages):
    generator = torch.Generator().manual_seed(7)
    alone, edges = reference(num_stages)
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, layout, num_stages)
        for step in range(3):
            for number, member in enumerate(members):
                member.count(generator, 1 + (number + step) % 4)
                member.work.labels = member.work.tokens = 1 + number
            brought = [member.sums() for member in members]

            results = await one_round(members)

            assert [r.status for r in results] == [RoundStatus.COMMITTED] * len(members), results
            assert {r.tokens for r in results} == {sum(range(1, 1 + len(members)))}
            means = []
            for stage in range(num_stages):
                held = [sums[stage] for sums in brought if stage in sums]
                means.append(sum(gradient for gradient, _ in held) / sum(weight for _, weight in held))
            mean = torch.cat(means)
            norm_sq = float(mean.double().dot(mean.double()))
            alone.step(mean, norm_sq, results[0].tokens, RULE.optimizer, learning_rate(RULE.schedule, step))
            for member in members:
                assert member.norms[-1] == pytest.approx(norm_sq**0.5, rel=1e-6), "of the whole adapter"
                assert norm_sq**0.5 > RULE.optimizer.max_grad_norm, "the step is clipped"
                assert all(a.weight == 0 and not a.gradients.any() for a in member.adapters.values())
                assert not member.work.is_held
                assert member.work.ends[-1][1]

        for stage in range(num_stages):
            replicas = [m.adapters[stage] for m in members if stage in m.adapters]
            assert len(replicas) >= 2
            assert len({replica.digest() for replica in replicas}) == 1, f"stage {stage}"
            expected = alone.values[edges[stage] : edges[stage + 1]]
            torch.testing.assert_close(replicas[0].values, expected, rtol=1e-5, atol=1e-6)
        standings = [m.strategy.standing for m in members]
        assert len({(s.version, s.base_hash, s.committed_tokens) for s in standings}) == 1
        assert standings[0].version == 3


async def test_a_lossy_codec_still_leaves_the_same_bits_on_all_replicas_of_a_stage(tmp_path):
    generator = torch.Generator().manual_seed(8)
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, OVERLAPPING, 3, codec="bf16")
        for member in members:
            member.count(generator, 2)
            member.work.labels = member.work.tokens = 2

        results = await one_round(members)

        assert {r.status for r in results} == {RoundStatus.COMMITTED}, results
        for stage in range(3):
            assert len({m.adapters[stage].digest() for m in members if stage in m.adapters}) == 1


async def test_a_dropped_round_costs_no_sum_and_the_next_one_brings_it(tmp_path):
    generator = torch.Generator().manual_seed(9)
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, DOUBLED, 2)
        for member in members:
            member.count(generator, 3)
            member.work.labels = member.work.tokens = 3
        brought = [member.sums() for member in members]
        spoiler = members[-1]
        seal = spoiler.strategy.seal

        async def fail():
            raise NodeError("The device is gone.")

        spoiler.strategy.seal = fail
        results = await one_round(members)
        assert {r.status for r in results} == {RoundStatus.DROPPED}
        assert not any(m.work.is_held for m in members), "everybody goes on after a dropped round"
        spoiler.strategy.seal = seal
        for member in members:
            member.averager._patience.forgive()
            member.count(generator, 1)
            member.work.labels = member.work.tokens = 4
        brought = [
            {s: (old[s][0] + new[s][0], 4) if m is not spoiler else new[s] for s in new}
            for m, old, new in zip(members, brought, [m.sums() for m in members], strict=True)
        ]
        before = {s: stage_adapter(s) for s in range(2)}

        results = await one_round(members)

        assert {r.status for r in results} == {RoundStatus.COMMITTED}, results
        means = {}
        for stage in range(2):
            held = [sums[stage] for sums in brought if stage in sums]
            means[stage] = sum(gradient for gradient, _ in held) / sum(weight for _, weight in held)
        norm_sq = sum(float(mean.double().dot(mean.double())) for mean in means.values())
        for stage, adapter in before.items():
            adapter.step(means[stage], norm_sq, 16, RULE.optimizer, learning_rate(RULE.schedule, 0))
            for member in members:
                if stage in member.adapters:
                    torch.testing.assert_close(member.adapters[stage].values, adapter.values, rtol=1e-5, atol=1e-6)


async def test_sums_that_hold_nan_are_discarded_by_their_holder_and_the_next_round_commits(tmp_path):
    generator = torch.Generator().manual_seed(12)
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, DOUBLED, 2)
        for member in members:
            member.count(generator, 2)
            member.work.labels = member.work.tokens = 2
        diverged = members[-1]
        (adapter,) = diverged.adapters.values()
        adapter.gradients[7] = float("nan")

        results = await one_round(members)

        assert {r.status for r in results} == {RoundStatus.DROPPED}
        assert diverged.work.session == "01", "who drives through it does its microbatches again"
        assert not any(member.averager.left_out() for member in members)
        assert {r.status for r in await one_round(members)} == {RoundStatus.COMMITTED}
        assert all(bool(a.values.isfinite().all()) for m in members for a in m.adapters.values())


async def test_a_stage_that_nobody_brings_keeps_the_round_from_opening(tmp_path):
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, {"a": (0, 1), "b": (0, 2)}, 3)
        for member in members:
            member.work.labels = member.work.tokens = 3

        results = await one_round(members)

        assert {r.status for r in results} == {RoundStatus.DROPPED}
        assert members[0].results[-1].reason == "nobody holds stage 2"


async def test_a_holder_in_doubt_is_left_out_and_comes_back_with_a_new_session(tmp_path):
    generator = torch.Generator().manual_seed(10)
    layout = {"a": (0, 2), "b": (0, 2), "c": (0, 2), "d": (0, 0)}
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, layout, 2)
        holders = [m for m in members if m.name != "d"]
        driver = next(m for m in members if m.name == "d")
        doubtful = next(m for m in members[::-1] if m is not driver)
        for member in holders:
            member.count(generator, 2)
        driver.work.labels = driver.work.tokens = 6
        driver.work.doubts = frozenset({(doubtful.id, doubtful.work.session)})

        await one_round(members)

        assert {m.results[-1].status for m in members if m is not doubtful} == {RoundStatus.COMMITTED}
        assert doubtful.id not in members[0].results[-1].members
        assert doubtful.strategy.version == 0

        source = next(m for m in holders if m is not doubtful)
        doubtful.averager.begin_sync()
        states = {stage: adapter.state() for stage, adapter in source.adapters.items()}
        await doubtful.averager.adopt(states, source.strategy.standing, source.averager.lineage)
        assert doubtful.work.session == "02", "dropped when it was left out, and again with the state that it took"
        assert not any(a.weight or a.gradients.any() for a in doubtful.adapters.values())
        assert doubtful.strategy.standing == source.strategy.standing
        for member in holders:
            member.count(generator, 1)
        driver.work.labels = driver.work.tokens = 3

        results = await one_round(members)

        assert {r.status for r in results} == {RoundStatus.COMMITTED}, results
        assert (doubtful.id, "02") in driver.work.ends[-1][0]


async def test_a_leader_in_doubt_drops_its_sums_and_leads_the_next_round(tmp_path):
    generator = torch.Generator().manual_seed(11)
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, {"a": (0, 1), "b": (0, 1), "c": (1, 2)}, 2)
        leader, driver = members[0], members[-1]
        for member in members:
            member.count(generator, 2)
            member.work.labels = member.work.tokens = 2
        driver.work.doubts = frozenset({(leader.id, "00")})

        results = await one_round(members)
        assert {r.status for r in results} == {RoundStatus.DROPPED}

        results = await one_round(members)
        assert {r.status for r in results} == {RoundStatus.COMMITTED}, results
        assert (leader.id, "01") in driver.work.ends[-1][0]


async def test_a_returning_holder_takes_the_lineage_of_the_others_and_keeps_its_older_bits(tmp_path):
    async with AsyncExitStack() as stack:
        (member,) = await swarm(tmp_path, stack, {"a": (0, 1)}, 2)
        bits = member.adapters[0].values.clone()

        member.averager.begin_sync()
        await member.averager.adopt({}, Standing(41, "ab" * 32, 4100), ("r40",))

        assert torch.equal(member.adapters[0].values, bits)
        assert member.adapters[0].version == 41
        standing = member.strategy.standing
        assert (standing.version, standing.base_hash, standing.committed_tokens) == (41, "ab" * 32, 4100)
        assert member.averager.lineage == ("r40",)
        assert member.strategy.shard == Shard(0, 1)
