"""Light clients of a coordinator: nodes without a model, a network daemon or data, signed and over TLS like real ones."""

import asyncio

from serving_here import RUN, identity

from coordinator.address import CoordinatorAddress
from coordinator.client import CoordinatorClient
from coordinator.v1 import coordinator_pb2 as pb


def make_run(fingerprint=RUN, **changes):
    """Return a run of four stages that nobody has founded yet."""
    fields = {"name": "demo", "base_model": "org/model", "num_stages": 4, "num_layers": 10, "max_steps": 1000}
    fields |= {"sealed": b"signed elsewhere", "target_batch_tokens": 10_000}
    return pb.Run(fingerprint=fingerprint, **(fields | changes))


def make_facts(**changes):
    """Return what a node says of itself that trains all four stages."""
    fields = {"name": "anna", "state": "training", "stop_stage": 4, "capacity_stages": 4, "drives": True}
    fields |= {"version": 3, "base_hash": "ab", "committed_tokens": 30_000, "tokens": 10, "tokens_per_s": 100.0}
    fields |= {"loss": 2.5, "tokens_given": 20_000, "addresses": ["/ip4/10.0.0.1/tcp/4040/p2p/QmA"]}
    return pb.Facts(**(fields | changes))


class LightNode:
    """One node."""

    def __init__(self, folder, address, name="anna", run=None):
        self.name, self.run = name, make_run() if run is None else run
        self.identity = identity(folder, name)
        self.client = CoordinatorClient(CoordinatorAddress.parse(str(address)), self.identity)

    @property
    def peer_id(self):
        return self.identity.peer_id

    async def join(self, **changes):
        request = {"fingerprint": self.run.fingerprint, "run": self.run, "capacity_stages": 2}
        return await self.client.join(pb.JoinRequest(**(request | changes)))

    async def beat(self, record=b"signed", **changes):
        facts = make_facts(**({"name": self.name} | changes))
        request = pb.HeartbeatRequest(fingerprint=self.run.fingerprint, record=record, facts=facts)
        return await self.client.heartbeat(request)

    async def leave(self):
        await self.client.leave(pb.LeaveRequest(fingerprint=self.run.fingerprint))

    async def report(self, version=3, outcome="committed", **changes):
        fields = {"num_members": 2, "tokens": 10_000, "seconds": 0.4, "bytes_sent": 5000}
        await self.client.report_round(
            pb.ReportRoundRequest(
                fingerprint=self.run.fingerprint, version=version, outcome=outcome, **(fields | changes)
            )
        )

    def watch(self):
        """Gather what is told in `self.told` until the task is cancelled."""
        self.told = []

        async def gather():
            async for change in self.client.watch(self.run.fingerprint):
                self.told.append(change)

        return asyncio.create_task(gather())
