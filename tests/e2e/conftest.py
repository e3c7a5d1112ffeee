"""A recipe that makes a step a second on one core, data for three nodes, and nodes that never outlive their test."""

import json
import shutil

import pytest
import torch
from processes import Node
from transformers import AutoConfig, AutoModelForCausalLM

RECIPE = """
base_model: {base_model}
adapter: qlora
lora_r: 8
lora_alpha: 16
sequence_len: 64
sample_packing: true
micro_batch_size: 1
learning_rate: 1e-3
lr_scheduler: constant
warmup_steps: 0
max_steps: {max_steps}
val_set_size: 4
evals_per_epoch: 0
save_steps: 1
seed: 3
potluck:
  name: test
  averaging:
    target_batch_tokens: {target}
    round_timeout_s: 20
"""


@pytest.fixture(scope="session")
def random_model(smollm2, tmp_path_factory):
    """Save a small random model with SmolLM2's tokenizer and return its folder."""

    def save(num_layers):
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(smollm2)
        config.update({"num_hidden_layers": num_layers, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16})
        config.update({"num_attention_heads": 4, "num_key_value_heads": 2})
        folder = tmp_path_factory.mktemp("models") / "random"
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for file in [*smollm2.glob("*token*"), *smollm2.glob("chat_template*")]:
            shutil.copy(file, folder)
        return folder

    return save


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and return its path."""

    def write(base_model, *, max_steps=1000, target=192, name="recipe.yaml", extra=""):
        path = tmp_path / name
        path.write_text(RECIPE.format(base_model=base_model, max_steps=max_steps, target=target) + extra)
        return path

    return write


@pytest.fixture
def data(tmp_path):
    """Write a jsonl file of a node's own and return its path."""

    def write(name, rows=60):
        path = tmp_path / f"{name}.jsonl"
        with path.open("w") as file:
            for number in range(rows):
                text = f"{name} says: the square of {number} is {number * number}, and its cube is {number**3}. " * 2
                file.write(json.dumps({"text": text}) + "\n")
        return path

    return write


@pytest.fixture
def start():
    """Start nodes that are killed when the test ends."""
    nodes = []

    def run(*arguments, **options):
        node = Node(*arguments, **options)
        nodes.append(node)
        return node

    yield run
    for node in nodes:
        node.kill()
