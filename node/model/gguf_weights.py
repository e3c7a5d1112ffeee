"""Turn the tensors of a GGUF file into bf16 safetensors, some rows at a time.

Here is what llama.cpp does to a model's values and names, undone; configuration and tokenizer are not read here. What
comes out is bit for bit what transformers makes of the file in memory (`load_gguf_checkpoint`), which is a test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize, quant_shape_to_byte_shape
from numpy.typing import NDArray
from torch import Tensor

from node.core.errors import UnsupportedModel

_BLOCK_VALUES = 1 << 20
"""Values that are converted at a time, if a row or a head has no more."""

_PERMUTED = frozenset({"llama"})
"""Architectures whose queries and keys llama.cpp stores with the two halves of each head interleaved, row by row."""

_NORMS_PLUS_ONE = frozenset({"gemma2", "gemma3"})
"""Architectures whose norms llama.cpp stores as the factor itself, and the model as its distance from 1."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in a GGUF file."""

    name: str
    """As llama.cpp calls it: `blk.0.attn_q.weight`."""
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    """In torch's order: [out, in] of a linear layer."""
    start: int
    """Offset of its first byte, from the beginning of the file."""


@dataclass(frozen=True, slots=True)
class GgufTable:
    """The tensors of a GGUF file, and what kind of model they make."""

    path: Path
    architecture: str
    tensors: Mapping[str, GgufTensor]
    """By their names in the file."""


def read_table(path: Path) -> GgufTable:
    """Return what the file at `path` says of its tensors; none of them is read.

    Raises:
        ValueError, KeyError, IndexError: It is no GGUF file, or is cut short or damaged.
        OSError: It cannot be read.
    """
    # The reader maps the file; nothing of it may outlive this function, or pages that are read would stay in use.
    reader = GGUFReader(path)
    architecture = str(reader.fields["general.architecture"].contents())
    num_layers = int(reader.fields[f"{architecture}.block_count"].contents())
    if num_layers > len(reader.tensors):
        raise ValueError(f"{num_layers} layers are made of {len(reader.tensors)} tensors")
    tensors = {
        str(tensor.name): GgufTensor(
            str(tensor.name), tensor.tensor_type, tuple(reversed(tensor.shape.tolist())), int(tensor.data_offset)
        )
        for tensor in reader.tensors
    }
    return GgufTable(path, architecture, tensors)


def write_safetensors(
    table: GgufTable, shapes: Mapping[str, tuple[int, ...]], heads: tuple[int, int], to: Path
) -> None:
    """Write the model's tensors to the safetensors file `to` in bf16, never holding more than some rows of one.

    Args:
        table: What `read_table` returned.
        shapes: Name and shape of every parameter of the model, as transformers names them.
        heads: How many query heads and how many key heads a layer has.
        to: The file to write, in the order of the names.

    Raises:
        UnsupportedModel: The file lacks a tensor, or has one of another shape.
        ValueError, NotImplementedError: A tensor is cut short, or of a kind that is not read.
        OSError: The disk is full.
    """
    names = sorted(shapes)
    sources = _sources(table, shapes)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name in names:
        start, stop = stop, stop + 2 * math.prod(shapes[name])
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [start, stop]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format asks for tensors at multiples of 8
    with FileIO(table.path) as source, FileIO(to, "w") as target:
        _write(target, len(head).to_bytes(8, "little") + head)
        for name in names:
            for values in _values(source, sources[name], table.architecture, heads):
                _write(target, values.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().data)


def _sources(table: GgufTable, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, GgufTensor]:
    """Return the file's tensor for each parameter of the model, checked before anything is allocated for it."""
    by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if table.architecture not in by_name:
        raise UnsupportedModel(f"{table.path} holds a model of the architecture {table.architecture!r}.")
    # As there are no more layers than tensors, so many names are enough.
    name_map = get_tensor_name_map(by_name[table.architecture], len(table.tensors))
    sources = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        tensor = table.tensors.get(f"{name_map.get_name(module)}.{leaf}")
        if tensor is None:
            raise UnsupportedModel(
                f"{table.path} lacks {name}.",
                hint="If it is one of several parts, join them (llama-gguf-split --merge).",
            )
        if tensor.shape != shape:
            raise UnsupportedModel(
                f"{tensor.name} in {table.path} is {list(tensor.shape)}, and its metadata asks for {list(shape)}."
            )
        sources[name] = tensor
    return sources


def _values(source: FileIO, tensor: GgufTensor, architecture: str, heads: tuple[int, int]) -> Iterator[Tensor]:
    """Yield a tensor's values as the model has them, fp32 [some rows, in] or [in], from its first row to its last."""
    num_heads = {".attn_q.": heads[0], ".attn_k.": heads[1]}
    permuted = next((num for part, num in num_heads.items() if part in tensor.name), 0) * (architecture in _PERMUTED)
    head_rows = tensor.shape[0] // permuted if permuted else 0
    minus_one = architecture in _NORMS_PLUS_ONE and tensor.name.endswith("norm.weight")
    for block in _blocks(source, tensor, head_rows or 1):
        values = block - 1 if minus_one else block
        if head_rows:
            values = values.reshape(-1, head_rows // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        yield torch.from_numpy(values)


def _blocks(source: FileIO, tensor: GgufTensor, unit: int) -> Iterator[NDArray[np.float32]]:
    """Yield the stored values of a tensor in blocks of whole units of rows; one of one dimension is a single block."""
    *rows, width = tensor.shape
    num_rows = math.prod(rows)
    at_once = min(num_rows, max(1, _BLOCK_VALUES // max(1, width * unit)) * unit)
    (row_bytes,) = quant_shape_to_byte_shape((width,), tensor.kind)
    source.seek(tensor.start)
    for start in range(0, num_rows, at_once):
        count = min(at_once, num_rows - start)
        stored = np.empty((count, row_bytes), dtype=np.uint8)
        _fill(source, stored.data.cast("B"), tensor)
        values = dequantize(stored, tensor.kind)
        yield values if rows else values[0]


def _fill(source: FileIO, view: memoryview, tensor: GgufTensor) -> None:
    while view:
        count = source.readinto(view)
        if not count:
            raise ValueError(f"the file ends within {tensor.name}")
        view = view[count:]


def _write(target: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]
