"""One run of `benchmarks.single_node`, in a process of its own: ours, or transformers' Trainer with peft.

python -m benchmarks.single_node_run CASE ENGINE STEPS DATA.json MODEL_FOLDER CORE     # prints one line of JSON
"""

import json
import os
import sys
import time
from array import array
from pathlib import Path

import peft
import torch
import transformers

from node.core.types import Document, Microbatch
from node.model.lora import initial_a
from node.model.shard import load_shard
from node.model.spec import LoadSpec, LoraSpec
from node.training.adapter import StageAdapter
from node.training.optimizer import AdamWSettings

RANK, ALPHA, RATE, SEED = 16, 32.0, 1e-4, 7
FIRST_TIMED = 2
"""Steps before it warm up allocators and the code that oneDNN makes."""


def memory(key: str) -> float:
    """Return a figure of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) / 1024


class Clock:
    """Notes CPU and wall seconds of each step, and memory from the end of the load on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the load
        self.loaded_mib = memory("VmRSS")
        self.steps: list[tuple[float, float]] = []

    def begin(self) -> None:
        self._started = (time.process_time(), time.perf_counter())

    def end(self) -> None:
        self.steps.append((time.process_time() - self._started[0], time.perf_counter() - self._started[1]))


def run_ours(folder: Path, batches: list[list[dict]]) -> tuple[Clock, list[float]]:
    shard = load_shard(folder, LoadSpec(lora=LoraSpec(r=RANK, alpha=ALPHA), seed=SEED))
    adapter = StageAdapter(0, shard.lora)
    settings = AdamWSettings()
    clock, losses = Clock(), []
    for position, rows in enumerate(batches):
        documents = [Document(array("i", row["input_ids"]), array("i", row["labels"])) for row in rows]
        batch = Microbatch.of(position, documents)
        clock.begin()
        loss = shard.train_microbatch(batch, dropout_seed=position)
        adapter.count(batch.num_tokens, batch.num_labels)
        sealed = adapter.seal()
        mean = sealed.gradient / sealed.weight
        adapter.step(mean, float(mean.double().square().sum()), sealed.tokens, settings, RATE)
        clock.end()
        losses.append(loss / batch.num_labels)
    return clock, losses


class Timer(transformers.TrainerCallback):
    """Starts the clock when training starts, and reads it at each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_begin(self, *_, **__):
        self.clock = Clock()

    def on_step_begin(self, *_, **__):
        self.clock.begin()

    def on_step_end(self, *_, **__):
        self.clock.end()

    def on_log(self, _args, _state, _control, logs, **__):
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def peft_model(folder: Path, engine: str):
    quantized = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=quantized,
        device_map={"": "cpu"},
        attn_implementation="eager" if engine == "best-eager" else "sdpa",
    )
    if engine == "usual":
        model = peft.prepare_model_for_kbit_training(model)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    with torch.no_grad():  # the same start as ours, so that the losses can be laid side by side
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                module = name.removeprefix("base_model.model.").split(".lora_A.")[0]
                parameter.copy_(initial_a(SEED, module, *parameter.shape))
    return model


def run_trainer(folder: Path, batches: list[list[dict]], engine: str) -> tuple[Clock, list[float]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    timer = Timer()
    arguments = transformers.TrainingArguments(
        output_dir="/tmp/potluck-benchmark-unused",
        max_steps=len(batches),
        per_device_train_batch_size=len(batches[0]),
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=engine == "usual",
        gradient_checkpointing=engine == "usual",
        train_sampling_strategy="sequential",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        model=peft_model(folder, engine),
        args=arguments,
        train_dataset=[row for rows in batches for row in rows],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100),
        callbacks=[timer],
    )
    trainer.train()
    return timer.clock, timer.losses


def main() -> None:
    case, engine, steps, data, folder = sys.argv[1:6]
    batches = json.loads(Path(data).read_text())[case][: int(steps)]
    os.sched_setaffinity(0, {int(sys.argv[6])})
    torch.set_num_threads(1)
    run = run_ours if engine == "ours" else lambda *args: run_trainer(*args, engine)
    clock, losses = run(Path(folder), batches)
    tokens = sum(len(row["input_ids"]) for rows in batches[FIRST_TIMED:] for row in rows)
    timed = clock.steps[FIRST_TIMED:]
    record = {
        "tokens_per_cpu_s": tokens / sum(cpu for cpu, _ in timed),
        "tokens_per_s": tokens / sum(wall for _, wall in timed),
        "peak_mib": memory("VmHWM") - clock.loaded_mib,
        "losses": losses,
    }
    print("\n" + json.dumps(record))


if __name__ == "__main__":
    main()
