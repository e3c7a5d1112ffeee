"""The first demo: two nodes, each with the whole model and data of its own, train one adapter."""

from __future__ import annotations

import time
from pathlib import Path

from node.data.demo_data import write_docstrings, write_topics
from node.demo.model import find_demo_gguf
from node.demo.picture import Replicas
from node.demo.plot import QUESTION, RECIPE, NodeOutcome, Outcome, Screen, evaluate, make_room, potluck, watch
from node.demo.process import NodeProcess, leaving

_POTLUCK = """\
  averaging:
    target_batch_tokens: 2048
"""
_ADDRESS = "/ip4/<first PC>/tcp/4040/p2p/<its id>"


def run_demo(output: Path, *, minutes: float, cache: Path, screen: Screen) -> None:
    """Run the whole demo under `output`.

    Raises:
        NodeError: something failed; the nodes are stopped before it is raised.
    """
    gguf = find_demo_gguf(cache)
    make_room(output)
    recipe = output / "recipe.yaml"
    recipe.write_text(RECIPE.format(base_model=gguf, machines="two real computers") + _POTLUCK, encoding="utf-8")
    reference, docstrings = output / "language-reference.jsonl", output / "docstrings.jsonl"
    counts = write_topics(reference), write_docstrings(docstrings)
    screen.say(f"Data: {counts[0]} pieces of Python's language reference, {counts[1]} questions and answers.")
    nodes: list[NodeProcess] = []
    stop_at = float("inf")

    def picture() -> Replicas:
        return Replicas(tuple(nodes), stop_at - time.monotonic())

    with leaving(nodes):
        screen.say("Starting the first node; the model is converted the first time, which takes half a minute.")
        nodes.append(NodeProcess("reference", output / "node-1", ["start", str(recipe), "--data", str(reference)]))
        watch(nodes, screen, picture, lambda: bool(nodes[0].address), "the first node to listen")
        screen.say(f"The second node joins with:  potluck join {nodes[0].address}")
        join = ["join", nodes[0].address, "--data", str(docstrings)]
        nodes.append(NodeProcess("docstrings", output / "node-2", join))
        watch(nodes, screen, picture, lambda: all(node.tokens for node in nodes), "both nodes to train")
        stop_at = time.monotonic() + 60 * minutes
        watch(nodes, screen, picture, lambda: time.monotonic() > stop_at, "the end", patience_s=float("inf"))
    screen.say("Comparing the base model with the adapter on what each node held out.")
    scores = evaluate(nodes)
    adapter = output / "adapter"
    potluck("export", "peft", "--home", str(nodes[0].home), "--output", str(adapter), "--json")
    answers = potluck("chat", "--home", str(nodes[0].home), "--prompt", QUESTION, "--compare", "--json")
    screen.results(
        Outcome(
            nodes=tuple(
                NodeOutcome(node.name, data.name, node.tokens, node.rounds, node.bytes_sent, score)
                for node, data, score in zip(nodes, (reference, docstrings), scores, strict=True)
            ),
            steps=max(node.version for node in nodes),
            question=QUESTION,
            base_answer=answers["base"],
            tuned_answer=answers["adapter"],
            adapter_folder=adapter,
            commands=(f"potluck start {recipe} --data mine.jsonl", f"potluck join {_ADDRESS} --data theirs.jsonl"),
            remark="The second PC needs the same model file; name it there with --base-model.",
        )
    )
