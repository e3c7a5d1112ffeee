"""`potluck init` and `potluck config`, as a person calls them."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from node.cli.config import command as config
from node.cli.init import command as init
from node.config.load import load_recipe
from node.core.errors import ConfigError


def test_init_writes_a_recipe_that_loads_and_prints_the_next_command(tmp_path):
    path = tmp_path / "recipe.yaml"

    result = CliRunner().invoke(init, [str(path)], catch_exceptions=False)

    assert load_recipe(path).recipe.adapter == "qlora"
    assert result.output.splitlines()[-1] == f"potluck start {path} --data mine.jsonl"


def test_init_leaves_an_existing_file_alone_unless_forced(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")

    with pytest.raises(ConfigError, match="exists already") as refusal:
        CliRunner().invoke(init, [str(path)], catch_exceptions=False)

    assert path.read_text() == "mine"
    assert "--force" in refusal.value.hint
    CliRunner().invoke(init, [str(path), "--force", "-q"], catch_exceptions=False)
    assert path.read_text() != "mine"


def test_config_show_prints_each_value_with_its_origin(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: m\nwandb_project: p\n")

    result = CliRunner().invoke(config, ["show", str(path), "--set", "lora_r=8"], catch_exceptions=False)

    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "base_model: m # recipe.yaml:1" in lines
    assert "lora_r: 8 # --set" in lines
    assert lines[-1].startswith("# note: wandb_project:")


def test_config_show_as_json_is_one_object(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: m\n")

    result = CliRunner().invoke(config, ["show", str(path), "--json"], catch_exceptions=False)

    record = json.loads(result.output)
    assert record["recipe"]["base_model"] == "m"
    assert record["origins"]["base_model"] == "recipe.yaml:1"


def test_config_schema_is_a_json_schema():
    result = CliRunner().invoke(config, ["schema"], catch_exceptions=False)

    assert "lora_r" in json.loads(result.output)["properties"]


def test_config_verbs_need_no_torch():
    heavy = ("torch", "numpy", "datasets")
    code = f"import sys, node.cli.init, node.cli.config; print([m for m in {heavy} if m in sys.modules])"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def test_refused_recipe_ends_with_exit_code_2_and_its_lines(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: m\nlora_rank: 4\n")

    result = subprocess.run([sys.executable, "-m", "node", "config", "show", str(path)], capture_output=True, text=True)

    assert result.returncode == 2
    assert "recipe.yaml:2: unknown key 'lora_rank'" in result.stderr
    assert "did you mean 'lora_r'?" in result.stderr
