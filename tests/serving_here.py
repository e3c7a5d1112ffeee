"""A coordinator of a test's own: in this process, or in one that can be killed."""

import asyncio
import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.address import CoordinatorAddress
from coordinator.server import Settings, serving
from node.trust.identity import Identity

RUN = "ab" * 32


@contextlib.asynccontextmanager
async def coordinator(folder, **changes):
    """Serve on a free port of this machine."""
    say = changes.pop("say", lambda _: None)
    async with serving(Settings(folder, "127.0.0.1", changes.pop("port", 0), **changes), say) as here:
        yield here


def identity(folder, name) -> Identity:
    """Return a node's key pair."""
    return Identity.load_or_create(folder / f"{name}.key")


@dataclass
class Killable:
    """`python -m coordinator serve` in a process of its own, always at the same port."""

    folder: Path
    port: int
    process: subprocess.Popen = field(init=False)
    address: str = ""
    ip: str = "127.0.0.1"
    inside: tuple[str, ...] = ()
    """What stands before the command, such as what enters a network namespace."""

    def start(self):
        """Start it and wait for its address."""
        command = ("-m", "coordinator", "serve", "--listen", f"{self.ip}:{self.port}", "--state", str(self.folder))
        self.process = subprocess.Popen(
            [*self.inside, sys.executable, "-u", *command], stdout=subprocess.PIPE, text=True
        )
        for line in self.process.stdout:
            if line.startswith("coordinator://"):
                self.address = line.strip()
                assert CoordinatorAddress.parse(self.address)
                return self
        raise AssertionError("it did not start")

    def kill(self):
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


async def until(condition, seconds=10.0):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.01)
