"""Whoever does not fit is turned away with what differs and what to do."""

import shutil
import signal
import time

import pytest
from processes import potluck
from transformers import AutoConfig, AutoModelForCausalLM

from node.trust.identity import Identity

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def tiny_smol(smollm2, tmp_path_factory):
    """A random model of two layers with SmolLM2's tokenizer, and one like it with other weights."""
    folders = []
    for seed, layers in ((0, 2), (1, 3)):
        import torch

        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(smollm2)
        config.update({"num_hidden_layers": layers, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16})
        config.update({"num_attention_heads": 4, "num_key_value_heads": 2})
        folder = tmp_path_factory.mktemp("models") / f"tiny-{seed}"
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for file in smollm2.glob("*token*"):
            shutil.copy(file, folder)
        for file in smollm2.glob("chat_template*"):
            shutil.copy(file, folder)
        folders.append(folder)
    return folders


def test_an_address_where_nobody_is_says_what_to_check(tmp_path, data):
    absent = Identity.load_or_create(tmp_path / "absent" / "identity.key").peer_id
    address = f"/ip4/127.0.0.1/tcp/9/p2p/{absent}"
    started = time.monotonic()

    done = potluck(
        "join", address, "--data", data("anna"), "--home", tmp_path / "a", "--listen", "/ip4/127.0.0.1/tcp/0"
    )

    assert done.returncode == 4, done.stderr
    assert time.monotonic() - started < 30
    assert "the connection was refused" in done.stderr
    for word in ("running there", "firewall", "loopback"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_another_model_and_another_recipe_are_refused_with_what_differs(tiny_smol, tmp_path, recipe, data, start):
    mine = data("anna")
    founder = start(tmp_path / "a", "start", recipe(tiny_smol[0]), "--data", mine)
    address = founder.address
    common = ("--data", mine, "--home", tmp_path / "b", "--listen", "/ip4/127.0.0.1/tcp/0")

    other_model = potluck("join", address, "--base-model", tiny_smol[1], *common)
    assert other_model.returncode == 7, other_model.stderr
    assert "num_hidden_layers: 3 here, 2 in the swarm" in other_model.stderr
    assert "--base-model" in other_model.stderr

    other = recipe(tiny_smol[0], name="other.yaml", target=4096)
    other_recipe = potluck("join", address, "--recipe", other, *common)
    assert other_recipe.returncode == 7, other_recipe.stderr
    assert "potluck.averaging.target_batch_tokens: 4096 here, 192 in the swarm" in other_recipe.stderr

    no_data = potluck("join", address, "--home", tmp_path / "b", "--listen", "/ip4/127.0.0.1/tcp/0")
    assert no_data.returncode == 5
    assert "--data" in no_data.stderr

    same_home = potluck("join", address, "--data", mine, "--home", tmp_path / "a")
    assert same_home.returncode == 2
    assert "Another node is running" in same_home.stderr
    assert not [line for line in founder.errors if "Traceback" in line]


def test_ctrl_c_leaves_cleanly_and_says_how_to_go_on(tiny_smol, tmp_path, recipe, data):
    import os
    import subprocess
    import sys

    from processes import ROOT

    command = [sys.executable, "-m", "node", "start", str(recipe(tiny_smol[0])), "--data", str(data("anna"))]
    command += ["--home", str(tmp_path / "a"), "--listen", "/ip4/127.0.0.1/tcp/0"]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        process_group=0,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    printed = []
    for line in child.stdout:
        printed.append(line)
        if line.startswith("step 2/"):
            break
    children = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
    os.killpg(child.pid, signal.SIGINT)
    rest, errors = child.communicate(timeout=60)

    assert child.returncode == 0, errors
    assert "Go on later with:  potluck start" in rest
    text = "".join(printed)
    join_lines = [line for line in printed if line.startswith("potluck join /ip4/127.0.0.1/tcp/")]
    assert len(join_lines) == 1, text
    assert children, "the network daemon ran as our child"
    time.sleep(0.5)
    for pid in children:
        state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
        assert state in ("", "Z"), f"the network daemon {pid} was left behind"
    assert not (tmp_path / "a" / "control.json").exists()
