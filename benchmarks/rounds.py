"""How long is an averaging round, beside hivemind's own averager and beside the time that its bytes need?

Every member is a process of its own on loopback. In each of them stand our averager and hivemind's
`DecentralizedAverager` (group size fixed to the number of members, so that its matchmaking ends as soon as all are
there); they take turns, so that whatever else the machine does falls on both alike. Times are from the call until
the last member has the result.

    python benchmarks/rounds.py [--members 2 3] [--megabytes 1 5 20] [--rounds 9]
"""

import argparse
import asyncio
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hivemind import DHT, DecentralizedAverager

from node.averaging.round import Averager
from node.averaging.strategy import AveragerSettings
from node.core.events import EventBus, RoundFinished
from node.core.round_messages import Standing
from node.network.processes import start_p2p
from node.network.rounds import RoundTransport
from node.training.adapter import SealedGradient
from node.trust.identity import Identity

STREAM_BYTES_PER_S = 260e6
"""One libp2p stream on loopback on the machine that the goal was set on."""
ALLOWED_FACTOR, ALLOWED_S = 1.5, 0.1
_context = multiprocessing.get_context("forkserver")


class BareStrategy:
    """Seals the same random numbers each time and steps by counting: the round itself and nothing else."""

    def __init__(self, num_values):
        self.gradient = torch.randn(num_values)
        self.standing = Standing(0, "00", 0)

    async def seal(self):
        standing = self.standing
        return SealedGradient(standing.version, standing.base_hash, self.gradient, weight=100, tokens=100)

    async def apply(self, mean):
        version = self.standing.version + 1
        self.standing = Standing(version, f"{version:04x}", self.standing.committed_tokens + mean.tokens)
        return self.standing


def member(pipe, home, num_values, size):
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # hivemind forks its processes and knows no other way
    initial = pipe.recv()
    dht = DHT(initial_peers=initial, start=True)
    pipe.send([str(address) for address in dht.get_visible_maddrs()])
    theirs = DecentralizedAverager(
        [torch.randn(num_values)],
        dht,
        prefix="benchmark",
        target_group_size=size,
        min_matchmaking_time=1.0,
        request_timeout=0.5,
        allreduce_timeout=30,
        next_chunk_timeout=10,
        start=True,
    )
    try:
        asyncio.run(serve(pipe, Path(home), num_values, theirs))
    finally:
        theirs.shutdown()
        dht.shutdown()


async def serve(pipe, home, num_values, theirs):
    identity = Identity.load_or_create(home / "identity.key")
    running = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
    events, ended = EventBus(), asyncio.Queue()
    events.subscribe(lambda e: ended.put_nowait((time.time(), e.result)) if isinstance(e, RoundFinished) else None)
    averager = Averager(
        BareStrategy(num_values),
        RoundTransport(running.p2p, fingerprint="cd" * 32, stage=0),
        AveragerSettings(stage=0, num_values=num_values, codec="none"),
        me=running.peer_id,
        events=events,
    )
    await averager.open()
    pipe.send((running.peer_id, (await running.addresses())[0]))
    for address in await asyncio.to_thread(pipe.recv):
        await running.connect(address)
    pipe.send("connected")
    while (command := await asyncio.to_thread(pipe.recv)) != "end":
        if command == "theirs":
            group = await asyncio.to_thread(theirs.step, timeout=60)
            pipe.send((time.time(), group is not None))
        else:
            members, is_leader = command
            if is_leader:
                averager.lead(members, members, budget_s=60.0)
            at, result = await ended.get()
            pipe.send((at, result.status.value == "committed"))
    await averager.close()
    await running.close()


def receive(pipe):
    if not pipe.poll(60):
        raise TimeoutError("a member does not answer")
    return pipe.recv()


def measure(num_members, num_values, num_rounds):
    """Return the seconds of our rounds and of hivemind's."""
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for index in range(num_members):
            home = Path(folder, str(index))
            home.mkdir()
            pipe, child = _context.Pipe()
            process = _context.Process(target=member, args=(child, str(home), num_values, num_members))
            process.start()
            pipes.append(pipe)
            processes.append(process)
        try:
            addresses = []
            for pipe in pipes:
                pipe.send(addresses[:1] and addresses[0])
                addresses.append(receive(pipe))
            peers = [receive(pipe) for pipe in pipes]
            for index, pipe in enumerate(pipes):
                pipe.send([address for _, address in peers[:index]])
                receive(pipe)
            ids = frozenset(peer for peer, _ in peers)
            return alternate(pipes, [peer for peer, _ in peers], ids, num_rounds)
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)


def alternate(pipes, order, ids, num_rounds):
    ours, theirs = [], []
    for turn in range(num_rounds + 1):
        for name, times in (("ours", ours), ("theirs", theirs)):
            started = time.time()
            for pipe, peer in zip(pipes, order, strict=True):
                pipe.send("theirs" if name == "theirs" else (ids, peer == min(ids)))
            ends = [receive(pipe) for pipe in pipes]
            if not all(ok for _, ok in ends):
                print(f"  a round of {name} failed")
            elif turn:  # the first ones open connections
                times.append(max(at for at, _ in ends) - started)
    for pipe in pipes:
        pipe.send("end")
    return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 5, 20])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    _context.set_forkserver_preload(["torch", "hivemind"])
    print("members  payload   ours p50   hivemind p50   ours/hivemind   bytes' time   ours/(1.5 x bytes' time + 0.1 s)")
    for num_members in arguments.members:
        for megabytes in arguments.megabytes:
            num_values = int(megabytes * 1e6 / 4)
            ours, theirs = measure(num_members, num_values, arguments.rounds)
            mine, other = statistics.median(ours), statistics.median(theirs)
            ideal = 2 * (num_members - 1) / num_members * num_values * 4 / STREAM_BYTES_PER_S
            allowed = ALLOWED_FACTOR * ideal + ALLOWED_S
            print(
                f"{num_members:7d}  {megabytes:4g} MB   {mine:6.3f} s   {other:10.3f} s   {mine / other:13.2f}"
                f"   {ideal:9.3f} s   {mine / allowed:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
