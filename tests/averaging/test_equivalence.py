"""N replicas end with the adapter that one process makes of the same microbatches, and all hold the same bits."""

import asyncio
import dataclasses
from contextlib import AsyncExitStack

import pytest
import torch
from torch import nn

from node.averaging.gradient import GradientStrategy, LoopWork, Rule
from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings
from node.core.events import EventBus, RoundFinished
from node.core.types import START_HASH, Document, RoundStatus, Standing
from node.data.stream import MicrobatchStream, Packing
from node.network.processes import start_p2p
from node.network.rounds import RoundTransport
from node.training.adapter import StageAdapter
from node.training.engine import Engine
from node.training.loop import TrainingLoop
from node.training.optimizer import AdamWSettings
from node.training.schedule import ScheduleSettings
from node.trust.identity import Identity

pytestmark = pytest.mark.swarm
RUN = "ab" * 32
STEPS = 4
MICROBATCHES = {"a": (3, 1, 2, 4), "b": (1, 2, 5, 1), "c": (2, 2, 1, 3)}
"""How many microbatches each replica brings to each step: uneven on purpose."""


class Toy(nn.Module):
    """A small language model with a loss that is summed, as the real one's; what matters is the arithmetic around it."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = torch.randn(50, 16, generator=generator)
        self.lora = {
            name: nn.Parameter(torch.randn(shape, generator=generator) * 0.2)
            for name, shape in (
                ("model.layers.0.w.lora_A.weight", (8, 16)),
                ("model.layers.0.w.lora_B.weight", (50, 8)),
            )
        }

    def train_microbatch(self, batch, *, dropout_seed):
        a, b = self.lora.values()
        logits = torch.tanh(self.embed[torch.tensor(batch.input_ids)] @ a.t()) @ b.t()
        loss = nn.functional.cross_entropy(
            logits, torch.tensor(batch.labels).long(), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        return float(loss.detach())


def documents(seed):
    from array import array

    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(40):
        length = int(torch.randint(4, 17, (1,), generator=generator))
        ids = torch.randint(0, 50, (length,), generator=generator).tolist()
        labels = [-100, *(x if x % 3 else -100 for x in ids[1:])]
        made.append(Document(array("i", ids), array("i", labels)))
    return made


SETTINGS, SCHEDULE = AdamWSettings(max_grad_norm=0.5, weight_decay=0.01), ScheduleSettings(1e-2, "linear", 1, 20)


def replica(name, events=None):
    engine = Engine()
    model = Toy()
    adapter = StageAdapter(0, model.lora)
    stream = MicrobatchStream(documents(ord(name)), Packing(2, 16, False), seed=1, salt=name)
    loop = TrainingLoop(
        engine=engine,
        model=model,
        adapters=(adapter,),
        stream=stream,
        events=events or EventBus(),
        seed=1,
        peer_id=name,
    )
    strategy = GradientStrategy(
        engine=engine,
        adapters=(adapter,),
        work=LoopWork(loop, adapter),
        rule=Rule(SETTINGS, SCHEDULE),
        standing=Standing(0, START_HASH, 0),
        num_stages=1,
        events=events or EventBus(),
    )
    return engine, adapter, loop, strategy


class Member:
    def __init__(self, name):
        self.name, self.events, self.results = name, EventBus(), []
        self.events.subscribe(lambda e: self.results.append(e.result) if isinstance(e, RoundFinished) else None)
        self.engine, self.adapter, self.loop, self.strategy = replica(name, self.events)

    async def open(self, home, stack, codec):
        identity = Identity.load_or_create(home / "identity.key")
        self.running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
        stack.push_async_callback(self.running.close)
        self.averager = Averager(
            self.strategy,
            RoundTransport(self.running.p2p, fingerprint=RUN),
            AveragerSettings(num_stages=1, codec=codec),
            me=self.running.peer_id,
            events=self.events,
        )
        await self.averager.open()
        stack.push_async_callback(self.averager.close)
        stack.push_async_callback(self.engine.close)
        return self


async def swarm(tmp_path, stack, names, codec="none"):
    members = [await Member(name).open(tmp_path / name, stack, codec) for name in names]
    for member in members:
        for other in members:
            if other is not member:
                await member.running.connect((await other.running.addresses())[0])
    return members


async def one_round(members):
    ids = {m.running.peer_id: m.strategy.shard for m in members}
    for member in members:
        member.averager.saw(ids)
    first = min(members, key=lambda m: m.running.peer_id)
    first.averager.lead(ids, ids, budget_s=10)
    before = [len(m.results) for m in members]
    while any(len(m.results) == n for m, n in zip(members, before, strict=True)):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_replicas_end_where_one_process_with_the_same_microbatches_ends(tmp_path, names):
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, names)
        for step in range(STEPS):
            for member in members:
                for _ in range(MICROBATCHES[member.name][step]):
                    await member.loop.train_one()
            await one_round(members)
        assert [m.results[-1].status for m in members] == [RoundStatus.COMMITTED] * len(members)
        hashes = {m.adapter.digest() for m in members}
        assert len(hashes) == 1, "all replicas hold the same bits"
        assert len({m.strategy.standing for m in members}) == 1
        assert members[0].adapter.version == STEPS
        assert all(m.results[-1].bytes_sent > 0 for m in members)

    alone_engine, alone, _, strategy = replica("a")
    model_loops = [(name, replica(name)) for name in names]
    for step in range(STEPS):
        for name, (_, other, loop, _) in model_loops:
            other.values.copy_(alone.values)  # the single process's weights see every replica's microbatches
            for _ in range(MICROBATCHES[name][step]):
                await loop.train_one()
            alone.gradients.add_(other.gradients)
            alone.count(other.tokens, other.weight)
            other.discard()
        sealed = alone.seal()
        from node.averaging.reduce import squared_norm
        from node.averaging.strategy import Mean

        mean = sealed.gradient / sealed.weight
        await strategy.apply(Mean({0: mean}, squared_norm(mean), sealed.tokens, "0b"))
    for engine in [alone_engine, *(parts[0] for _, parts in model_loops)]:
        await engine.close()

    torch.testing.assert_close(members[0].adapter.values, alone.values, rtol=1e-5, atol=1e-6)
    assert float((alone.values - replica("a")[1].values).abs().max()) > 1e-2, "the steps moved the adapter"


async def test_a_lossy_codec_still_leaves_the_same_bits_everywhere(tmp_path):
    async with AsyncExitStack() as stack:
        members = await swarm(tmp_path, stack, "abc", codec="bf16")
        for _ in range(2):
            for member in members:
                await member.loop.train_one()
            await one_round(members)
        assert len({m.adapter.digest() for m in members}) == 1
        assert members[0].adapter.version == 2


async def test_a_replica_with_other_bits_is_refused_and_told_to_sync(tmp_path):
    async with AsyncExitStack() as stack:
        a, b = sorted(await swarm(tmp_path, stack, "ab"), key=lambda m: m.running.peer_id)
        await a.loop.train_one()
        await b.loop.train_one()
        b.adapter.values[0] += 1.0
        b.adapter._digest = None
        b.strategy.standing = b.strategy._stand(b.strategy.standing)
        b.averager._state = dataclasses.replace(b.averager._state, standing=b.strategy.standing)
        before = a.adapter.digest()

        await asyncio.wait_for(asyncio.gather(one_round_of(a, b)), 20)

        assert a.results[-1].status is RoundStatus.DROPPED
        assert a.adapter.digest() == before, "nothing was averaged with other bits"
        assert a.averager.pending_tokens > 0, "and nothing was lost"


async def one_round_of(leader, other):
    ids = {m.running.peer_id: m.strategy.shard for m in (leader, other)}
    leader.averager.saw(ids)
    other.averager.saw(ids)
    leader.averager.lead(ids, ids, budget_s=5)
    while not leader.results:
        await asyncio.sleep(0.01)
