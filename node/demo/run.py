"""The demo's plot: prepare, start, join, train for a while, compare, hand over the adapter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from node.core.errors import NodeError
from node.data.demo_data import write_docstrings, write_topics
from node.demo.model import find_demo_gguf
from node.demo.process import NodeProcess

QUESTION = "What does `os.path.join` do in Python?"
_START_S = 240.0
_COMMAND_S = 600.0

RECIPE = """\
# The demo's recipe. The same file works on two real computers.
base_model: {base_model}
adapter: qlora
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true

sequence_len: 256
sample_packing: true
val_set_size: 24          # examples held out on each node

micro_batch_size: 2
learning_rate: 1e-3       # a small model takes a large one
lr_scheduler: constant
warmup_steps: 5
max_steps: 100000         # the demo stops by the clock
evals_per_epoch: 0
seed: 7

potluck:
  name: demo
  averaging:
    target_batch_tokens: 2048
"""


class Stage(Protocol):
    """Where the demo shows itself."""

    def say(self, line: str) -> None:
        """Show one line."""

    def training(self, nodes: list[NodeProcess], seconds_left: float) -> None:
        """Show the nodes at work; called a few times a second."""

    def results(self, outcome: Outcome) -> None:
        """Show the end."""


@dataclass(frozen=True)
class NodeOutcome:
    """One node at the end."""

    name: str
    data: str
    tokens: int
    rounds: int
    bytes_sent: int
    base: dict[str, float]
    adapter: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What came of the demo."""

    nodes: tuple[NodeOutcome, ...]
    steps: int
    question: str
    base_answer: str
    tuned_answer: str
    adapter_folder: Path
    recipe: Path


def run_demo(output: Path, *, minutes: float, cache: Path, show: Stage) -> None:
    """Run the whole demo under `output`.

    Raises:
        NodeError: something failed; the nodes are stopped before it is raised.
    """
    gguf = find_demo_gguf(cache)
    _make_room(output)
    recipe = output / "recipe.yaml"
    recipe.write_text(RECIPE.format(base_model=gguf), encoding="utf-8")
    reference, docstrings = output / "language-reference.jsonl", output / "docstrings.jsonl"
    counts = write_topics(reference), write_docstrings(docstrings)
    show.say(f"Data: {counts[0]} pieces of Python's language reference, {counts[1]} questions and answers.")
    nodes: list[NodeProcess] = []
    try:
        listen = ["--listen", "/ip4/127.0.0.1/tcp/0", "--threads", "1"]
        show.say("Starting the first node; the model is converted the first time, which takes half a minute.")
        nodes.append(
            NodeProcess("reference", output / "node-1", ["start", str(recipe), "--data", str(reference), *listen])
        )
        _wait_for(lambda: nodes[0].address, nodes, "the first node to listen")
        show.say(f"The second node joins with:  potluck join {nodes[0].address}")
        nodes.append(
            NodeProcess("docstrings", output / "node-2", ["join", nodes[0].address, "--data", str(docstrings), *listen])
        )
        _wait_for(lambda: all(node.tokens for node in nodes), nodes, "both nodes to train")
        _train(nodes, minutes, show)
    finally:
        for node in nodes:
            node.stop()
    show.say("Comparing the base model with the adapter on what each node held out.")
    with ThreadPoolExecutor(len(nodes)) as pool:
        scores = list(pool.map(lambda node: _potluck("eval", "--home", str(node.home), "--json"), nodes))
    adapter = output / "adapter"
    _potluck("export", "peft", "--home", str(nodes[0].home), "--output", str(adapter), "--json")
    answers = _potluck("chat", "--home", str(nodes[0].home), "--prompt", QUESTION, "--compare", "--json")
    show.results(_outcome(nodes, scores, (reference.name, docstrings.name), answers, adapter, recipe))


def _train(nodes: list[NodeProcess], minutes: float, show: Stage) -> None:
    until = time.monotonic() + 60 * minutes
    while (left := until - time.monotonic()) > 0:
        for node in nodes:
            node.pump()
        show.training(nodes, left)
        time.sleep(0.25)


def _wait_for(happened: Any, nodes: list[NodeProcess], what: str) -> None:
    until = time.monotonic() + _START_S
    while not happened():
        if time.monotonic() > until:
            raise NodeError(f"Waited {_START_S:.0f} s for {what}.", hint="The nodes' logs are in their homes' logs/.")
        for node in nodes:
            node.pump()
        time.sleep(0.1)


def _potluck(*arguments: str) -> Any:
    """Run one command as a person would, and return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode:
        raise NodeError(f"`potluck {arguments[0]}` failed: {done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout)


def _outcome(
    nodes: list[NodeProcess],
    scores: list[Any],
    data: tuple[str, ...],
    answers: Any,
    adapter: Path,
    recipe: Path,
) -> Outcome:
    rows = tuple(
        NodeOutcome(node.name, name, node.tokens, node.rounds, node.bytes_sent, score["base"], score["adapter"])
        for node, name, score in zip(nodes, data, scores, strict=True)
    )
    return Outcome(
        nodes=rows,
        steps=max(node.version for node in nodes),
        question=QUESTION,
        base_answer=answers["base"],
        tuned_answer=answers["adapter"],
        adapter_folder=adapter,
        recipe=recipe,
    )


def _make_room(output: Path) -> None:
    """Begin with an empty folder; an earlier demo's folder is removed, anything else is left alone."""
    marker = output / ".potluck-demo"
    if output.exists() and any(output.iterdir()):
        if not marker.exists():
            raise NodeError(f"{output} is not empty.", hint="Choose another --output.")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
