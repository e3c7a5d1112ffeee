"""Checkpoints for tests of their store."""

import os
from pathlib import Path

from node.training.checkpoint import Checkpoint


def make_checkpoint(version: int, size: int = 3000) -> Checkpoint:
    return Checkpoint(
        fingerprint="a" * 64,
        version=version,
        adapters={0: bytes([version % 256]) * size, 1: os.urandom(100)},
        cursor={"file": "mine.jsonl", "row": version * 10, "nested": [1, None, "é"]},
        counters={"rounds": version},
        random={"dropout": 1 << 100},
    )


def latest(folder: Path) -> Path:
    return max(folder.glob("generation-*"))


def files_of(generation: Path) -> list[Path]:
    return sorted(path for path in generation.iterdir() if path.is_file())
