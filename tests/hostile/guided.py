"""Coverage-guided fuzzing of all targets, with atheris: `python -m hostile.guided [-runs=N] [CORPUS…]` in `tests/`.

The first byte of an input says which target it is for. Inputs are mutated by libFuzzer, and half of the time by the
targets' own structure-aware damage. What fails is written to `cases/` of this folder, where `test_cases.py` replays it.
Runs for hours as it stands, or as long as libFuzzer's own options say (`-runs=`, `-max_total_time=`).
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

CASES = Path(__file__).parent / "cases"
MAX_INPUT_BYTES = 8192


def main(arguments: list[str]) -> None:
    """Fuzz; ends the process."""
    with atheris.instrument_imports(include=["node"]):
        from hostile.doors import Doors
        from hostile.files import Files
    from hostile.tokenizer import byte_tokenizer

    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    for name in ("doors", "files"):
        (folder / name).mkdir()
    targets = [*Doors(folder / "doors").targets(), *Files(folder / "files", byte_tokenizer()).targets()]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, target in enumerate(targets):
        for seed in target.seeds:
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(bytes([number]) + seed)

    def test_one(data: bytes) -> None:
        if not data:
            return
        target = targets[data[0] % len(targets)]
        try:
            target.run(data[1:])
        except Exception:
            keep(target.name, data[1:])
            raise

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        number = data[0] % len(targets) if data and rng.random() < 0.7 else rng.randrange(len(targets))
        if rng.random() < 0.5 or not data:
            return bytes([number]) + targets[number].make(rng)[: max_size - 1]
        return bytes([number]) + atheris.Mutate(data[1:], max_size - 1)

    options = [f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={folder}/", "-timeout=5", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, *arguments, str(corpus)], test_one, custom_mutator=mutate)
    atheris.Fuzz()


def keep(target: str, data: bytes) -> Path:
    """Keep an input among the cases, and return where."""
    folder = CASES / target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
