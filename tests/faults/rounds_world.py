"""A few nodes with real p2p daemons in one process, a round with one fault among them, and what must hold afterwards.

Their "adapter" counts: microbatch m adds one at coordinate m of the gradient, with a weight of one. So the mean times
the weight says how often each microbatch is in a round, and nothing can be lost or counted twice unseen.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from faults.injector import Injector, injected
from faults.protocol import protocol_steps
from faults.rounds import ALONE_ASTRAY, UNSEEN, Cell
from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings, Prepared, SealedStages
from node.core.events import EventBus, Fault, RoundFinished
from node.core.types import START_HASH, RoundStatus, Shard, Standing
from node.network.processes import RunningP2P, start_p2p
from node.network.rounds import RoundTransport
from node.training.adapter import SealedGradient
from node.trust.identity import Identity

BUDGET_S = 1.5
LATE_S = 2.0
"""A round ends by its deadline and this."""
NUM_VALUES = 3001
BATCHES_EACH = 3


class Counts:
    """The strategy of a run of one stage whose gradients count microbatches."""

    def __init__(self, num_values: int = NUM_VALUES) -> None:
        self.counts, self.gradient, self.tokens = torch.zeros(num_values), torch.zeros(num_values), 0
        self.shard, self.session, self.sizes = Shard(0, 1), "5e", {0: num_values}
        self.standing = Standing(0, START_HASH, 0, self.hashes())

    def hashes(self):
        return ((0, hashlib.sha256(self.counts.numpy().tobytes()).hexdigest()[:16]),)

    def train(self, batches):
        for batch in batches:
            self.gradient[batch] += 1.0
            self.tokens += 1

    async def prepare(self):
        gradient, tokens = self.gradient, self.tokens
        self.gradient, self.tokens = torch.zeros_like(gradient), 0
        sealed = SealedGradient(self.standing.version, "", gradient, weight=tokens, tokens=tokens)
        return Prepared(tokens, tokens, sealed=SealedStages({0: sealed}, tokens, tokens))

    async def seal(self):
        raise AssertionError("sealed at the call")

    async def apply(self, mean):
        self.counts += torch.round(mean.by_stage[0] * mean.tokens)
        old = self.standing
        self.standing = Standing(old.version + 1, mean.base_hash, old.committed_tokens + mean.tokens, self.hashes())
        return self.standing

    async def adopt(self, states, standing):
        self.counts = states[0].clone()
        self.standing = replace(standing, hashes=self.hashes())
        return self.standing

    async def reset(self):
        self.gradient, self.tokens = torch.zeros_like(self.gradient), 0

    def ended(self, shares, *, committed):
        pass


class Node:
    """One node of a cell: a fresh averager over a daemon that lives longer."""

    def __init__(self, running: RunningP2P, run: str, *, num_values: int = NUM_VALUES) -> None:
        self.id, self.daemon = running.peer_id, running.pid
        self.strategy, self.events, self.results, self.told = Counts(num_values), EventBus(), [], []
        self.events.subscribe(self._note)
        self.transport = RoundTransport(running.p2p, fingerprint=run)
        self.averager = Averager(
            self.strategy, self.transport, AveragerSettings(1, "none"), me=self.id, events=self.events
        )

    def _note(self, event):
        if isinstance(event, RoundFinished):
            self.results.append((time.monotonic(), event.result))
        elif isinstance(event, Fault):
            self.told.append(event)

    def owns(self, this: object) -> bool:
        """Whether a step is one of this node's."""
        return this in (self.transport, self.averager, self.averager._streams) or getattr(this, "me", "") == self.id

    async def follow(self, other: Node) -> None:
        """Go where another node is, as syncing does."""
        self.averager.begin_sync()
        await self.averager.adopt({0: other.strategy.counts}, other.strategy.standing, other.averager.lineage)


async def daemons(folder: Path, stack: AsyncExitStack, size: int) -> list[RunningP2P]:
    """Start p2p daemons that know each other, in the order of their ids."""
    found = []
    for number in range(size):
        home = folder / f"d{number}"
        identity = Identity.load_or_create(home / "identity.key")
        running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
        stack.push_async_callback(running.close)
        for other in found:
            await running.connect((await other.addresses())[0])
        found.append(running)
    return sorted(found, key=lambda running: running.peer_id)


@dataclass
class World:
    """The nodes of one cell, in the order of their ids; the first one leads."""

    nodes: list[Node]
    faulty: Node
    injector: Injector | None = None
    outcome: str = ""
    """How the round with the fault ended for the honest nodes: `dropped`, `committed`, or `committed without one` (of
    the honest ones by a leader that did not reach it, or the faulty one)."""

    @property
    def honest(self) -> list[Node]:
        """All but the faulty one."""
        return [node for node in self.nodes if node is not self.faulty]

    async def call(self, leader: Node, called: Sequence[Node], budget_s: float = BUDGET_S) -> float:
        """Let a node call a round; return when it did."""
        everybody = dict.fromkeys((node.id for node in self.nodes), leader.strategy.shard)
        for node in self.nodes:
            node.averager.saw(everybody)
        leader.averager.lead({node.id for node in called}, everybody, budget_s=budget_s)
        return time.monotonic()

    async def all_at_rest(self, nodes: Sequence[Node], until_s: float) -> None:
        """Wait until each of these has ended its round; raise if one has not in time."""
        for node in nodes:
            timeout = max(0.0, until_s - time.monotonic())
            try:
                await asyncio.wait_for(node.averager.until_idle(), timeout)
            except TimeoutError:
                raise AssertionError(f"a round hangs in {node.averager._state.phase}") from None


async def run_cell(cell: Cell, running: Sequence[RunningP2P], run: str) -> World:
    """Do one round with a fault and one without; raise AssertionError if something does not hold.

    Args:
        cell: What strikes.
        running: One daemon a node.
        run: A name that no other cell uses, hex.
    """
    nodes = [Node(one, run) for one in running]
    world = World(nodes, nodes[0] if cell.role == "leader" else nodes[-1])
    strikes = [] if cell.strike is None else [replace(cell.strike, where=world.faulty.owns)]
    with injected(*strikes, protocol_steps()) as injector:
        world.injector = injector
        try:
            for node in nodes:
                await node.averager.open()
            await _round_with_fault(cell, world)
            await _round_after(cell, world)
        finally:
            await asyncio.gather(*(node.averager.close() for node in nodes))
    return world


async def _round_with_fault(cell: Cell, world: World) -> None:
    for number, node in enumerate(world.nodes):
        node.strategy.train(range(number * BATCHES_EACH, (number + 1) * BATCHES_EACH))
    if cell.strike is None:
        world.faulty.strategy.gradient[-1] = float("nan")

    began = await world.call(world.nodes[0], world.nodes)
    await asyncio.sleep(0.05)
    if world.faulty is world.nodes[0]:  # a call that is lost is no round for whoever did not hear it
        await world.all_at_rest([world.faulty], began + BUDGET_S + LATE_S)
    await world.all_at_rest(world.honest, began + BUDGET_S + LATE_S)

    assert cell.strike is None or world.injector.struck, "the fault did not strike"
    ends = {node.id: node.results[-1][1].status if node.results else None for node in world.honest}
    stepped = [node for node in world.nodes if node.strategy.standing.version]
    if cell.key in ALONE_ASTRAY:
        stepped = [node for node in stepped if node is not world.faulty]
    assert len({node.strategy.standing for node in stepped}) <= 1, "different bits after one round"
    # whom the call or the opening did not reach is no member, and still has what it would have brought
    members = {peer for node in stepped for peer in node.results[-1][1].members}
    absent = [node for node in world.honest if stepped and node.id not in members]
    assert world.faulty is world.nodes[0] or not absent, "an honest node was left out"
    assert not any(node.strategy.standing.version for node in absent), "stepped without being a member"
    honest_steps = {node.strategy.standing.version for node in world.honest if node not in absent}
    assert len(honest_steps) <= 1, f"committed on some and not on others: {ends}"
    is_whole = len(members) == len(world.nodes)
    world.outcome = "dropped" if not any(honest_steps) else "committed" if is_whole else "committed without one"
    for node in world.honest:
        assert bool(node.strategy.counts.isfinite().all()), "NaN came into the adapter"
        blamed = node.averager.left_out() - {world.faulty.id}
        assert not blamed, "an honest peer is left out"


async def _round_after(cell: Cell, world: World) -> None:
    """Whoever fell behind fetches the state; then the honest ones go on, with the faulty one if it is not left out."""
    await asyncio.wait_for(world.faulty.averager.until_idle(), BUDGET_S + LATE_S)
    leader = min(world.honest, key=lambda node: node.id)
    best = leader
    for node in world.nodes:
        if node.strategy.standing.is_heavier_than(best.strategy.standing) and cell.key not in ALONE_ASTRAY:
            best = node
    for node in world.nodes:
        if not node.strategy.standing.shares_bits_with(best.strategy.standing):
            await node.follow(best)
        else:
            node.averager.give_up_sync()
    for number, node in enumerate(world.honest):
        node.strategy.train([100 + number])
    before = [len(node.results) for node in world.honest]
    called = [node for node in world.nodes if node.id not in leader.averager.left_out()]

    began = await world.call(leader, called)
    while any(len(n.results) == was for n, was in zip(world.honest, before, strict=True)):
        assert time.monotonic() < began + BUDGET_S + LATE_S, "the round after hangs"
        await asyncio.sleep(0.01)

    ends = {node.id[-4:]: node.results[-1][1] for node in world.honest}
    assert {end.status for end in ends.values()} == {RoundStatus.COMMITTED}, f"the round after did not commit: {ends}"
    assert len({node.strategy.standing for node in world.honest}) == 1, "different bits after the round after"
    if cell.key in UNSEEN:
        return
    numbers = [number for number, node in enumerate(world.nodes) if node is not world.faulty]
    mine = [number * BATCHES_EACH + i for number in numbers for i in range(BATCHES_EACH)]
    mine += [100 + number for number in range(len(world.honest))]
    for node in world.honest:
        counted = [int(node.strategy.counts[batch]) for batch in mine]
        assert set(counted) == {1}, f"a microbatch was lost or counted twice: {counted}"
