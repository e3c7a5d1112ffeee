"""What both demos share: where they show themselves, what comes of them, and how they wait and call commands."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import RenderableType

from node.core.children import dying_with_parent
from node.core.errors import NodeError
from node.data.demo_data import write_docstrings, write_topics
from node.demo.process import NodeProcess, environment

QUESTION = "What does `os.path.join` do in Python?"
_START_S = 240.0
_COMMAND_S = 600.0
_LOOK_EVERY_S = 0.25

RECIPE = """\
# The demo's recipe. The same file works on {machines} real computers.
base_model: {base_model}
adapter: qlora
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true

sequence_len: 256
sample_packing: true
val_set_size: {val_set_size:<2}          # examples held out on each node

micro_batch_size: {micro_batch_size}
learning_rate: 1e-3       # a small model takes a large one
lr_scheduler: constant
warmup_steps: 5
max_steps: 100000         # the demo stops by the clock
evals_per_epoch: 0
seed: 7

potluck:
  name: demo
"""
"""To be filled in; without the end of its last section, which is each demo's own."""


class Picture(Protocol):
    """The nodes at work, as they are now."""

    def panel(self) -> RenderableType:
        """Return what a terminal shows."""

    def line(self) -> str:
        """Return it in one line, for pipes and logs."""


class Screen(Protocol):
    """Where a demo shows itself."""

    def say(self, line: str) -> None:
        """Show one line."""

    def draw(self, picture: Picture) -> None:
        """Show the nodes at work; called a few times a second."""

    def results(self, outcome: Outcome) -> None:
        """Show the end."""


@dataclass(frozen=True)
class Scores:
    """What a node's held-out examples came to."""

    base_loss: float
    base_perplexity: float
    loss: float
    perplexity: float


@dataclass(frozen=True)
class NodeOutcome:
    """One node at the end."""

    name: str
    data: str
    tokens: int
    rounds: int
    bytes_sent: int
    """Of the adapter's gradients and of hidden states."""
    scores: Scores | None
    """None for a node without data."""
    layers: str = ""
    """Those that it held; empty if all."""
    base_model: str = ""
    """Where it had the base model from; empty if from its own disk."""


@dataclass(frozen=True)
class Outcome:
    """What came of a demo."""

    nodes: tuple[NodeOutcome, ...]
    steps: int
    question: str
    base_answer: str
    tuned_answer: str
    adapter_folder: Path
    commands: tuple[str, ...]
    """What one types to have the same on real machines."""
    remark: str


def write_data(output: Path, screen: Screen) -> tuple[Path, Path]:
    """Write the two files of data, and say what is in them."""
    reference, docstrings = output / "language-reference.jsonl", output / "docstrings.jsonl"
    counts = write_topics(reference), write_docstrings(docstrings)
    screen.say(f"Data: {counts[0]} pieces of Python's language reference, {counts[1]} questions and answers.")
    return reference, docstrings


def watch(
    nodes: Sequence[NodeProcess],
    screen: Screen,
    picture: Callable[[], Picture],
    until: Callable[[], bool],
    *,
    what: str,
    patience_s: float = _START_S,
) -> None:
    """Draw the nodes until something has happened.

    Args:
        nodes: To listen to.
        screen: To draw on.
        picture: Returns the nodes as they are now.
        until: Whether it has happened.
        what: Is waited for.
        patience_s: How long.

    Raises:
        NodeError: it has not happened in time, or a node ended by itself.
    """
    deadline = time.monotonic() + patience_s
    while not until():
        if time.monotonic() > deadline:
            raise NodeError(f"Waited {patience_s:.0f} s for {what}.", hint="The nodes' logs are in their homes' logs/.")
        for node in nodes:
            node.pump()
        screen.draw(picture())
        time.sleep(_LOOK_EVERY_S)


def train(nodes: Sequence[NodeProcess], screen: Screen, picture: Callable[[float], Picture], minutes: float) -> None:
    """Draw the nodes for so long, and until there is a first step; `picture` gets the seconds that are left.

    Raises:
        NodeError: a node ended by itself, or there is no step.
    """
    until = time.monotonic() + 60 * minutes
    watch(
        nodes,
        screen,
        lambda: picture(until - time.monotonic()),
        lambda: time.monotonic() > until and all(node.version for node in nodes),
        what="a first step",
        patience_s=60 * minutes + _START_S,
    )


def evaluate(nodes: Sequence[NodeProcess]) -> list[Scores]:
    """Return each node's scores on what it held out.

    Raises:
        NodeError: a command failed.
    """
    printed = potluck(*(("eval", "--home", str(node.home), "--json") for node in nodes))
    return [
        Scores(each["base"]["loss"], each["base"]["perplexity"], each["adapter"]["loss"], each["adapter"]["perplexity"])
        for each in printed
    ]


def potluck(*commands: Sequence[str]) -> list[Any]:
    """Run commands at the same time, as a person would, and return what each printed as JSON.

    Raises:
        NodeError: one failed.
    """
    started: list[subprocess.Popen[str]] = []
    try:
        started.extend(_start(command) for command in commands)
        return [_printed(command[0], child) for command, child in zip(commands, started, strict=True)]
    finally:
        for child in started:
            child.kill()
            child.wait()


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*dying_with_parent(signal.SIGTERM), sys.executable, "-m", "node", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )


def _printed(verb: str, child: subprocess.Popen[str]) -> Any:
    try:
        output, errors = child.communicate(timeout=_COMMAND_S)
    except subprocess.TimeoutExpired as error:
        raise NodeError(f"`potluck {verb}` was not done within {_COMMAND_S:.0f} s.") from error
    if child.returncode:
        raise NodeError(f"`potluck {verb}` failed: {errors.strip()[-1500:]}")
    return json.loads(output)


def make_room(output: Path) -> None:
    """Begin with an empty folder; an earlier demo's folder is removed, anything else is left alone.

    Raises:
        NodeError: something else is there.
    """
    marker = output / ".potluck-demo"
    if output.exists() and any(output.iterdir()):
        if not marker.exists():
            raise NodeError(f"{output} is not empty.", hint="Choose another --output.")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
