"""One node of the demo: a real `potluck` process, watched through the events that it prints and its local API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from node.control.client import ControlClient
from node.core.children import dying_with_parent
from node.core.errors import NodeError
from node.core.types import Shard

LOOPBACK = ("--listen", "/ip4/127.0.0.1/tcp/0", "--threads", "1")
"""Options of every demo node: this machine only, and one core."""
_STOP_S = 90.0
_RATE_WINDOW_S = 20.0


class NodeProcess:
    """A node that runs as a child, with the latest of what it said about itself."""

    def __init__(
        self, name: str, home: Path, arguments: Sequence[str], *, data: str = "", cache: Path | None = None
    ) -> None:
        """Start it.

        Args:
            name: For the screens.
            home: Its own.
            arguments: Of the command.
            data: What its data is called on the screen; empty if it has none.
            cache: Where it looks for models and keeps them, if not where this machine does.
        """
        self.name = name
        self.home = home
        self.data = data
        self.address = ""
        self.state = "starting"
        self.shard = Shard(0, 0)
        self.num_stages = 1
        self.layers = ""
        """Those that it holds, for people."""
        self.missing = ""
        """The layers that its training waits for, for people."""
        self.losses: deque[float] = deque(maxlen=600)
        self.tokens = 0
        self.version = 0
        self.rounds = 0
        self.bytes_sent = 0
        """In rounds."""
        self.hidden_bytes = 0
        """Hidden states and their gradients that it sent, as of the last `ask`."""
        self._cache = cache
        self._is_asked = False
        self._finished: deque[tuple[float, int]] = deque()
        self._lines: Queue[str | None] = Queue()
        self._errors: deque[str] = deque(maxlen=40)
        command = [sys.executable, "-m", "node", *arguments, "--home", str(home), "--name", name, "--log", "json"]
        command = [*dying_with_parent(signal.SIGTERM), *command]  # a demo that is killed leaves no node training
        self._child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment(cache),
            process_group=0,
        )
        for target in (self._read_events, self._read_errors):
            threading.Thread(target=target, daemon=True).start()

    def pump(self) -> list[dict[str, Any]]:
        """Take in what the node has said since the last call.

        Raises:
            NodeError: the node ended by itself.
        """
        events: list[dict[str, Any]] = []
        while True:
            try:
                line = self._lines.get_nowait()
            except Empty:
                return events
            if line is None:
                code = self._child.wait()
                raise NodeError(f"The node '{self.name}' ended with code {code}: " + "\n".join(self._errors)[-1500:])
            try:
                event = json.loads(line)
            except ValueError:
                continue
            self._note(event)
            events.append(event)

    def ask(self) -> None:
        """Ask it for what no event tells; a node that does not answer yet is asked again another time."""
        with suppress(NodeError), ControlClient(self.home) as node:
            self.hidden_bytes = node.status().given.hidden_bytes_sent

    @property
    def tokens_per_s(self) -> float:
        """Tokens of its own data a second, over the last seconds."""
        now = time.monotonic()
        while self._finished and now - self._finished[0][0] > _RATE_WINDOW_S:
            self._finished.popleft()
        if len(self._finished) < 2:
            return 0.0
        span = self._finished[-1][0] - self._finished[0][0]
        return sum(tokens for _, tokens in list(self._finished)[1:]) / max(span, 1e-9)

    @property
    def has_empty_cache(self) -> bool:
        """Whether it began without a file of the model."""
        return self._cache is not None

    @property
    def fetched_bytes(self) -> int:
        """Bytes of the base model that it fetched from its neighbours."""
        total = 0
        for path in self._cache.rglob("*.safetensors*") if self._cache is not None else ():
            with suppress(FileNotFoundError):  # a part that has just become whole
                total += path.stat().st_size
        return total

    def ask_to_stop(self) -> None:
        """Let the node save and leave; does not wait."""
        if not self._is_asked:  # the second time would mean to quit at once
            self._is_asked = True
            self._child.terminate()

    def stop(self) -> None:
        """Let the node save and leave; returns when it has."""
        self.ask_to_stop()
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the node as a power cut would."""
        self._child.kill()
        self._child.wait()

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._child.poll() is not None

    def _note(self, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "Listening":
                self.address = event["addresses"][0]
            case "StateChanged":
                self.state = event["after"]
            case "Holding":
                self.shard = Shard(event["first_stage"], event["stop_stage"])
                self.num_stages, self.layers = event["num_stages"], event["layers"]
            case "StagesMissing":
                self.missing = event["message"]
            case "StagesFound":
                self.missing = ""
            case "MicrobatchDone":
                self.losses.append(event["loss"])
                self.tokens += event["tokens"]
                self._finished.append((time.monotonic(), event["tokens"]))
            case "Stepped":
                self.version = event["version"]
            case "RoundFinished":
                result = event["result"]
                self.rounds += result["status"] == "committed"
                self.bytes_sent += result["bytes_sent"]

    def _read_events(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._errors.append(line.rstrip())


@contextmanager
def leaving(nodes: list[NodeProcess]) -> Iterator[None]:
    """Stop the nodes that are in the list at the end of the context, however it ends; a second Ctrl-C kills them.

    SIGTERM and a closed terminal count as Ctrl-C, since nodes are not in this process's group and would stay.
    """
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        try:
            for node in nodes:
                node.ask_to_stop()
            for node in nodes:
                node.stop()
        finally:
            for node in nodes:
                node.kill()
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def environment(cache: Path | None = None) -> dict[str, str]:
    """Return the environment of a demo's process: one thread, no hub, and perhaps another folder for models."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    if cache is not None:
        own |= {"XDG_CACHE_HOME": str(cache), "HF_HOME": str(cache / "huggingface")}
    return {**os.environ, **own}
