"""Turn a GGUF file into a folder in Hugging Face's layout, once, tensor by tensor, and all or nothing.

Names, configuration, tokenizer and what llama.cpp does to a family's weights (permuted heads, shifted norms) are
transformers' own business and code; only that code's loader, which holds the whole model in fp32, is not used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from node.core.errors import NodeError, OutOfDisk, UnsupportedModel
from node.core.files import room_text, sealed, sync, unsealed
from node.core.text import brief
from node.model.families import check_supported
from node.model.gguf_tensors import GgufTable, GgufTensor, read_table, read_values
from node.model.weights import write_bf16

_BLOCK_VALUES = 1 << 20
"""Values that are held at a time of a tensor whose rows stand for themselves; others are held as a whole."""
_PERMUTED = (".attn_q.", ".attn_k.")
_CHECKSUMS = "checksums.potluck"
_SPARE_BYTES = 64 << 20


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model in the file `gguf` to `folder` as bf16 safetensors, configuration and tokenizer.

    Parsing takes about 20 s for a small model, most of it for the vocabulary, hence once and cached. The folder
    appears complete or not at all; whoever calls holds a lock against a second process.

    Raises:
        UnsupportedModel: The file cannot be read, or its model's family is not supported.
        OutOfDisk: The disk is full or read-only.
    """
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    try:
        table = read_table(gguf)
        config = AutoConfig.from_pretrained(**source)
        check_supported({"model_type": config.model_type})
        tokenizer = AutoTokenizer.from_pretrained(**source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        processor = TENSOR_PROCESSORS.get(table.architecture, TensorProcessor)(config=config.to_dict())
        tensors = _by_name(model, table, get_gguf_hf_weights_map(model, processor))
    except NodeError:
        raise
    except Exception as error:  # whatever transformers stumbles over in a header that somebody damaged
        raise _unreadable(gguf, error) from error
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    num_bytes = sum(math.prod(shape) for shape in shapes.values()) * torch.bfloat16.itemsize
    _refuse_full_disk(folder.parent, num_bytes)
    remove_leftovers(folder)
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    damaged = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    try:
        temporary.mkdir()
        config.save_pretrained(temporary)
        model.generation_config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_bf16(temporary / "model.safetensors", shapes, _values(gguf, tensors, processor))
        checksums = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
        (temporary / _CHECKSUMS).write_bytes(sealed(json.dumps(checksums).encode()))
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if folder.exists():  # a damaged one; moved first, since half of it could pass for a whole one
            folder.rename(damaged)
        os.replace(temporary, folder)
        sync(folder.parent)
    except OSError as error:
        raise OutOfDisk(
            f"Cannot write to {folder.parent}: {error.strerror or error}. {room_text(folder.parent, num_bytes)}",
            hint="Make room there.",
        ) from error
    finally:
        remove_leftovers(folder)


def leftovers(folder: Path) -> list[Path]:
    """Return what conversions to `folder` have left beside it that were killed: each has a model's size."""
    return sorted(folder.parent.glob(f".{folder.name}-*"))


def remove_leftovers(folder: Path) -> None:
    """Remove them; whoever calls holds the lock."""
    for leftover in leftovers(folder):
        shutil.rmtree(leftover, ignore_errors=True)


def is_intact(folder: Path) -> bool:
    """Read a converted model and return whether it is as it was written; one of an earlier version says nothing."""
    try:
        checksums = json.loads(unsealed((folder / _CHECKSUMS).read_bytes()))
        return all(_checksum(folder / name) == checksum for name, checksum in checksums.items())
    except FileNotFoundError:
        return not (folder / _CHECKSUMS).exists()
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _by_name(model: Any, table: GgufTable, names: Mapping[str, str]) -> dict[str, GgufTensor]:
    """Return the file's tensors by the names that the model gives them, in the order of the file.

    Raises:
        ValueError: One is missing, or has another shape than the configuration asks for.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones once
    tensors = {names[tensor.name]: tensor for tensor in table.tensors if tensor.name in names}
    tensors = {name: tensor for name, tensor in tensors.items() if name in expected}
    if absent := sorted(expected.keys() - tensors.keys()):
        raise ValueError(
            f"it has no tensor for {absent[0]} (one part of several? `llama-gguf-split --merge` joins them)"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise ValueError(f"{tensor.name} has the shape {list(tensor.shape)}, not {list(expected[name])}")
    return tensors


def _values(gguf: Path, tensors: Mapping[str, GgufTensor], processor: Any) -> Iterator[Tensor]:
    """Yield all values in bf16, in the order of `tensors`."""
    for tensor in tensors.values():
        # What llama.cpp permutes are rows of queries and keys; in all other tensors no row depends on another.
        is_permuted = any(part in tensor.name for part in _PERMUTED)
        max_values = math.prod(tensor.shape) if is_permuted else _BLOCK_VALUES
        try:
            for values in read_values(gguf, tensor, max_values=max_values):
                undone = processor.process(weights=values, name=tensor.name).weights
                yield torch.from_numpy(undone).to(torch.bfloat16)
        except (ValueError, NotImplementedError) as error:
            raise _unreadable(gguf, error) from error


def _unreadable(gguf: Path, error: Exception) -> UnsupportedModel:
    return UnsupportedModel(
        f"Cannot read the model in {gguf}: {brief(error)}",
        hint="Use the model's folder with safetensors files instead of the GGUF file.",
    )


def _refuse_full_disk(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise OutOfDisk(
            f"The model of the GGUF file has {num_bytes >> 20} MiB in bf16, and {free >> 20} MiB are free at {folder}.",
            hint="Make room there, or use the model's folder with safetensors files.",
        )
