"""Write an adapter as peft reads it: a folder with weights, configuration and a model card.

The folder appears whole or not at all, and nothing in it tells of this machine or of the data: no paths, no rows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import peft
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from node.core.errors import ConfigError, OutOfDisk
from node.core.files import room_text, sync
from node.model.spec import LoraSpec

_PREFIX = "base_model.model."
_WEIGHTS, _CONFIG, _CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
_CHECKSUMS = "SHA256SUMS"
"""For `sha256sum -c`: the files go to other programs, whose formats have no checksum."""
_PRODUCER = "potluck"
_PARAMETER = re.compile(r"(?:[A-Za-z0-9_]+\.)*([A-Za-z0-9_]+)\.(?:lora_[AB]\.weight|lora_magnitude_vector)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}
_PACKAGES = ("potluck", "peft", "transformers", "torch")


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What the model card tells about the run."""

    name: str
    """Of the run, for people."""
    rounds: int
    """Optimizer steps behind the adapter."""
    tokens: int
    """Tokens of all contributors together."""
    contributors: int
    """Nodes that gave tokens, as far as this node knows."""
    base_loss: float | None = None
    """Held-out loss of the base model in nats per token, on the exporting node's own held-out data."""
    adapter_loss: float | None = None
    """The same with the adapter."""


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    lora: LoraSpec,
    *,
    base_model: str,
    card: AdapterCard,
    force: bool = False,
) -> int:
    """Write a PEFT adapter folder that `PeftModel.from_pretrained` loads.

    Args:
        folder: Where to put it. An earlier export of ours there is replaced.
        tensors: Parameters by peft's names without `base_model.model.`, fp32 on the CPU.
        lora: The settings they were trained with.
        base_model: The recipe's name for the base model. Of a path only the last part is written.
        card: What the model card says.
        force: Replace whatever is there; it is kept beside, under another name.

    Returns:
        Bytes written.

    Raises:
        ConfigError: `folder` holds something that is not an export of ours, or cannot be written.
        OutOfDisk: The disk is full or read-only.
    """
    folder = folder.absolute()
    keep_old = _check_target(folder, force=force)
    _recover(folder)
    scratch = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    try:
        scratch.mkdir(parents=True)
        _write(scratch, tensors, lora, _public_name(base_model), card)
        size = sum(path.stat().st_size for path in scratch.iterdir())
        _swap(scratch, folder, keep_old=keep_old)
    except OSError as error:
        raise _explain(error, folder, tensors) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return size


def _recover(folder: Path) -> None:
    """Clean up after exports to this folder that were killed: half a new one goes, and our old one comes back."""
    leftover = re.compile(re.escape(f".{folder.name}-") + "(old-)?[0-9a-f]{16}")
    with contextlib.suppress(OSError):
        found = [path for path in folder.parent.iterdir() if leftover.fullmatch(path.name)]
        for path in found:
            if not folder.exists() and _is_ours(path):  # nothing else has the name: it was cut off between two renames
                path.rename(folder)
            else:
                shutil.rmtree(path, ignore_errors=True)


def target_modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the short names of the layers that have an adapter, e.g. `q_proj`, sorted."""
    matches = {name: _PARAMETER.fullmatch(name) for name in tensors}
    unknown = sorted(name for name, match in matches.items() if match is None)
    assert tensors, "there is no adapter to write"
    assert not unknown, f"these are not names of LoRA parameters: {unknown[:3]}"
    return sorted({match[1] for match in matches.values() if match})


def _check_target(folder: Path, *, force: bool) -> bool:
    """Return whether what is at `folder` must be kept; refuse to replace what we did not write."""
    if not folder.exists() or _is_ours(folder):
        return False
    if folder.is_dir() and not any(folder.iterdir()):
        return False
    if not force:
        raise ConfigError(
            f"Cannot export to {folder}: it exists and is not an adapter that Potluck wrote.",
            hint="Give another --output, or --force, which moves what is there aside.",
        )
    return True


def _is_ours(folder: Path) -> bool:
    """Return whether `folder` holds an export of ours and nothing else."""
    weights = folder / _WEIGHTS
    if not weights.is_file() or {path.name for path in folder.iterdir()} - {_WEIGHTS, _CONFIG, _CARD, _CHECKSUMS}:
        return False
    try:
        with safe_open(weights, framework="pt") as file:
            return (file.metadata() or {}).get("producer") == _PRODUCER
    except (SafetensorError, OSError):
        return False


def _write(folder: Path, tensors: Mapping[str, Tensor], lora: LoraSpec, base_model: str, card: AdapterCard) -> None:
    modules = target_modules(tensors)
    data = save(
        {_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()},
        metadata={"format": "pt", "producer": _PRODUCER},
    )
    # Written here, not by safetensors: its own error for a full disk has neither errno nor class.
    (folder / _WEIGHTS).write_bytes(data)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
        r=lora.r,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        bias="none",
    )
    config.save_pretrained(folder)
    (folder / _CARD).write_text(_render_card(modules, lora, base_model, card), encoding="utf-8")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / _CHECKSUMS).write_text("".join(sums), encoding="ascii")
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def _swap(scratch: Path, folder: Path, *, keep_old: bool) -> None:
    """Put `scratch` in the place of `folder`, which may exist."""
    mark = secrets.token_hex(8)
    old = folder.with_name(f"{folder.name}.replaced-{mark}" if keep_old else f".{folder.name}-old-{mark}")
    if folder.exists():
        folder.rename(old)
    try:
        scratch.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    if not keep_old:
        shutil.rmtree(old, ignore_errors=True)


def _public_name(base_model: str) -> str:
    """Return what may be told of the base model: a hub name as it is, a path's last part alone."""
    if _HUB_NAME.fullmatch(base_model) and not Path(base_model).exists():
        return base_model
    return Path(base_model).name or "unknown"


def _render_card(modules: list[str], lora: LoraSpec, base_model: str, card: AdapterCard) -> str:
    on_hub = _HUB_NAME.fullmatch(base_model) is not None
    kind = " + ".join(["DoRA" if lora.use_dora else "LoRA"] + ["rsLoRA"] * lora.use_rslora)
    rows = [
        ("Base model", f"`{_plain(base_model)}`" + ("" if on_hub else " (a local copy; use the same one)")),
        ("Adapter", f"{kind}, rank {lora.r}, alpha {lora.alpha:g}, on {', '.join(modules)}"),
        ("Rounds", f"{card.rounds:,}"),
        ("Tokens", f"{card.tokens:,}"),
        ("Contributors", f"{card.contributors:,}"),
    ]
    for label, loss in (("Held-out loss, base model", card.base_loss), ("with the adapter", card.adapter_loss)):
        if loss is not None:
            rows.append((label, f"{loss:.4f} nats per token (perplexity {math.exp(min(loss, 700.0)):.2f})"))
    rows.append(("Versions", ", ".join(f"{name} {found}" for name, found in _versions())))
    header = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "potluck"]}
    if on_hub:
        header = {"base_model": base_model, **header}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]
    lines += [f"# {_plain(card.name)}", "", "An adapter that several computers trained together, with Potluck.", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows), ""]
    load = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM", ""]
    load += [f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base_model)})"]
    load += ['model = PeftModel.from_pretrained(base, "path/to/this/folder")']
    lines += ["```python", *load, "```", "", f"`sha256sum -c {_CHECKSUMS}` says whether these files are whole.", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return `text` without what could be markup in a card: it may come from somebody else's recipe."""
    return re.sub(r"[^\w .:@/+-]", "", text)[:100].strip() or "unnamed"


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, version(name).split("+")[0]))
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return found


def _explain(error: OSError, folder: Path, tensors: Mapping[str, Tensor]) -> ConfigError | OutOfDisk:
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    what = f"Cannot export to {folder}: {error.strerror or error}. {room_text(folder.parent, needed)}"
    if error.errno in _DISK_ERRORS:
        return OutOfDisk(what, hint="Make room there, or give another --output.")
    return ConfigError(what, hint="Give an --output that can be written.")
