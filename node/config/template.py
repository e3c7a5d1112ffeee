"""The recipe that `potluck init` writes."""

from __future__ import annotations

TEMPLATE = """\
# A Potluck recipe: what is trained, and how. The key names are Axolotl's, so their recipes can be pasted in.
# `potluck config show FILE` prints every key with its value; `potluck config schema` explains them all.

# The model that everybody adapts: a folder, a GGUF file, or a hub name. All machines need the same one.
base_model: HuggingFaceTB/SmolLM2-135M-Instruct

# The adapter. `qlora` keeps the model's own weights in 4 bits; `lora` keeps them in 16 and needs 4 x the memory.
adapter: qlora
load_in_4bit: true
lora_r: 16               # more rank learns more and sends more over the network
lora_alpha: 32           # usually 2 x lora_r
lora_dropout: 0.0
lora_target_linear: true # adapt every linear layer; or list lora_target_modules: [q_proj, v_proj]

# The data of this machine. It never leaves it. `--data FILE` on the command line goes before this.
# Rows may be messages, prompt/completion, alpaca, sharegpt or text, as jsonl, json, csv, parquet, txt or md.
datasets:
#  - path: mine.jsonl
val_set_size: 0.02       # share (or count) that is held out to measure with
sequence_len: 512        # tokens of the longest example
sample_packing: true     # fill sequences with several examples; they never see each other
train_on_inputs: false   # learn the answers, not the questions

# One step.
micro_batch_size: 2
gradient_accumulation_steps: 4
gradient_checkpointing: false # true: less memory, about a third more time
learning_rate: 2e-4
lr_scheduler: cosine
warmup_ratio: 0.03
weight_decay: 0.0
max_grad_norm: 1.0
num_epochs: 1            # or max_steps: 500

evals_per_epoch: 4
saves_per_epoch: 4
seed: 42
output_dir: ./outputs      # kept for Axolotl; `potluck export peft --output DIR` writes the adapter

# What Axolotl has no key for. Delete this block and the recipe is theirs again.
potluck:
  name: my-run
  stages: auto           # parts that the model is cut into, for machines that cannot hold all of it; 1: never cut
  on_bad_row: fail       # or skip: leave bad rows out and count them
  trust: friends
  averaging:
    mode: gradient
    # Tokens that the swarm sees together before each step. Unset: micro_batch_size x gradient_accumulation_steps
    # x sequence_len. With more machines a larger number keeps the network quiet.
    target_batch_tokens:
    compression: none    # or bf16: half the bytes
    round_timeout_s: 30
    min_replicas: 1
"""
