"""What leaves the machine of a recipe, what is taken from a stranger's, and what makes two runs one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config.recipe import LOCAL_KEYS, MAX_SHARED_BYTES, Recipe, differing_fields
from node.core.errors import ConfigError, NodeError, RunMismatch


def a_recipe(**values):
    return Recipe.model_validate({"base_model": "m", "datasets": [{"path": "/home/me/diary.jsonl"}], **values})


def test_published_recipe_holds_no_data_and_no_folder():
    text = a_recipe(output_dir="/home/me/out").shared_json()

    assert "diary" not in text
    assert "/home/me" not in text
    assert "datasets" not in text


def test_published_recipe_comes_back_the_same():
    founder = a_recipe(lora_r=8, learning_rate=1e-5, lora_target_modules=["q_proj"], potluck={"name": "run"})

    joiner = Recipe.from_shared_json(founder.shared_json())

    assert joiner.agreed() == founder.agreed()
    assert joiner.fingerprint("aa") == founder.fingerprint("aa")
    assert joiner.datasets == ()
    assert joiner.shared_json() == founder.shared_json()


@pytest.mark.parametrize("extra", [{"datasets": [{"path": "/home/you/.ssh"}]}, {"output_dir": "/home/you"}])
def test_recipe_of_a_peer_cannot_name_files_of_this_machine(extra):
    text = json.dumps({**json.loads(a_recipe().shared_json()), **extra})

    with pytest.raises(RunMismatch, match="names data or folders of this machine"):
        Recipe.from_shared_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_r": 0}, {"lora_r": 1025}, {"lora_r": "8"}, {"sequence_len": 1 << 21}, {"learning_rate": 11}, {"learning_rate": 0},
        {"micro_batch_size": 5000}, {"base_model": ""}, {"base_model": "x" * 2000}, {"lora_target_modules": ["(a+)+$"]},
        {"lora_target_modules": ["q"] * 65}, {"unknown": 1}, {"seed": -1}, {"bf16": "maybe"}, {"potluck": {"stages": 0}},
        {"potluck": {"trust": "strangers"}}, {"chat_template": "{{ evil }}"},
    ],
    ids=str,
)  # fmt: skip
def test_value_out_of_bounds_from_a_peer_is_refused(change):
    text = json.dumps({**json.loads(a_recipe().shared_json()), **change})

    with pytest.raises(RunMismatch, match="cannot be read"):
        Recipe.from_shared_json(text)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "{", "[" * 60_000, "1" * 60_000, '{"lora_r":' + "9" * 5000 + "}", b"\xff\xfe", "NaN", "x" * MAX_SHARED_BYTES * 2],
    ids=["empty", "no-key", "list", "null", "torn", "deep", "digits", "long-number", "bytes", "nan", "large"],
)  # fmt: skip
def test_garbage_from_a_peer_is_refused_as_such(text):
    with pytest.raises(RunMismatch):
        Recipe.from_shared_json(text)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_of_a_peer_raise_anything_else(text):
    with pytest.raises(NodeError):
        Recipe.from_shared_json(text)


def test_not_a_number_does_not_pass_as_a_learning_rate():
    text = a_recipe().shared_json().replace('"learning_rate":0.0002', '"learning_rate":NaN')

    with pytest.raises(RunMismatch):
        Recipe.from_shared_json(text)


def test_joiner_may_change_its_own_keys_and_no_others():
    shared = a_recipe(micro_batch_size=8).shared_json()

    mine = Recipe.from_shared_json(
        shared, {"micro_batch_size": 1, "datasets": [{"path": "mine.jsonl"}], "potluck.on_bad_row": "skip"}
    )

    assert mine.micro_batch_size == 1
    assert mine.datasets[0].path == "mine.jsonl"
    assert mine.potluck.on_bad_row == "skip"
    assert mine.fingerprint("aa") == Recipe.from_shared_json(shared).fingerprint("aa")
    with pytest.raises(ConfigError, match="'lora_r' cannot be changed on this machine alone"):
        Recipe.from_shared_json(shared, {"lora_r": 4})
    with pytest.raises(ConfigError, match=r"'datasets.0.path': there is no such key"):
        Recipe.from_shared_json(shared, {"datasets.0.path": "x"})
    with pytest.raises(ConfigError, match="micro_batch_size"):
        Recipe.from_shared_json(shared, {"micro_batch_size": 0})


LOCAL_CHANGES = {
    "datasets": [], "output_dir": "b", "base_model": "other", "revision_of_model": "v2", "val_set_size": 0.5,
    "gradient_checkpointing": True, "evals_per_epoch": 2, "eval_steps": 3, "saves_per_epoch": 2, "save_steps": 3,
    "potluck.on_bad_row": "skip",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LOCAL_KEYS - {"micro_batch_size", "gradient_accumulation_steps"}))
def test_local_key_leaves_the_fingerprint_alone(name):
    before = a_recipe()

    after = before.with_local({name: LOCAL_CHANGES[name]})

    assert after != before
    assert after.fingerprint("aa") == before.fingerprint("aa")


AGREED_CHANGES = {
    "adapter": "lora", "load_in_4bit": False, "lora_r": 4, "lora_alpha": 3, "lora_dropout": 0.1,
    "lora_target_modules": ["q_proj"], "lora_target_linear": False, "peft_use_rslora": True, "peft_use_dora": True,
    "sequence_len": 64, "sample_packing": True, "train_on_inputs": True, "chat_template": "chatml",
    "excess_length_strategy": "truncate", "bf16": False, "learning_rate": 1e-3, "lr_scheduler": "linear",
    "warmup_steps": 3, "warmup_ratio": 0.2, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6,
    "weight_decay": 0.1, "max_grad_norm": 2, "num_epochs": 7, "max_steps": 7, "seed": 7, "potluck.name": "n",
    "potluck.stages": 1, "potluck.averaging.target_batch_tokens": 7, "potluck.averaging.compression": "bf16",
    "potluck.averaging.round_timeout_s": 7, "potluck.averaging.min_replicas": 7, "potluck.wire": "chain",
    "potluck.activations": "bf16",
}  # fmt: skip


def nested(name, value):
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def test_every_agreed_key_has_a_change_to_try():
    choices_of_one = {"optimizer", "potluck.trust", "potluck.averaging.mode"}

    assert a_recipe().agreed().keys() == AGREED_CHANGES.keys() | choices_of_one


@pytest.mark.parametrize("name", sorted(AGREED_CHANGES))
def test_agreed_key_changes_the_fingerprint_and_is_named(name):
    before = a_recipe(adapter="lora", load_in_4bit=True, lora_target_modules=["v_proj"], lora_target_linear=True)
    given = {"adapter": "lora", "load_in_4bit": True, "lora_target_modules": ["v_proj"], "lora_target_linear": True}
    if name == "adapter":
        before = a_recipe(**{**given, "adapter": "qlora"})

    after = a_recipe(**{**given, **nested(name, AGREED_CHANGES[name])})

    assert after.fingerprint("aa") != before.fingerprint("aa")
    assert name in [field for field, _, _ in differing_fields(before, after)]


def test_another_base_model_is_another_run():
    assert a_recipe().fingerprint("aa") != a_recipe().fingerprint("bb")


def test_differing_fields_names_both_values():
    mine, theirs = a_recipe(lora_r=8), a_recipe(lora_r=16, micro_batch_size=1)

    assert differing_fields(mine, theirs) == [("lora_r", 8, 16)]


def test_target_batch_is_resolved_before_it_is_shared():
    recipe = a_recipe(micro_batch_size=2, gradient_accumulation_steps=3, sequence_len=64)

    assert recipe.potluck.averaging.target_batch_tokens == 384
    assert recipe.with_local({"micro_batch_size": 1}).potluck.averaging.target_batch_tokens == 384


@pytest.mark.parametrize(
    ("values", "steps"), [({}, 30), ({"warmup_steps": 7}, 7), ({"warmup_ratio": 0.0995}, 100), ({"warmup_steps": 0}, 0)]
)
def test_warmup_counts_steps(values, steps):
    assert a_recipe(**values).warmup(1000) == steps


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ({}, 25),
        ({"evals_per_epoch": 2}, 50),
        ({"evals_per_epoch": 0}, None),
        ({"eval_steps": 7}, 7),
        ({"eval_steps": 0.1}, 20),
    ],
)
def test_eval_interval_counts_steps(values, interval):
    assert a_recipe(**values).eval_interval(steps_per_epoch=100, total_steps=200) == interval
