"""One node of the demo: a real `potluck` process, watched through the events that it prints."""

from __future__ import annotations

import json
import os
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

from node.core.errors import NodeError

_STOP_S = 90.0
_RATE_WINDOW_S = 20.0
_ASK_EVERY_S = 1.0


class NodeProcess:
    """A node that runs as a child, with the latest of what it said about itself."""

    def __init__(
        self, name: str, home: Path, arguments: list[str], *, data: str = "", cache: Path | None = None
    ) -> None:
        """Start it.

        Args:
            name: For the screens.
            home: Its own.
            arguments: Of the command.
            data: What its data is called, for the screen; empty if it has none.
            cache: A folder to look for models in, and to keep them in, instead of this machine's.
        """
        self.name = name
        self.home = home
        self.data = data
        self.state = "starting"
        self.stages = range(0)
        """Stages that it holds, of `num_stages`."""
        self.num_stages = 1
        self.layers = ""
        """Those that it holds, for people."""
        self.trouble = ""
        """What its training waits for."""
        self.address = ""
        self.losses: deque[float] = deque(maxlen=600)
        self.tokens = 0
        self.version = 0
        self.rounds = 0
        self.bytes_sent = 0
        self._finished: deque[tuple[float, int]] = deque()
        self._cache = cache
        self._asked_at = 0.0
        self.news: deque[str] = deque(maxlen=200)
        self._lines: Queue[str | None] = Queue()
        self._errors: deque[str] = deque(maxlen=40)
        command = [sys.executable, "-m", "node", *arguments, "--home", str(home), "--name", name, "--log", "json"]
        self._child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=_environment(cache),
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

    def stop(self) -> None:
        """Let the node save and leave; returns when it has."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

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
            case "MicrobatchDone":
                self.losses.append(event["loss"])
                self.tokens += event["tokens"]
                self._rate.append((event["tokens"], event["seconds"]))
                self.tokens_per_s = sum(t for t, _ in self._rate) / max(sum(s for _, s in self._rate), 1e-9)
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
