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
from node.averaging.strategy import AveragerSettings
from node.core.errors import NoPeerReachable
from node.core.events import EventBus, RoundFinished
from node.core.round_messages import Standing
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
        self.standing = Standing(0, self.digest(), 0)
        self.norms = []

    def digest(self):
        return hashlib.sha256(self.counts.numpy().tobytes()).hexdigest()

    def train(self, batches):
        for batch in batches:
            self.gradient[coordinate(batch) % len(self.gradient)] += 1.0
            self.tokens += 1

    async def seal(self):
        sealed = SealedGradient(
            self.standing.version, self.standing.base_hash, self.gradient, weight=self.tokens, tokens=self.tokens
        )
        self.gradient, self.tokens = torch.zeros_like(self.gradient), 0
        return sealed

    async def apply(self, mean):
        self.counts += torch.round(mean.values * mean.tokens)
        self.norms.append(mean.norm_sq)
        old = self.standing
        self.standing = Standing(old.version + 1, self.digest(), old.committed_tokens + mean.tokens)
        return self.standing

    async def adopt(self, state):
        self.counts, version, tokens = state
        self.standing = Standing(version, self.digest(), tokens)
        return self.standing


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
    transport = RoundTransport(running.p2p, fingerprint="ab" * 32, stage=0)
    settings = AveragerSettings(stage=0, num_values=num_values, codec=codec)
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
                averager.saw(arguments[0])
            case "lead":
                members, alive, budget_s = arguments
                averager.lead(members, alive, budget_s=budget_s)
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
