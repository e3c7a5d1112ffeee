"""`potluck plan --peers`, as a person calls it."""

import json

import pytest
from click.testing import CliRunner
from test_plan import LLAMA_8B

from node.cli.plan import command as plan
from node.core.errors import ConfigError, OutOfDeviceMemory

LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


@pytest.fixture
def planned(tmp_path):
    """Plan a recipe on a model whose folder has a configuration and no weights."""

    def run(config: dict, peers: str, *options: str, **keys: object):
        (tmp_path / "config.json").write_text(json.dumps(config))
        path = tmp_path / "recipe.yaml"
        settings = {"adapter": "qlora", "load_in_4bit": True, "sequence_len": 2048, "gradient_checkpointing": True}
        path.write_text(json.dumps({"base_model": str(tmp_path), **settings, **keys}))
        return CliRunner().invoke(plan, [str(path), "--device", "cpu", "--peers", peers, *options])

    return run


def test_record_says_who_holds_which_layers_and_what_sets_the_pace(planned):
    result = planned(LLAMA_70B, "3x3090@100Mbit", "--json", potluck={"activations": "int8", "stages": 80})

    record = json.loads(result.output)
    (pipeline,) = record["pipelines"]
    assert (record["kind"], record["num_stages"], record["wire"], record["activations"]) == (
        "split",
        80,
        "star",
        "int8",
    )
    assert [place["layers"] for place in pipeline["places"]] == [[0, 26], [26, 53], [53, 80]]
    assert [place["drives"] for place in pipeline["places"]] == [True, False, False]
    assert all(place["needed_bytes"] * 1.1 <= place["memory_bytes"] == 24 << 30 for place in pipeline["places"])
    assert pipeline["places"][0]["needed_up_mbit_per_s"] == pytest.approx(90, rel=0.03)
    assert record["tokens_per_s_estimate"] == pytest.approx(336, rel=0.02)
    assert pipeline["slowest"]["part"] == "card"
    assert record["advice"] == ["The card of #2 (3090@100Mbit) sets the pace."]


def test_auto_cuts_as_a_founder_would(planned):
    record = json.loads(planned(LLAMA_8B, "3x8GB", "--json").output)

    (pipeline,) = record["pipelines"]
    assert 2 < record["num_stages"] < 32
    assert pipeline["places"][-1]["stages"][1] == record["num_stages"]
    assert pipeline["places"][-1]["layers"][1] == 32


def test_a_person_reads_table_pace_and_advice(planned):
    output = planned(LLAMA_8B, "8GB@20Mbit,2x24GB@20Mbit").output

    for part in ("#1 (8GB@20Mbit) *", "#2 (24GB@20Mbit)", "tokens/s together", "Leave #", "sets the pace"):
        assert part in output, part


def test_quiet_says_the_kind_alone(planned):
    assert planned(LLAMA_8B, "2x24GB", "-q").output == "replicate\n"


def test_machines_that_cannot_hold_the_model_end_with_an_error_that_says_what_they_lack(planned):
    result = planned(LLAMA_70B, "8GB@100Mbit,12GB,24GB", "--json")

    assert isinstance(result.exception, OutOfDeviceMemory)
    assert "lack about" in str(result.exception)
    assert result.exception.hint
    assert json.loads(result.output)["kind"] == "impossible"


def test_machines_that_are_none_are_refused(planned):
    result = planned(LLAMA_8B, "8GB@fast")

    assert isinstance(result.exception, ConfigError)
    assert "'fast'" in str(result.exception)
