"""Small pipelines of real nodes in one process: real libp2p daemons, a tiny random model, one engine each."""

import asyncio
import contextlib
import dataclasses
import random
import sys
import time
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "model"))

from reference import LORA, loaded

from node.core.events import EventBus
from node.core.types import Document, LayerRange, Peer, PeerState, Shard, StagePlan, SwarmView
from node.data.stream import MicrobatchStream, Packing
from node.network.processes import start_p2p
from node.pipeline.parts import Cut, Surroundings, build_pipeline
from node.training.engine import Engine, Priority
from node.training.stage import split_adapters
from node.trust.identity import Identity

RUN = "ab" * 32
BASE = "0123456789abcdef"
PLAN = StagePlan.even(6, 3)
PACKING = Packing(2, 48, sample_packing=False)


def documents(seed, count=8):
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [rng.randrange(3, 160) for _ in range(rng.randrange(20, 48))]
        made.append(Document(array("i", ids), array("i", [-100, *ids[1:]])))
    return made


class Node:
    """One node of a test's swarm."""

    def __init__(self, swarm, name, held, *, drives, spec, wire, codec, max_in_flight):
        self.swarm, self.name, self.held, self.drives = swarm, name, held, drives
        self.engine = Engine(num_threads=1, name=name)
        layers = held.layers(PLAN) or LayerRange(0, 1)
        self.shard = loaded(swarm.folder, layers=layers, ends=drives, **spec)
        self.adapters = split_adapters(self.shard, held.stages, PLAN)
        self.events = []
        self.bus = EventBus()
        self.bus.subscribe(self.events.append)
        self.state, self.version, self.is_visible = PeerState.TRAINING, 0, True
        self.wire, self.codec, self.max_in_flight = wire, codec, max_in_flight
        self.reset_calls = 0

    async def start(self, stack, folder):
        identity = Identity.load_or_create(folder / self.name / "identity.key")
        self.running = await start_p2p(folder / self.name, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
        stack.push_async_callback(self.running.close)
        stack.push_async_callback(self.engine.close)
        stream = MicrobatchStream(documents(self.name), PACKING, seed=1, salt=self.name) if self.drives else None
        self.pipeline = build_pipeline(
            around=Surroundings(
                me=self.running.peer_id,
                running=self.running,
                fingerprint=RUN,
                view=lambda: self.swarm.view(self.running.peer_id),
                standing=lambda: (self.version, BASE),
                not_ready=lambda: "" if self.state is PeerState.TRAINING else self.state.value,
                reset=self.reset,
                events=self.bus,
            ),
            cut=Cut(PLAN, self.held, self.codec, self.wire),
            shard=self.shard,
            adapters=self.adapters,
            engine=self.engine,
            stream=stream,
            salt=f"1:{self.name}",
            max_in_flight=self.max_in_flight,
            max_graphs=4,
        )
        await self.pipeline.open()

    async def reset(self, session):
        self.reset_calls += 1
        if session == self.pipeline.runner.session:
            await self.forget()
        return True

    async def forget(self):
        """Lose the sums, as a restart does."""

        def work():
            for adapter in self.adapters.values():
                adapter.discard()
            self.pipeline.runner.new_session()

        await self.engine.run(Priority.BACKWARD, work)

    @property
    def peer(self):
        return self.running.peer_id

    @property
    def driver(self):
        return self.pipeline.driver

    def of(self, kind):
        return [event for event in self.events if type(event).__name__ == kind]


class Swarm:
    """Some nodes that see each other."""

    def __init__(self, folder, root):
        self.folder, self.root = folder, root
        self.nodes = {}
        self.tasks = {}

    def view(self, me):
        shown = [n for n in self.nodes.values() if n.is_visible or n.peer == me]
        return SwarmView(me, tuple(self._peer(node) for node in shown))

    def _peer(self, node):
        return Peer(
            peer_id=node.peer,
            name=node.name,
            addresses=(),
            shard=node.held,
            session=node.pipeline.runner.session,
            drives=node.drives,
            state=node.state,
            loss=None,
            tokens_given=0,
            progress=None,
            expires_at_s=time.time() + 20,
        )

    async def add(self, stack, name, first, stop, *, drives=False, wire="star", codec="none", max_in_flight=4, **spec):
        node = Node(
            self,
            name,
            Shard(first, stop),
            drives=drives,
            spec=spec,
            wire=wire,
            codec=codec,
            max_in_flight=max_in_flight,
        )
        await node.start(stack, self.root)
        for other in self.nodes.values():
            await node.running.connect((await other.running.addresses())[0])
        self.nodes[name] = node
        return node

    def drive(self, name):
        """Let a node drive until `rest`."""
        driver = self.nodes[name].driver
        self.tasks[name] = asyncio.create_task(driver.run(backlog_tokens=lambda: 1 << 30))

    async def until_done(self, name, count, timeout_s=60):
        """Wait until a node's driver has finished so many microbatches, then bring it to a rest."""
        node = self.nodes[name]
        async with asyncio.timeout(timeout_s):
            while len(node.of("MicrobatchDone")) < count:
                if self.tasks[name].done():
                    self.tasks[name].result()
                await asyncio.sleep(0.02)
            return await node.driver.hold()

    async def stop(self):
        for task in self.tasks.values():
            task.cancel()
        for task in self.tasks.values():
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def gradients(self, *names):
        """Return the accumulated gradients of some nodes, added up by parameter."""
        total = {}
        for name in names or self.nodes:
            for adapter in self.nodes[name].adapters.values():
                for key, view in adapter.layout.views(adapter.gradients).items():
                    total[key] = total[key] + view if key in total else view.clone()
        return total

    def counted(self, stage):
        """Return tokens and labels that the holders of a stage have counted together."""
        held = [node.adapters[stage] for node in self.nodes.values() if stage in node.adapters]
        return sum(a.tokens for a in held), sum(a.weight for a in held)


HARD = {"lora": dataclasses.replace(LORA, dropout=0.2), "gradient_checkpointing": True}
