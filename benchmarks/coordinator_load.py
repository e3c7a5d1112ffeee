"""What do many nodes cost a coordinator, and what do they wait, beside a gRPC server that does nothing?

Light nodes (no model, no data, no network daemon) join, watch their run and heartbeat as real ones do: signed, over
TLS, a record of a real one's size, one connection each. They stand in this process; the coordinator and the bare
`grpc.aio` server, which answers the same bytes over the same TLS without looking at them, in one each. Every node
calls both in turn, so that whatever else the machine does falls on both alike. Then one node floods the coordinator.

    python benchmarks/coordinator_load.py [--nodes 200] [--runs 20] [--seconds 60]
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import psutil

from coordinator.address import CoordinatorAddress
from coordinator.client import CoordinatorClient, CoordinatorRefused, CoordinatorUnavailable
from coordinator.server import Settings, serving
from coordinator.tls import Certificate
from coordinator.v1 import coordinator_pb2 as pb
from node.trust.identity import Identity

RECORD = os.urandom(900)
"""As long as a node's signed announcement."""
FLOOD_S = 15.0


def serve(folder: Path, port: multiprocessing.Queue) -> None:
    """Be the coordinator."""

    async def run() -> None:
        async with serving(Settings(folder, "127.0.0.1", 0), lambda _: None) as here:
            port.put(str(here.address))
            await asyncio.Event().wait()

    asyncio.run(run())


def serve_bare(folder: Path, port: multiprocessing.Queue) -> None:
    """Answer every heartbeat with the same bytes."""
    answer = pb.HeartbeatResponse(next_in_s=1, is_known=True).SerializeToString()

    async def reply(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return answer

    async def run() -> None:
        server = grpc.aio.server()
        handlers = {"Heartbeat": grpc.unary_unary_rpc_method_handler(reply)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("coordinator.v1.Coordinator", handlers)])
        own = Certificate.load_or_create(folder)
        at = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(own.key, own.chain)]))
        await server.start()
        port.put(str(CoordinatorAddress("127.0.0.1", at, "0" * 32, own.sha256)))
        await asyncio.Event().wait()

    asyncio.run(run())


@dataclass
class LightNode:
    """One node, and how long its calls took."""

    name: str
    fingerprint: str
    identity: Identity
    client: CoordinatorClient
    bare: CoordinatorClient
    waits_s: list[float] = field(default_factory=list)
    bare_waits_s: list[float] = field(default_factory=list)
    num_told: int = 0
    version: int = 0

    async def live(self) -> None:
        """Join, watch and heartbeat until cancelled."""
        run = pb.Run(fingerprint=self.fingerprint, sealed=b"signed elsewhere", name=self.fingerprint[:6])
        run.base_model, run.num_stages, run.num_layers = "org/model", 4, 32
        run.max_steps, run.target_batch_tokens = 1000, 1 << 30
        joined = await self.client.join(pb.JoinRequest(fingerprint=self.fingerprint, run=run, capacity_stages=4))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch())
            group.create_task(self.beat_on(joined.heartbeat_every_s))

    async def watch(self) -> None:
        """Count what the run's watchers are told."""
        async for _ in self.client.watch(self.fingerprint):
            self.num_told += 1

    async def beat_on(self, every_s: float) -> None:
        """Call the coordinator, and then the bare server, again and again."""
        while True:
            started = time.perf_counter()
            reply = await self.client.heartbeat(self.facts())
            between = time.perf_counter()
            await self.bare.heartbeat(self.facts())
            self.waits_s.append(between - started)
            self.bare_waits_s.append(time.perf_counter() - between)
            every_s = reply.next_in_s
            await asyncio.sleep(max(0.0, every_s - (time.perf_counter() - started)))

    def facts(self) -> pb.HeartbeatRequest:
        """Return what the node says of itself; its tokens grow."""
        self.version += 1
        facts = pb.Facts(name=self.name, state="training", stop_stage=4, capacity_stages=4, drives=True)
        facts.base_hash, facts.tokens, facts.tokens_per_s, facts.loss = "ab", self.version, 100.0, 2.5
        facts.addresses.append(f"/ip4/10.0.0.1/tcp/4040/p2p/{self.identity.peer_id}")
        return pb.HeartbeatRequest(fingerprint=self.fingerprint, record=RECORD, facts=facts)


async def flood(node: LightNode, until: float) -> tuple[int, int]:
    """Call as fast as it goes; return how many calls were taken and refused."""
    taken = refused = 0
    while time.monotonic() < until:
        try:
            await node.client.heartbeat(node.facts())
            taken += 1
        except (CoordinatorRefused, CoordinatorUnavailable):
            refused += 1
    return taken, refused


def percentile_ms(values: list[float], percent: int) -> float:
    """Return a percentile of seconds, in milliseconds."""
    return statistics.quantiles(values, n=100)[percent - 1] * 1e3


def told(what: str, nodes: list[LightNode]) -> None:
    """Print what the calls of a period took, and forget them."""
    ours = [wait for node in nodes for wait in node.waits_s]
    bare = [wait for node in nodes for wait in node.bare_waits_s]
    for name, waits in (("coordinator", ours), ("bare grpc.aio", bare)):
        print(f"{what:12} {name:14} p50 {percentile_ms(waits, 50):6.1f} ms  p99 {percentile_ms(waits, 99):6.1f} ms")
    print(f"{what:12} ratio of the means, coordinator to bare: {statistics.mean(ours) / statistics.mean(bare):.2f}")
    for node in nodes:
        node.waits_s, node.bare_waits_s = [], []


def cpu_s(process: psutil.Process) -> float:
    """Return the seconds of a core that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


async def load(arguments: argparse.Namespace, folder: Path, address: str, bare: str, pids: tuple[int, int]) -> None:
    """Let the nodes live, and print what they and the coordinator saw."""
    coordinator, bare_server = map(psutil.Process, pids)
    empty_mb = coordinator.memory_info().rss / 1e6
    where, nothing = CoordinatorAddress.parse(address), CoordinatorAddress.parse(bare)
    nodes = []
    for index in range(arguments.nodes):
        identity = await asyncio.to_thread(Identity.load_or_create, folder / f"{index}.key")
        run = f"{index % arguments.runs:064x}"
        clients = (CoordinatorClient(where, identity), CoordinatorClient(nothing, identity))
        nodes.append(LightNode(f"n{index}", run, identity, *clients))
    lives = []
    for node in nodes:
        lives.append(asyncio.create_task(node.live()))
        await asyncio.sleep(0.02)
    await asyncio.sleep(5)
    for node in nodes:
        node.waits_s, node.bare_waits_s, node.num_told = [], [], 0

    before, bare_before, started = cpu_s(coordinator), cpu_s(bare_server), time.monotonic()
    await asyncio.sleep(arguments.seconds)
    used, bare_used = cpu_s(coordinator) - before, cpu_s(bare_server) - bare_before
    took = time.monotonic() - started
    print(f"{arguments.nodes} nodes in {arguments.runs} runs for {took:.0f} s")
    told("heartbeat", nodes)
    node_hours = took / 3600 * len(nodes)
    print(f"CPU: coordinator {used / node_hours:.2f}, bare grpc.aio {bare_used / node_hours:.2f} s per node-hour")
    print(f"memory: {coordinator.memory_info().rss / 1e6:.0f} MB, {empty_mb:.0f} MB without nodes")
    print(f"told a node: {sum(node.num_told for node in nodes) / len(nodes) / took:.2f} changes/s")
    before, started = cpu_s(coordinator), time.monotonic()
    taken, refused = await flood(nodes[0], time.monotonic() + FLOOD_S)
    cores = (cpu_s(coordinator) - before) / (time.monotonic() - started)
    told("under flood", nodes[1:])
    print(f"the flooder: {taken} calls taken, {refused} refused; the coordinator used {cores:.0%} of a core")
    broken = [life.exception() for life in lives[1:] if life.done() and not life.cancelled()]
    print(f"other nodes that failed: {len(broken)}{f' ({broken[0]!r})' if broken else ''}")
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)
    with contextlib.suppress(OSError):
        await asyncio.gather(*(client.close() for node in nodes for client in (node.client, node.bare)))


def main() -> int:
    """Run as the module's text says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        servers = []
        for target in (serve, serve_bare):
            folder = Path(name) / target.__name__
            folder.mkdir()
            queue = context.Queue()
            process = context.Process(target=target, args=(folder, queue), daemon=True)
            process.start()
            servers.append((process, queue.get(timeout=30)))
        (ours, address), (nothing, bare) = servers
        pids = (ours.pid, nothing.pid)
        try:
            asyncio.run(load(arguments, Path(name), address, bare, pids))
        finally:
            for process, _ in servers:
                process.terminate()
                process.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
