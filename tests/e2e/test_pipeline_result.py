"""What a model that nobody holds whole has learned: scored, asked and exported from any of its nodes."""

import contextlib
import json

import pytest
import torch
from peft import PeftModel
from processes import potluck
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM

from node.core.errors import NodeError
from node.host.home import Home
from node.training import checkpoint
from node.training.checkpoint import CheckpointStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STAGES = "  stages: 3\n"


def parts_at(home, version):
    """The adapters in a home's checkpoint of that version, by parameter; None if neither generation is of it."""
    store = CheckpointStore(Home(home).current_run().checkpoints, read_only=True)
    for _, path in store._generations():
        with contextlib.suppress(OSError, NodeError):  # removed meanwhile, for a newer one
            saved = checkpoint._read(path)
            if saved.version == version:
                tensors = {}
                for data in saved.adapters.values():
                    tensors |= {n.removeprefix("values/"): t for n, t in load(data).items() if n.startswith("values/")}
                return tensors
    return None


def export(home, output):
    done = potluck("export", "peft", "--home", home, "-o", output, "--force", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["step"]


def test_the_result_of_three_stages_is_used_from_any_node(smollm2, tmp_path, recipe, data, start):
    # a step takes a while, so that what is gathered and what is on disk are of one step
    path = recipe(smollm2, target=1024, extra=STAGES)
    owner = start(tmp_path / "a", "start", path, "--data", data("anna"), "--stages", "0", "--name", "anna")
    lender = start(tmp_path / "b", "join", owner.address, "--lend", "--stages", "1-2", "--name", "bert")
    owner.wait_for(lambda n: n.of("Stepped"), "a step")
    owner.wait_for(lambda n: n.of("CheckpointSaved"), "a checkpoint")
    lender.wait_for(lambda n: n.of("CheckpointSaved"), "a checkpoint")

    plan = json.loads(potluck("plan", path, "--peers", "swarm", "--home", tmp_path / "b", "--json").stdout)
    places = [place for pipeline in plan["pipelines"] for place in pipeline["places"]]
    assert plan["num_stages"] == 3
    assert {place["machine"] for place in places} <= {"#1 (anna)", "#2 (bert)"}
    assert all(place["compute_tokens_per_s"] > 0 for place in places)

    for _ in range(4):  # two steps may fall between the export and the look at the disk
        step = export(tmp_path / "b", tmp_path / "out")
        parts = [parts_at(tmp_path / name, step) for name in "ab"]
        if all(part is not None for part in parts):
            break
    assert all(part is not None for part in parts), "what is exported is gone from the disk before it is looked at"
    exported = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expected = {f"base_model.model.{name}": tensor for part in parts for name, tensor in part.items()}
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
    assert len({name.split(".layers.")[1].split(".")[0] for name in exported}) == 30

    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    ids = torch.tensor([[1, 4093, 253, 1743, 28]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, str(tmp_path / "out"))(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)

    scored = potluck("eval", "--home", tmp_path / "a", "--json", timeout=240)
    assert scored.returncode == 0, scored.stderr
    scores = json.loads(scored.stdout)
    assert scores["adapter"]["loss"] < scores["base"]["loss"]

    asked = potluck("chat", "--home", tmp_path / "a", "-p", "Say yes.", "--max-tokens", "6", "--json", timeout=240)
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["adapter"].strip()

    assert lender.stop() == 0
    alone = potluck("export", "peft", "--home", tmp_path / "b", "-o", tmp_path / "part", "--force")
    assert alone.returncode != 0
    assert "holds 2 of the 3 stages" in alone.stderr
    assert "Start the node again" in alone.stderr
