"""Recipes as people write them: each loads, or is refused with what to change."""

from pathlib import Path

import pytest

from node.config.load import load_recipe
from node.config.template import TEMPLATE
from node.core.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"
WEIGHTS = "the base model's own weights and vocabulary stay as they are"
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_llama_3_qlora_recipe_loads_with_its_empty_keys():
    loaded = load_recipe(RECIPES / "llama-3-qlora.yml")

    recipe = loaded.recipe
    assert (recipe.adapter, recipe.load_in_4bit, recipe.lora_r, recipe.lora_alpha) == ("qlora", True, 32, 16)
    assert (recipe.sequence_len, recipe.micro_batch_size, recipe.num_epochs) == (4096, 2, 4)
    assert recipe.optimizer == "adamw_torch"
    assert recipe.learning_rate == 2e-4
    assert recipe.warmup_steps == 10
    assert recipe.lora_target_linear
    assert recipe.lora_target_modules == ()
    assert recipe.datasets[0].path == "aaditya/alpaca_subset_1"
    assert recipe.datasets[0].type == "alpaca"
    assert recipe.potluck.averaging.target_batch_tokens == 4 * 2 * 4096
    noted = " ".join(loaded.notes)
    assert "optimizer: paged_adamw_32bit" in noted
    assert "flash_attention" in noted
    assert "special_tokens" in noted
    assert "wandb" not in noted, "an empty key is unset and needs no note"


def test_mistral_completion_recipe_loads_with_its_1e_5():
    loaded = load_recipe(RECIPES / "mistral-completion.yml")

    recipe = loaded.recipe
    assert recipe.learning_rate == 1e-5
    assert recipe.lr_scheduler == "constant"
    assert recipe.warmup_ratio == 0.1
    assert recipe.datasets[0].type == "text"
    assert recipe.datasets[0].field == "body"
    assert recipe.lora_target_modules == ("gate_proj", "down_proj", "up_proj", "q_proj", "v_proj", "k_proj", "o_proj")
    assert not recipe.lora_target_linear
    assert [note for note in loaded.notes if note.startswith("wandb_project: each machine's owner chooses")]


def test_qwen3_chat_recipe_loads_with_its_plugins_and_kernels():
    loaded = load_recipe(RECIPES / "qwen3-chat.yml")

    recipe = loaded.recipe
    assert recipe.chat_template == "tokenizer_default"
    assert recipe.gradient_checkpointing is True
    spec = recipe.datasets[0]
    assert (spec.type, spec.split, spec.field_messages) == ("messages", "train[:20%]", "conversations")
    assert spec.message_property_mappings
    assert spec.message_property_mappings.content == "value"
    kernels = [note for note in loaded.notes if "lora_mlp_kernel" in note]
    assert len(kernels) == 1, "one note for the group"
    assert "plugins" in kernels[0]
    assert "lora_qkv_kernel" in kernels[0]


@pytest.mark.parametrize(
    ("file", "lines", "hints"),
    [
        (
            "gemma-2-deepspeed.yml",
            [
                "gemma-2-deepspeed.yml:6: 'trust_remote_code' is refused: code that comes with a model is never run",
                "gemma-2-deepspeed.yml:12: 'lora_modules_to_save' is refused: " + WEIGHTS,
                "gemma-2-deepspeed.yml:31: 'deepspeed' is refused: Potluck splits the work over the machines itself",
            ],
            [
                "gemma-2-deepspeed.yml:6: delete it; the supported families need none",
                "gemma-2-deepspeed.yml:31: delete it; `potluck join` adds machines",
            ],
        ),
        (
            "phi-3-fsdp.yml",
            [
                "phi-3-fsdp.yml:4: 'load_in_8bit' is refused: 8-bit weights are not supported",
                "phi-3-fsdp.yml:28: 'fsdp' is refused: Potluck splits the work over the machines itself",
                "phi-3-fsdp.yml:31: 'fsdp_config' is refused: Potluck splits the work over the machines itself",
            ],
            ["write load_in_4bit: true with adapter: qlora, or adapter: lora for 16-bit weights"],
        ),
        (
            "llama-factory.yaml",
            [
                "llama-factory.yaml:2: unknown key 'model_name_or_path'",
                "llama-factory.yaml:3: unknown key 'quantization_bit'",
                "llama-factory.yaml:5: unknown key 'stage'",
                "llama-factory.yaml:6: unknown key 'do_train'",
                "llama-factory.yaml:7: unknown key 'finetuning_type'",
                "... and 5 more",
            ],
            ["`model_name_or_path` is LLaMA-Factory's; here it is `base_model`"],
        ),
    ],
)
def test_recipe_is_refused_with_every_line_and_what_to_change(file, lines, hints):
    with pytest.raises(ConfigError) as refusal:
        load_recipe(RECIPES / file)

    assert str(refusal.value).splitlines() == lines
    assert all(hint in refusal.value.hint for hint in hints), refusal.value.hint


def test_phi_3_recipe_loads_once_the_refused_lines_are_changed(tmp_path):
    text = (RECIPES / "phi-3-fsdp.yml").read_text().partition("fsdp:")[0].replace("load_in_8bit: true", "")
    path = tmp_path / "phi.yml"
    path.write_text(text)

    recipe = load_recipe(path).recipe

    assert recipe.adapter == "lora"
    assert not recipe.load_in_4bit
    assert recipe.adam_beta2 == 0.95


def test_recipe_that_init_writes_loads_without_a_note(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TEMPLATE)

    loaded = load_recipe(path)

    assert loaded.notes == ()
    assert loaded.recipe.datasets == ()
    assert loaded.recipe.potluck.averaging.target_batch_tokens == 2 * 4 * 512


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_recipe_loads_without_a_note(path):
    loaded = load_recipe(path)

    assert loaded.notes == ()
    assert loaded.recipe.adapter == "qlora"


def test_a_recipe_is_shipped_for_each_family():
    assert {path.stem for path in CONFIGS} >= {
        "smollm2-demo", "llama-3.1-8b", "qwen3-8b", "mistral-7b", "gemma-2-9b", "phi-3-mini",
    }  # fmt: skip
