"""`potluck plan`, as a person calls it."""

import json

import psutil
import pytest
from click.testing import CliRunner

from node.cli.plan import command as plan
from node.core.errors import OutOfDeviceMemory, UnsupportedModel, WeightsMissing

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_70B = LLAMA_8B | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose base model is a folder with a configuration and no weights."""

    def write(config: dict, **keys: object):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({"base_model": str(folder), "sequence_len": 512, **keys}))
        return str(path)

    return write


def run(*arguments: str):
    result = CliRunner().invoke(plan, list(arguments))
    if result.exception is not None and not isinstance(result.exception, OutOfDeviceMemory):
        raise result.exception
    return result


def test_plan_adds_up_and_names_bytes_and_seconds_of_a_round(recipe):
    record = json.loads(run(recipe(LLAMA_8B), "--device", "cpu", "--nodes", "8", "--json").output)

    (device,) = record["devices"]
    assert device["needed_bytes"] == sum(device["needs"].values())
    assert device["fits"] == record["fits"] == (device["needed_bytes"] * 1.1 <= device["free_bytes"])
    assert record["model"] == {"family": "llama", "parameters": 8_030_261_248, "trainable": 41_943_040}
    (cost,) = record["rounds"]
    assert cost["payload_bytes"] == 4 * 41_943_040
    assert cost["seconds_at_mbit_per_s"]["100"] == pytest.approx(23.49, abs=0.01)


def test_a_link_that_sets_the_pace_is_said_with_what_would_help(recipe):
    path = recipe(LLAMA_8B)

    plain = json.loads(run(path, "--device", "cpu", "--json").output)
    balanced = ["--set", "potluck.averaging.target_batch_tokens=4000000000"]
    relaxed = json.loads(run(path, "--device", "cpu", "--json", *balanced).output)
    tight = ["--set", "potluck.averaging.target_batch_tokens=1", "--set", "potluck.averaging.compression=bf16"]
    compressed = json.loads(run(path, "--device", "cpu", "--json", *tight).output)

    assert [row["nodes"] for row in plain["rounds"]] == [2, 4, 8]
    speed = plain["tokens_per_s_estimate"]
    assert plain["rounds"][1]["step_s_estimate"] == pytest.approx(2048 / (4 * speed), rel=0.1)
    assert relaxed["link_suggestion"] == ""
    assert compressed["rounds"][0]["slow_at_mbit_per_s"] == [20, 100, 1000] or speed > 1000
    assert "target_batch_tokens" in compressed["link_suggestion"]
    assert "bf16" not in compressed["link_suggestion"]
    assert compressed["rounds"][0]["payload_bytes"] == 2 * 41_943_040


def test_plan_for_people_has_the_table_and_the_verdict(recipe):
    output = run(recipe(LLAMA_8B), "--device", "cpu").output

    for part in ("8,030 M parameters", "41.94 M", "frozen layers", "free now", "Mbit/s", "167.8 MB"):
        assert part in output, part


def test_what_does_not_fit_is_said_with_what_would(recipe):
    too_many = psutil.virtual_memory().total // (4096 * 45 * 32) // 512 + 1
    path = recipe(LLAMA_8B, micro_batch_size=min(4096, 2 * too_many))

    record = json.loads(run(path, "--device", "cpu", "--json").output)

    assert not record["fits"]
    assert "micro_batch_size" in record["suggestion"] or "smaller model" in record["suggestion"]
    quiet = run(path, "--device", "cpu", "-q")
    assert quiet.output == "does not fit\n"
    assert quiet.exception.exit_code == 6
    assert quiet.exception.hint


def test_a_model_that_is_too_large_whatever_the_batch_is_called_so(recipe):
    huge = LLAMA_70B | {"num_hidden_layers": 4000}

    record = json.loads(run(recipe(huge), "--device", "cpu", "--json").output)

    assert "smaller model" in record["suggestion"]


def test_a_recipe_key_can_be_overridden(recipe):
    path = recipe(LLAMA_8B)

    sizes = [
        json.loads(run(path, "--device", "cpu", "--json", "--set", f"lora_r={rank}").output)["model"]["trainable"]
        for rank in (8, 16)
    ]

    assert 2 * sizes[0] == sizes[1]


def test_an_unknown_family_and_a_missing_model_are_refused(recipe, tmp_path):
    with pytest.raises(UnsupportedModel, match="mamba"):
        run(recipe({"model_type": "mamba"}))
    missing = tmp_path / "missing.yaml"
    missing.write_text(f"base_model: {tmp_path}/nothing/here.gguf\n")
    with pytest.raises(WeightsMissing):
        run(str(missing))


def test_a_hub_name_without_a_network_is_a_clear_error(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: nobody/there-is-no-such-model\n")

    with pytest.raises(WeightsMissing, match="cannot be fetched") as caught:
        run(str(path))

    assert "HF_HUB_OFFLINE" in caught.value.hint
