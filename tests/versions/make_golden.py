"""`python -m versions.make_golden VERSION`, in `tests/`: write golden/VERSION with the present code. Never again later."""

import json
import shutil
import sys

from versions import golden, material

RECIPE = """\
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
sequence_len: 256
sample_packing: true
datasets:
  - path: mine.jsonl
    type: chat_template
val_set_size: 0.05
micro_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 0.0002
lr_scheduler: cosine
warmup_ratio: 0.03
optimizer: adamw_torch_fused
weight_decay: 0.01
max_grad_norm: 1.0
max_steps: 500
evals_per_epoch: 4
save_steps: 50
seed: 7
potluck:
  name: golden
  stages: 4
  wire: star
  activations: lowbit
  on_bad_row: skip
  trust: friends
  averaging:
    mode: gradient
    target_batch_tokens: 8192
    compression: bf16
    round_timeout_s: 30
    min_replicas: 1
"""


def main(version):
    folder = golden.ROOT / version
    assert not folder.exists(), f"{folder} is what {version} wrote: it is never written again"
    try:
        material.write_home(folder / "home")
        (folder / "home" / "lock").unlink(missing_ok=True)
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "recipe.json").write_text(golden.load_recipe(folder / "recipe.yaml").recipe.shared_json())
        read = {}
        for name, data in golden.words().items():
            path = folder / "words" / f"{name}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            read[name] = golden.read_word(name, data)
        values = {
            "home": golden.read_home(folder / "home"),
            "words": read,
            "maths": golden.maths(),
            **golden.read_recipe(folder),
        }
        (folder / "values.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
        (folder / "schema.json").write_text(json.dumps(golden.schema(), indent=1, sort_keys=True) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    main(sys.argv[1])
