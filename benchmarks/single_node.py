"""How fast is one node, and in how much memory, against transformers' Trainer with peft and bitsandbytes?

The same model (SmolLM2-135M in NF4), the same data in the same order, the same adapter at the same start, one core,
each run in a process of its own, engines in turns. Compared are medians of tokens per CPU second (tokens of padding
do not count) and of the peak of memory above the loaded model. Engines:

    ours         bf16, no checkpointing
    best-sdpa    Trainer as fast as it goes: bf16 model, no k-bit preparation, no checkpointing; SDPA attention
    best-eager   the same with eager attention; the faster of the two counts
    usual        what most recipes do: prepare_model_for_kbit_training (with its checkpointing) and bf16=True

Cases: `packed` is 4 x 512 tokens of text; `ragged` is 8 conversations of different lengths, which Trainer pads.

    python -m benchmarks.single_node [--quick] [--runs 3] [--steps 8] [--core 0]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parent.parent))

from platformdirs import user_cache_path

from node.data.demo_data import write_docstrings
from node.data.formats import Chat, Message
from node.data.templates import ChatRenderer, Encoder, cut
from node.demo.model import find_demo_gguf
from node.model.source import load_tokenizer, resolve_base_model

TOKENS, PACKED_ROWS, RAGGED_ROWS = 512, 4, 8
ENGINES = {"packed": ("ours", "best-sdpa", "best-eager", "usual"), "ragged": ("ours", "best-sdpa", "best-eager")}
GOALS = {"packed against best": 1.3, "packed against usual": 2.0, "ragged against best": 2.0}
MEMORY_GOAL = 0.5


def make_data(folder: Path, model: Path, steps: int) -> Path:
    """Write the batches of both cases as one JSON file."""
    tokenizer = load_tokenizer(model)
    ids = tokenizer("\n".join(topics.values()), verbose=False)["input_ids"]
    windows = [ids[start : start + TOKENS] for start in range(0, steps * PACKED_ROWS * TOKENS, TOKENS)]
    packed = [{"input_ids": window, "labels": [-100, *window[1:]]} for window in windows]

    write_docstrings(folder / "rows.jsonl", steps * RAGGED_ROWS)
    renderer, encoder = ChatRenderer(tokenizer, "tokenizer_default"), Encoder(tokenizer, TOKENS)
    rows = [json.loads(line)["messages"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    chats = [Chat(tuple(Message(m["role"], m["content"]) for m in messages)) for messages in rows]
    documents = [cut(document, TOKENS) for document in encoder.chats([renderer.render(chat) for chat in chats])]
    ragged = [{"input_ids": list(d.input_ids), "labels": list(d.labels)} for d in documents]
    batches = {"packed": in_batches(packed, PACKED_ROWS), "ragged": in_batches(ragged, RAGGED_ROWS)}
    (folder / "data.json").write_text(json.dumps(batches))
    return folder / "data.json"


def in_batches(rows: list[dict], size: int) -> list[list[dict]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def run_once(case: str, engine: str, options: argparse.Namespace, data: Path, model: Path) -> dict:
    arguments = [case, engine, str(options.steps), str(data), str(model), str(options.core)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.single_node_run", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    if done.returncode:
        sys.exit(f"{case} {engine} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def median(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def report(case: str, runs: dict[str, list[dict]], padding: float) -> dict:
    """Print the table of one case; return its ratios."""
    print(f"\n{case}" + (f" ({padding:.0%} of the Trainer's tokens are padding)" if padding else ""))
    print(f"{'engine':12} {'tokens/CPU s':>13} {'tokens/s':>9} {'peak MiB above the weights':>27}   losses")
    for engine, records in runs.items():
        losses = " ".join(f"{loss:.3f}" for loss in records[0]["losses"])
        speed, wall = median(records, "tokens_per_cpu_s"), median(records, "tokens_per_s")
        print(f"{engine:12} {speed:13.0f} {wall:9.0f} {median(records, 'peak_mib'):27.0f}   {losses}")
    ours = runs["ours"]
    best = max(("best-sdpa", "best-eager"), key=lambda engine: median(runs[engine], "tokens_per_cpu_s"))
    ratios = {f"{case} against best": median(ours, "tokens_per_cpu_s") / median(runs[best], "tokens_per_cpu_s")}
    if "usual" in runs:
        ratios[f"{case} against usual"] = median(ours, "tokens_per_cpu_s") / median(runs["usual"], "tokens_per_cpu_s")
    ratios[f"{case} memory"] = median(ours, "peak_mib") / median(runs[best], "peak_mib")
    apart = max(abs(a - b) / b for a, b in zip(ours[0]["losses"], runs[best][0]["losses"], strict=True))
    ratios[f"{case} losses apart"] = apart
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of four steps: about four minutes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.steps = 1, 4
    cache = user_cache_path("potluck") / "models"
    model = resolve_base_model(str(find_demo_gguf(cache)), cache=cache)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = make_data(Path(scratch), model, options.steps)
        batches = json.loads(data.read_text())
        for case, engines in ENGINES.items():
            runs: dict[str, list[dict]] = {engine: [] for engine in engines}
            for _ in range(options.runs):
                for engine in engines:
                    runs[engine].append(run_once(case, engine, options, data, model))
            lengths = [[len(row["input_ids"]) for row in rows] for rows in batches[case]]
            padding = 1 - sum(map(sum, lengths)) / sum(max(rows) * len(rows) for rows in lengths)
            ratios |= report(case, runs, padding)
    print()
    for name, value in ratios.items():
        goal = f"at least {GOALS[name]}" if name in GOALS else f"at most {MEMORY_GOAL}" if "memory" in name else ""
        print(f"{name:22} {value:7.3f}   {'goal: ' + goal if goal else ''}")
    print(json.dumps({"benchmark": "single_node", "runs": options.runs, "steps": options.steps, **ratios}))


if __name__ == "__main__":
    main()
