"""The first demo: two nodes, each with the whole model and data of its own, train one adapter."""

from __future__ import annotations

from pathlib import Path

from node.demo.model import find_demo_gguf
from node.demo.picture import Replicas
from node.demo.plot import (
    QUESTION,
    RECIPE,
    NodeOutcome,
    Outcome,
    Screen,
    evaluate,
    make_room,
    potluck,
    train,
    watch,
    write_data,
)
from node.demo.process import LOOPBACK, NodeProcess, leaving

_AVERAGING = """\
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
    text = RECIPE.format(machines="two", base_model=gguf, val_set_size=24, micro_batch_size=2)
    recipe.write_text(text + _AVERAGING, encoding="utf-8")
    data = write_data(output, screen)
    nodes: list[NodeProcess] = []

    def picture(seconds_left: float | None = None) -> Replicas:
        return Replicas(tuple(nodes), seconds_left)

    with leaving(nodes):
        screen.say("Starting the first node; the model is converted the first time, which takes half a minute.")
        start = ("start", str(recipe), "--data", str(data[0]), *LOOPBACK)
        nodes.append(NodeProcess("reference", output / "node-1", start, data=data[0].name))
        watch(nodes, screen, picture, lambda: bool(nodes[0].address), what="the first node to listen")
        screen.say(f"The second node joins with:  potluck join {nodes[0].address}")
        join = ("join", nodes[0].address, "--data", str(data[1]), *LOOPBACK)
        nodes.append(NodeProcess("docstrings", output / "node-2", join, data=data[1].name))
        watch(nodes, screen, picture, lambda: all(node.tokens for node in nodes), what="both nodes to train")
        train(nodes, screen, picture, minutes)
    screen.say("Comparing the base model with the adapter on what each node held out.")
    scores = evaluate(nodes)
    home, adapter = str(nodes[0].home), output / "adapter"
    potluck(("export", "peft", "--home", home, "--output", str(adapter), "--json"))
    (answers,) = potluck(("chat", "--home", home, "--prompt", QUESTION, "--compare", "--json"))
    screen.results(
        Outcome(
            nodes=tuple(
                NodeOutcome(node.name, node.data, node.tokens, node.rounds, node.bytes_sent, score)
                for node, score in zip(nodes, scores, strict=True)
            ),
            steps=max(node.version for node in nodes),
            question=QUESTION,
            base_answer=answers["base"],
            tuned_answer=answers["adapter"],
            adapter_folder=adapter,
            commands=(f"potluck start {recipe} --data mine.jsonl", f"potluck join {_ADDRESS} --data theirs.jsonl"),
            remark="The second PC needs no file of the model: what it lacks comes from the first.",
        )
    )
