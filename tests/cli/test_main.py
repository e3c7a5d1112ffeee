"""The command line's frame: help, suggestions, exit codes, one place that prints errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.cli.main import VERBS, root

ROOT = Path(__file__).parent.parent.parent


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "node", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    result = CliRunner().invoke(root, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: root {verb}")
    explanation = result.output.split("\n\n")[1].strip()
    assert len(explanation) > 30, "it says what it does, not only which options there are"
    assert VERBS[verb][1].endswith(".")


def test_a_mistyped_verb_is_suggested():
    done = run("statsu")
    assert done.returncode == 2
    assert "Did you mean 'status'?" in done.stderr


def test_no_node_under_a_home_is_exit_code_3_with_what_to_do(tmp_path):
    for verb in ("status", "stop"):
        done = run(verb, "--home", tmp_path)
        assert done.returncode == 3
        assert "No node is running" in done.stderr
        assert "potluck start" in done.stderr


def test_a_pointer_of_a_node_that_was_killed_is_not_a_running_node(tmp_path):
    (tmp_path / "control.json").write_text('{"pid": 999999999, "address": "unix:/nowhere"}')
    assert run("status", "--home", tmp_path).returncode == 3
    for nonsense in ("", "[]", "{}", '{"pid": "x"}', '{"pid": -1}', "\x00" * 9000):
        (tmp_path / "control.json").write_text(nonsense)
        done = run("status", "--home", tmp_path)
        assert done.returncode == 3, nonsense
        assert "Traceback" not in done.stderr


def test_a_recipe_that_is_wrong_is_exit_code_2_with_file_and_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: x\nlora_rank: 8\n")
    done = run("start", recipe, "--home", tmp_path / "home")
    assert done.returncode == 2
    assert "recipe.yaml:2: unknown key 'lora_rank'" in done.stderr
    assert "did you mean 'lora_r'?" in done.stderr


def test_an_address_that_is_none_is_exit_code_2(tmp_path):
    done = run("join", "192.168.1.1:4040", "--data", ROOT / "README.md", "--home", tmp_path / "home")
    assert done.returncode == 2
    assert "is not a node's address" in done.stderr
    assert "/ip4/" in done.stderr


def test_a_model_that_is_not_there_is_exit_code_8(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: ./nowhere.gguf\n")
    done = run(
        "start", recipe, "--data", ROOT / "README.md", "--home", tmp_path / "home", "--listen", "/ip4/127.0.0.1/tcp/0"
    )
    assert done.returncode == 8, done.stderr
    assert "nowhere.gguf" in done.stderr
    assert "Traceback" not in done.stderr
