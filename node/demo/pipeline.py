"""The second demo: three nodes, each with a third of the model's layers, train one adapter.

One has data and the model, one has no data, and one has data but no file of the model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from node.config.load import load_recipe
from node.config.local import LocalSettings
from node.core.types import Shard
from node.demo.model import find_demo_gguf
from node.demo.picture import Pipeline, data_of, model_of
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
from node.holding import Room
from node.host.devices import describe, pick_device
from node.host.memory import SAFETY
from node.host.shapes import ModelShape
from node.model.families import read_config
from node.model.source import resolve_base_model
from node.specs import load_spec

_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""A name rather than a file, so that a node without the file looks for it in the swarm."""
_STAGES = """\
  stages: 3               # the model's 30 layers in three stages of ten
  averaging:
    target_batch_tokens: 2048
"""
_SHORT = ("--max-tokens", "48")
"""Every word of an answer goes through the three nodes, while they train."""
_ADDRESS = "/ip4/<first PC>/tcp/4040/p2p/<its id>"
_BELOW = 0.95
"""Of what two stages take."""
_ASK_EVERY_S = 1.0


@dataclass
class _Cast:
    """The three nodes, as far as they are there, and what they are given."""

    output: Path
    recipe: Path
    model: Path
    """The base model, for those who have it."""
    nodes: list[NodeProcess] = field(default_factory=list)
    asked_at: float = float("-inf")

    def add(self, name: str, *command: str, data: Path | None, has_model: bool = True) -> NodeProcess:
        """Start a node with memory for one stage; which one, it chooses by itself."""
        home = self.output / f"node-{len(self.nodes) + 1}"
        options = ["--data", str(data)] if data is not None else ["--lend"]
        options += ["--base-model", str(self.model)] if has_model else []
        options += ["--max-memory", f"{self._limit_gb(drives=data is not None):.2f}", *LOOPBACK]
        cache = None if has_model else home.with_name(home.name + "-cache")
        node = NodeProcess(name, home, (*command, *options), data=data.name if data else "", cache=cache)
        self.nodes.append(node)
        return node

    @property
    def drivers(self) -> list[NodeProcess]:
        """Those with data."""
        return [node for node in self.nodes if node.data]

    def picture(self, seconds_left: float | None = None) -> Pipeline:
        """Return the nodes as they are now."""
        if time.monotonic() - self.asked_at > _ASK_EVERY_S:
            self.asked_at = time.monotonic()
            for node in self.nodes:
                node.ask()
        return Pipeline(tuple(self.nodes), seconds_left)

    def _limit_gb(self, *, drives: bool) -> float:
        """Return a limit just below what two stages take."""
        recipe, device = load_recipe(self.recipe).recipe, pick_device("auto")
        shape, bf16 = ModelShape.of(read_config(self.model)), load_spec(recipe, device).compute == "bfloat16"
        room = Room.of(recipe, shape, describe(device), LocalSettings(), drives=drives, bf16=bf16)
        return _BELOW * SAFETY * room.needed_bytes(Shard(0, 2)) / 1e9


def run_pipeline_demo(output: Path, *, minutes: float, cache: Path, screen: Screen) -> None:
    """Run the whole demo under `output`.

    Raises:
        NodeError: something failed; the nodes are stopped before it is raised.
    """
    gguf = find_demo_gguf(cache)
    make_room(output)
    recipe = output / "recipe.yaml"
    # small microbatches: a round waits for those under way, and there are more of them the more nodes there are
    text = RECIPE.format(machines="three", base_model=_MODEL, val_set_size=8, micro_batch_size=1)
    recipe.write_text(text + _STAGES, encoding="utf-8")
    data = write_data(output, screen)
    screen.say("Reading the model; it is converted the first time, which takes half a minute.")
    cast = _Cast(output, recipe, resolve_base_model(str(gguf), cache=cache))
    with leaving(cast.nodes):
        _gather(cast, *data, screen)
        train(cast.nodes, screen, cast.picture, minutes)
        outcome = _use(cast, screen)
    screen.results(outcome)


def _gather(cast: _Cast, reference: Path, docstrings: Path, screen: Screen) -> None:
    """Start the nodes one after the other, so that each sees what the swarm lacks."""
    screen.say("On each node --max-memory leaves room for a third of the layers; each takes what the swarm lacks.")
    first = cast.add("reference", "start", str(cast.recipe), data=reference)
    watch(cast.nodes, screen, cast.picture, lambda: first.state == "training", what="the first node to load its layers")
    screen.say(f"The second node has no data, and lends its memory:  potluck join {first.address} --lend")
    second = cast.add("lender", "join", first.address, "--lend", data=None)
    watch(cast.nodes, screen, cast.picture, lambda: second.state == "training", what="the second node to load layers")
    screen.say("The third node has data, but no file of the model; it fetches what it needs from the others.")
    cast.add("docstrings", "join", first.address, data=docstrings, has_model=False)
    watch(
        cast.nodes, screen, cast.picture, lambda: all(node.tokens for node in cast.drivers), what="both owners to train"
    )


def _use(cast: _Cast, screen: Screen) -> Outcome:
    """Export, score and ask while the nodes run: the whole model is on none of them."""
    for node in cast.nodes:
        node.ask()
    rows, steps = [_row(node) for node in cast.nodes], max(node.version for node in cast.nodes)
    home, adapter = str(cast.nodes[0].home), cast.output / "adapter"
    screen.say("Gathering the adapter's three parts from the nodes.")
    potluck(("export", "peft", "--home", home, "--output", str(adapter), "--json"))
    screen.say("Comparing the base model with the adapter on what each owner held out, through the three nodes.")
    scores = dict(zip((node.name for node in cast.drivers), evaluate(cast.drivers), strict=True))
    screen.say("Asking both a question, through the three nodes.")
    (answers,) = potluck(("chat", "--home", home, "--prompt", QUESTION, "--compare", *_SHORT, "--json"))
    return Outcome(
        nodes=tuple(replace(row, scores=scores.get(row.name)) for row in rows),
        steps=steps,
        question=QUESTION,
        base_answer=answers["base"],
        tuned_answer=answers["adapter"],
        adapter_folder=adapter,
        commands=(
            f"potluck start {cast.recipe} --data mine.jsonl --base-model {cast.model}",
            f"potluck join {_ADDRESS} --lend",
            f"potluck join {_ADDRESS} --data theirs.jsonl",
        ),
        remark="Each takes the layers that are lacking and fit; --max-memory GB keeps a node from taking more.",
    )


def _row(node: NodeProcess) -> NodeOutcome:
    return NodeOutcome(
        name=node.name,
        data=data_of(node),
        tokens=node.tokens,
        rounds=node.rounds,
        bytes_sent=node.bytes_sent + node.hidden_bytes,
        scores=None,
        layers=node.layers.removeprefix("layers "),
        base_model=model_of(node),
    )
