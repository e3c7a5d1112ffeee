"""What `load_recipe` says about a recipe that is wrong, and where values come from."""

import re

import pytest

from node.config.load import load_recipe, parse_overrides, schema, show
from node.config.recipe import Recipe
from node.core.errors import ConfigError


@pytest.fixture
def recipe_of(tmp_path):
    """Write a recipe and load it."""

    def load(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return load


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("base_model: m\n\nlora_rank: 4\n", "recipe.yaml:3: unknown key 'lora_rank'", "did you mean 'lora_r'?"),
        ("base_model: m\nsequence_length: 4\n", "recipe.yaml:2: unknown key 'sequence_length'", "did you mean 'sequence_len'?"),
        ("base_model: m\ncutoff_len: 4\n", "recipe.yaml:2: unknown key 'cutoff_len'",
         "`cutoff_len` is LLaMA-Factory's; here it is `sequence_len`"),
        ("base_model: m\nround_timeout_s: 4\n", "recipe.yaml:2: unknown key 'round_timeout_s'",
         "did you mean 'potluck.averaging.round_timeout_s'?"),
        ("base_model: m\npotluck:\n  averaging:\n    compresion: bf16\n",
         "recipe.yaml:4: unknown key 'potluck.averaging.compresion'", "did you mean 'compression'?"),
        ("base_model: m\ndatasets:\n- path: a\n  typ: alpaca\n", "recipe.yaml:4: unknown key 'datasets.0.typ'",
         "did you mean 'type'?"),
        ("base_model: m\nbase_model: n\n", "recipe.yaml:2: 'base_model' is there twice", "keep one of the two lines"),
        ("lora_r: 4\n", "recipe.yaml: 'base_model' is missing", ""),
        ("base_model: m\nlora_r: zero\n",
         "recipe.yaml:2: lora_r: input should be a valid integer, unable to parse string as an integer (it is 'zero')", ""),
        ("base_model: m\nlora_r: 0\n", "recipe.yaml:2: lora_r: input should be greater than or equal to 1 (it is 0)", ""),
        ("base_model: m\nlearning_rate: .inf\n",
         "recipe.yaml:2: learning_rate: input should be a valid number, unable to parse string as a number (it is '.inf')", ""),
        ("base_model: m\npotluck:\n  averaging:\n    mode: diloco\n",
         "recipe.yaml:4: 'diloco' (many local steps per round) is not available yet; use mode: gradient", ""),
        ("base_model: m\npotluck:\n  trust: strangers\n",
         "recipe.yaml:3: 'strangers' is not available yet; use trust: friends with people that you know", ""),
        ("base_model: m\nadapter: qlora\nload_in_4bit: false\n",
         "recipe.yaml: adapter: qlora needs load_in_4bit: true (for 16-bit weights write adapter: lora)", ""),
        ("base_model: m\nwarmup_steps: 1\nwarmup_ratio: 0.1\n",
         "recipe.yaml: warmup_steps and warmup_ratio say the same thing twice; keep one of them", ""),
        ("base_model: m\nlora_target_modules: .*proj\n",
         "recipe.yaml:2: lora_target_modules is a pattern, and patterns are not read",
         "list the layers: lora_target_modules: [q_proj, k_proj, v_proj, o_proj], or lora_target_linear: true"),
        ("base_model: m\noptimizer: lion_8bit\n", "recipe.yaml:2: optimizer: input should be 'adamw_torch' (it is 'lion_8bit')", ""),
        ("base_model: m\nchat_template_jinja: x\n",
         "recipe.yaml:2: 'chat_template_jinja' is refused: a recipe comes from the network and may not carry a program",
         "put the template into the model folder's chat_template.jinja"),
        ("base_model: m\ndatasets:\n- path: a\n  type: dpo.chatml\n",
         "recipe.yaml:4: datasets[0].type is 'dpo.chatml', which is not known here", "known are chat_template, completion"),
        ("base_model: [\n", "recipe.yaml:2: not valid YAML: expected the node content, but found '<stream end>'", "indentation"),
        ("- a\n", "recipe.yaml: expected `key: value` lines at the top", ""),
        ("base_model: !!python/name:os.system x\n", "recipe.yaml:1: tags like `tag:yaml.org,2002:python/name:os.system` are not read", ""),
        ("base_model: m\ndatasets: 3\n", "recipe.yaml:2: datasets: input should be a valid tuple (it is 3)", ""),
        ("base_model: m\npotluck: yes please\n", "recipe.yaml:2: potluck: input should be", ""),
    ],
)  # fmt: skip
def test_wrong_recipe_is_refused_by_line(recipe_of, text, message, hint):
    with pytest.raises(ConfigError) as refusal:
        recipe_of(text)

    assert str(refusal.value).startswith(message), str(refusal.value)
    assert hint in refusal.value.hint


def test_missing_recipe_is_named_with_the_command_that_writes_one(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.yaml: No such file") as refusal:
        load_recipe(tmp_path / "nowhere.yaml")

    assert "potluck init" in refusal.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\n",
        "a: &a [*a]\n",
        "a: " + "[" * 20 + "]" * 20 + "\n",
        "a: " + "[" * 30_000,
        "a: x" + "y" * (1 << 20),
    ],
    ids=["alias-bomb", "alias-to-itself", "deep", "very-deep", "large"],
)
def test_hostile_yaml_is_refused_quickly(recipe_of, text):
    with pytest.raises(ConfigError, match=r"nested|larger than|not valid YAML"):
        recipe_of(text)


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "'1e-5'", "0.00001", "1.0e-05", "1_0e-6"])
def test_small_numbers_are_numbers_however_they_are_written(recipe_of, text):
    assert recipe_of(f"base_model: m\nlearning_rate: {text}\n").recipe.learning_rate == pytest.approx(1e-5)


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("True", True), ("off", False), ("auto", "auto")])
def test_yes_and_no_are_what_yaml_1_1_takes_them_for(recipe_of, text, value):
    assert recipe_of(f"base_model: m\nbf16: {text}\n").recipe.bf16 is value or value == "auto"


def test_empty_key_means_unset_at_every_depth(recipe_of):
    recipe = recipe_of(
        "base_model: m\nlora_r:\ndatasets:\n- path: a\n  type:\npotluck:\n  averaging:\n    compression:\n"
    ).recipe

    assert recipe.lora_r == 16
    assert recipe.datasets[0].type is None
    assert recipe.potluck.averaging.compression == "none"


def test_set_goes_over_the_file_and_the_file_over_the_defaults(recipe_of):
    loaded = recipe_of(
        "base_model: m\nlora_r: 4\nlora_alpha: 8\n",
        "lora_r=64",
        "potluck.averaging.target_batch_tokens=8192",
        "lora_target_modules=[q_proj, v_proj]",
    )

    assert (loaded.recipe.lora_r, loaded.recipe.lora_alpha, loaded.recipe.lora_dropout) == (64, 8, 0.0)
    assert loaded.recipe.potluck.averaging.target_batch_tokens == 8192
    assert loaded.recipe.lora_target_modules == ("q_proj", "v_proj")
    assert loaded.origins["lora_r"] == "--set"
    assert loaded.origins["lora_alpha"] == "recipe.yaml:3"
    assert loaded.origins["lora_dropout"] == "default"
    assert loaded.origins["potluck.averaging.target_batch_tokens"] == "--set"
    assert loaded.origins["lora_target_modules.1"] == "--set"


def test_wrong_set_is_blamed_on_the_command_line(recipe_of):
    with pytest.raises(ConfigError, match=r"^--set: unknown key 'lora_rr'"):
        recipe_of("base_model: m\n", "lora_rr=64")
    with pytest.raises(ConfigError, match=r"expected key=value"):
        parse_overrides(["lora_r"])


def test_show_prints_yaml_that_loads_to_the_same_recipe(recipe_of, tmp_path):
    loaded = recipe_of("base_model: 'a: b'\ndatasets:\n- path: x.jsonl\npotluck:\n  name: 'yes'\n")

    text = show(loaded)

    shown = tmp_path / "shown.yaml"
    shown.write_text(text)
    assert load_recipe(shown).recipe == loaded.recipe
    assert re.search(r"^base_model: 'a: b' +# recipe.yaml:1$", text, re.MULTILINE)
    assert re.search(r"^lora_r: 16 +# default$", text, re.MULTILINE)


def test_schema_explains_every_key():
    properties = schema()["properties"]

    assert set(properties) == set(Recipe.model_fields)
    undescribed = [name for name, value in properties.items() if not value.get("description")]
    assert not undescribed
