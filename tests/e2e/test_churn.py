"""Churn, measured: nodes killed and started at random, and one that is slow.

The nodes are real; each computes at a speed that is given (`churn.paced`), so that what they could compute is known.
The short form: four nodes, about 90 s. The long form (`--soak`): eight nodes, twice a quarter of an hour.
"""

import json
import random
import time
from dataclasses import dataclass

import pytest
from churn.swarm import Swarm, last_saved
from processes import potluck

from node.data.demo_data import write_topics

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]
WITHIN_S = 15.0
"""A round is committed within so long whenever two are alive."""


@pytest.fixture
def split_data(tmp_path):
    """Write so many files of a node's own and one that nobody trains on; return the former and the latter."""

    def write(number):
        write_topics(tmp_path / "all.jsonl")
        rows = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
        random.Random(1).shuffle(rows)
        held_out, rows = rows[:24], rows[24:]
        (tmp_path / "held-out.jsonl").write_text("".join(held_out))
        files = [tmp_path / f"rows-{index}.jsonl" for index in range(number)]
        for index, file in enumerate(files):
            file.write_text("".join(rows[index::number]))
        return files, tmp_path / "held-out.jsonl"

    return write


def held_out_loss(home, file):
    done = potluck("eval", "--home", home, "--data", file, "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Form:
    """How much of it."""

    nodes: int
    tokens_per_s: float
    """Of each node."""
    layers: int
    """Of a small random model; 0 for SmolLM2, whose start takes longer than the short form."""
    steps: int
    target: int
    """Tokens of a step."""


SHORT, LONG = Form(4, 90.0, 2, 15, 1024), Form(8, 45.0, 0, 350, 640)


@pytest.mark.parametrize("mean_s", [15.0, 60.0])
def test_a_swarm_under_churn_counts_what_its_nodes_compute(
    mean_s, smollm2, random_model, tmp_path, recipe, split_data, start, is_soak, record_property, capsys
):
    if not is_soak and mean_s != 15:
        pytest.skip("long form only")
    form = LONG if is_soak else SHORT
    files, held_out = split_data(form.nodes)
    path = recipe(random_model(form.layers) if form.layers else smollm2, target=form.target, max_steps=form.steps)
    run = (path, "--set", "sequence_len=128")
    swarm = Swarm(start, tmp_path, run, files, [form.tokens_per_s] * form.nodes)
    begin = swarm.until_all_train()
    # beside it: the same number of tokens, undisturbed
    everything = [part for file in files for part in ("--data", file)]
    alone = start(tmp_path / "alone", "start", *run, *everything, program=("churn.paced", 300))
    kills = swarm.disturb(random.Random(7), mean_s=mean_s, until=lambda: swarm.has_ended() is not None)
    survivor, end = swarm.end()
    figures = {"kills": kills, **swarm.figures(begin, end)}
    assert alone.end(3000) == 0, alone.errors
    figures["tokens / undisturbed tokens"] = round(end.tokens / last_saved(alone.home, alone).tokens, 3)
    losses = held_out_loss(survivor.home, held_out), held_out_loss(alone.home, held_out)
    figures |= {
        "base": losses[0]["base"]["loss"],
        **{n: x["adapter"]["loss"] for n, x in zip(("churn", "undisturbed"), losses, strict=True)},
    }
    with capsys.disabled():
        print(f"\n{figures}")
    record_property("churn", json.dumps(figures))
    assert figures["counted / could compute"] >= 0.75, figures
    assert figures["longest wait for a round, s"] <= WITHIN_S, figures
    assert figures["churn"] <= 1.02 * figures["undisturbed"], figures


def test_a_node_five_times_slower_than_the_others_costs_nothing(
    random_model, tmp_path, recipe, split_data, start, is_soak, record_property, capsys
):
    files, _ = split_data(4)
    swarm = Swarm(start, tmp_path, [recipe(random_model(2), target=2048)], files, [150.0, 150.0, 150.0, 30.0])
    begin = swarm.until_all_train()
    time.sleep(300 if is_soak else 30)
    figures = swarm.figures(begin, swarm.newest()[1])
    with capsys.disabled():
        print(f"\n{figures}")
    record_property("slow node", json.dumps(figures))
    assert figures["counted / could compute"] >= 0.9, figures
