"""Real `potluck` processes for the tests: started, watched through their events, killed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from faults.fault import write_faults
from forked import Forked

ROOT = Path(__file__).parent.parent.parent


def potluck(*arguments, env=None, timeout=120):
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "node", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
    )


class Node:
    """A node in the foreground of its own process group."""

    def __init__(self, home: Path, *arguments, env=None, faults=(), program=("node",), ip="127.0.0.1", inside=()):
        """Start; `faults` strike in the real daemon (`faults.daemon`), and `program` may be another one around it.

        `inside` stands before the command, such as what enters a network namespace, in which the node listens at `ip`.
        """
        self.home = home
        self.events = []
        self.errors = []
        is_plain = not (env or faults or inside) and program == ("node",)
        if program != ("node",):
            env = {"PYTHONPATH": str(ROOT / "tests"), **(env or {})}
        if faults:
            file = home.with_name(f"{home.name}-faults.json")
            write_faults(file, faults)
            program = ("faults.daemon", file)
            env = {"PYTHONPATH": str(ROOT / "tests"), **(env or {})}
        command = [*map(str, (*program, *arguments)), "--home", str(home), "--listen", f"/ip4/{ip}/tcp/0"]
        command += ["--threads", "1", "--log", "json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.child = (
            Forked(command, cwd=str(ROOT), env=environment)
            if is_plain
            else subprocess.Popen(
                [*inside, sys.executable, "-m", *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                process_group=0,
                env=environment,
            )
        )
        sinks = ((self.child.stdout, self._event), (self.child.stderr, self.errors.append))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in sinks]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, sink):
        for line in stream:
            sink(line)

    def _event(self, line):
        self.events.append(json.loads(line))

    def of(self, kind):
        return [event for event in list(self.events) if event["event"] == kind]

    def wait_for(self, found, what, timeout=120):
        """Wait until `found(self)` is true."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            value = found(self)
            if value:
                return value
            if self.child.poll() is not None and not found(self):
                raise AssertionError(
                    f"ended with {self.child.returncode} before {what}: {''.join(self.errors)[-2000:]}"
                )
            time.sleep(0.05)
        raise AssertionError(f"waited {timeout} s for {what}; the last events: {list(self.events)[-8:]}")

    @property
    def address(self):
        return self.wait_for(lambda n: n.of("Listening"), "listening")[0]["addresses"][0]

    @property
    def peer_id(self):
        return self.wait_for(lambda n: n.of("Listening"), "listening")[0]["peer_id"]

    def shared_rounds(self, members=2):
        return [
            e["result"]
            for e in self.of("RoundFinished")
            if e["result"]["status"] == "committed" and len(e["result"]["members"]) >= members
        ]

    def hashes(self):
        """The adapter's hash at each version that this node stepped to."""
        return {event["version"]: event["adapter_hash"] for event in self.of("Stepped")}

    def status(self):
        done = potluck("status", "--home", self.home, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stop(self, timeout=90):
        self.child.terminate()
        return self.child.wait(timeout)

    def end(self, timeout):
        """Wait for its end, and until all that it said was read; return its exit code."""
        code = self.child.wait(timeout)
        for reader in self._readers:
            reader.join(20)
        return code

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
        self.end(20)
