"""One member of a swarm as a process of its own, driven over a pipe: the real averager over real p2p streams.

Its "adapter" counts: microbatch m adds one at coordinate m of the gradient, with a weight of one. So the mean times
the weight says how often each microbatch is in a round, and nothing can be lost or counted twice unseen.
"""

import asyncio
import hashlib
import os
import signal
import time
from pathlib import Path

import torch

from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings, Prepared, SealedStages
from node.core.errors import NoPeerReachable
from node.core.events import EventBus, RoundFinished
from node.core.types import START_HASH, Shard, Standing
from node.network.processes import start_p2p
from node.network.rounds import RoundTransport
from node.training.adapter import SealedGradient
from node.trust.identity import Identity

NUM_VALUES = 300_001


def coordinate(batch: int) -> int:
    return (batch * 7919) % NUM_VALUES


class CountingStrategy:
    def __init__(self, num_values=NUM_VALUES):
        self.counts = torch.zeros(num_values)
        self.gradient = torch.zeros(num_values)
        self.tokens = 0
        self.shard, self.session, self.sizes = Shard(0, 1), "5e", {0: num_values}
        self.standing = Standing(0, START_HASH, 0, self.hashes())
        self.norms = []

    def hashes(self):
        return ((0, hashlib.sha256(self.counts.numpy().tobytes()).hexdigest()[:16]),)

    def train(self, batches):
        for batch in batches:
            self.gradient[coordinate(batch) % len(self.gradient)] += 1.0
            self.tokens += 1

    async def prepare(self):
        gradient, tokens = self.gradient, self.tokens
        self.gradient, self.tokens = torch.zeros_like(gradient), 0
        sealed = SealedGradient(self.standing.version, "", gradient, weight=tokens, tokens=tokens)
        return Prepared(tokens, tokens, sealed=SealedStages({0: sealed}, tokens, tokens))

    async def apply(self, mean):
        self.counts += torch.round(mean.by_stage[0] * mean.tokens)
        self.norms.append(mean.norm_sq)
        old = self.standing
        tokens = old.committed_tokens + mean.tokens
        self.standing = Standing(old.version + 1, mean.base_hash, tokens, self.hashes())
        return self.standing

    def ended(self, shares, *, committed):
        pass


class Trap:
    """Kills or stops this process when the averager comes to a named point for the n-th time."""

    def __init__(self):
        self.point, self.left, self.delay_s, self.signal = "", 0, 0.0, signal.SIGKILL

    async def __call__(self, point):
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                await asyncio.sleep(self.delay_s)
                os.kill(os.getpid(), self.signal)


async def serve(pipe, home, codec, num_values):
    identity = Identity.load_or_create(Path(home) / "identity.key")
    running = await start_p2p(Path(home), identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
    strategy, trap, events = CountingStrategy(num_values), Trap(), EventBus()
    transport = RoundTransport(running.p2p, fingerprint="ab" * 32)
    settings = AveragerSettings(num_stages=1, codec=codec)
    averager = Averager(strategy, transport, settings, me=running.peer_id, events=events, hook=trap)
    ended = []
    events.subscribe(
        lambda event: ended.append((time.time(), event.result)) if isinstance(event, RoundFinished) else None
    )
    await averager.open()
    pipe.send((running.peer_id, (await running.addresses())[0], running.pid))
    while True:
        command, *arguments = await asyncio.to_thread(pipe.recv)
        reply = None
        match command:
            case "connect":
                for address in arguments:
                    try:
                        await running.connect(address)
                    except NoPeerReachable:  # both dialled at once, and each took the other's greeting for an answer
                        await asyncio.sleep(0.2)
                        await running.connect(address)
            case "train":
                strategy.train(arguments[0])
            case "trap":
                trap.point, trap.left, trap.delay_s, trap.signal = arguments
            case "saw":
                averager.saw(dict.fromkeys(arguments[0], strategy.shard))
            case "lead":
                members, alive, budget_s = arguments
                averager.lead(members, dict.fromkeys(alive, strategy.shard), budget_s=budget_s)
            case "ended":  # wait until `count` rounds have ended here
                count, until = arguments
                while len(ended) < count and time.time() < until:
                    await asyncio.sleep(0.005)
                reply = list(ended)
            case "look":
                await averager.until_idle()
                counted = [int(strategy.counts[coordinate(batch)]) for batch in arguments[0]]
                reply = (strategy.standing, counted, averager.pending_tokens + strategy.tokens, averager.dead)
            case "close":
                await averager.close()
                await running.close()
                pipe.send(None)
                return
        pipe.send(reply)


def main(pipe, home, codec="none", num_values=NUM_VALUES):
    torch.set_num_threads(1)
    asyncio.run(serve(pipe, home, codec, num_values))
