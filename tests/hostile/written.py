"""Files as they are written by people and programs, and what is in them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import struct
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

SHORT_RECIPE = {"base_model": "a/b", "max_steps": 5, "potluck": {"averaging": {"mode": "gradient"}}}
RECIPE = {
    "base_model": "HuggingFaceTB/SmolLM2-135M",
    "adapter": "qlora",
    "lora_r": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    "sequence_len": 512,
    "max_steps": 100,
    "learning_rate": 2e-4,
    "datasets": [{"path": "a.jsonl", "type": "alpaca", "message_property_mappings": {"role": "from"}}],
    "potluck": {"name": "x", "stages": 4, "averaging": {"target_batch_tokens": 8192, "compression": "bf16"}},
    "val_set_size": 0.05,
}
ROWS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"prompt": "p", "completion": "c", "more": {"deep": [1, 2.5, None]}},
    {"instruction": "i", "input": "", "output": "o"},
    {"text": "some words"},
]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 160,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}


def gguf_bytes(rng: Random | None = None) -> bytes:
    """Return a small GGUF file; with `rng` some of its counts, types and lengths are other numbers."""

    def number(form: str, value: int) -> bytes:
        if rng is not None and rng.random() < 0.04:
            value = rng.choice(
                (0, 1, 2, 7, 33, 255, 1 << 16, 1 << 31, (1 << 32) - 1, *((1 << 33, (1 << 64) - 1) * (form == "Q")))
            )
        return struct.pack(f"<{form}", value)

    def text(value: bytes) -> bytes:
        return number("Q", len(value)) + value

    keys = [
        text(b"general.architecture") + number("I", 8) + text(b"llama"),
        text(b"general.alignment") + number("I", 4) + number("I", 32),
        text(b"tokens") + number("I", 9) + number("I", 8) + number("Q", 2) + text(b"t0") + text(b"t1"),
        text(b"scores") + number("I", 9) + number("I", 6) + number("Q", 3) + bytes(12),
        text(b"flag") + number("I", 7) + b"\x01",
    ]
    tensors = [
        text(b"token_embd.weight")
        + number("I", 2)
        + number("Q", 32)
        + number("Q", 4)
        + number("I", 0)
        + number("Q", 0),
        text(b"blk.0.attn_q.weight")
        + number("I", 2)
        + number("Q", 32)
        + number("Q", 2)
        + number("I", 8)
        + number("Q", 512),
    ]
    head = b"GGUF" + number("I", 3) + number("Q", len(tensors)) + number("Q", len(keys)) + b"".join(keys + tensors)
    return head + b"\x00" * (-len(head) % 32) + bytes(512 + 68)


def rows_as(kind: str, rows: list) -> bytes:
    if kind == "jsonl":
        return b"\n".join(as_json(row) for row in rows)
    if kind == "json":
        return as_json(rows)
    if kind == "txt":
        return "\n".join(map(str, rows)).encode(errors="surrogatepass")
    if kind == "parquet":
        return _parquet(rows)
    out = io.StringIO()
    columns = sorted({str(name) for row in rows if isinstance(row, dict) for name in row}) or ["text"]
    writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([str(row.get(name, "")) if isinstance(row, dict) else str(row) for name in columns])
    return out.getvalue().encode(errors="surrogatepass")


def _parquet(rows: list) -> bytes:
    """Return the rows that a table can hold; others fall back to one column of text."""
    out = io.BytesIO()
    try:
        table = pa.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        pq.write_table(table, out)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError, UnicodeError):
        out = io.BytesIO()
        pq.write_table(pa.table({"text": ["x"] * 3, "n": [1, None, 3]}), out)
    return out.getvalue()


def safetensors_bytes(header: object, body: bytes) -> bytes:
    text = as_json(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def as_yaml(tree: object, indent: str = "") -> bytes:
    """Return a tree as YAML in blocks, as people write it; what is no mapping or list of mappings stays in one line."""
    if not isinstance(tree, dict) or not tree:
        return as_json(tree)
    lines = []
    for name, value in tree.items():
        head = f"{indent}{json.dumps(name, ensure_ascii=False) if not name.isidentifier() else name}:".encode(
            errors="replace"
        )
        if isinstance(value, dict) and value:
            lines += [head, as_yaml(value, indent + "  ")]
        elif isinstance(value, str) and value.isalnum():
            lines.append(head + b" " + value.encode())
        else:
            lines.append(head + b" " + as_json(value))
    return b"\n".join(lines)


def as_json(tree: object) -> bytes:
    return json.dumps(tree).encode()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
