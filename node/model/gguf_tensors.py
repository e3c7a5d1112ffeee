"""Read single tensors of a GGUF file, without mapping the file and without parsing its vocabulary.

The `gguf` package's own reader takes seconds and hundreds of MB for the vocabulary of a usual model, none of which is
needed here; its tables and its arithmetic of quantised values are used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How `struct` spells the types of metadata that have a fixed size (GGUF specification, `gguf_metadata_value_type`)."""
_MAX_TENSORS = 1 << 20
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in the file, and how it is stored."""

    name: str
    shape: tuple[int, ...]
    """As torch counts dimensions: rows first."""
    kind: GGMLQuantizationType
    start: int
    """Offset of its first byte, from the beginning of the file."""
    num_bytes: int

    @property
    def num_rows(self) -> int:
        """Rows of values along the last dimension; a vector is one."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class GgufTable:
    """What a GGUF file says of its tensors."""

    architecture: str
    tensors: tuple[GgufTensor, ...]


def read_table(path: Path) -> GgufTable:
    """Return the table of the tensors in a GGUF file.

    Raises:
        ValueError: It is no GGUF file, is cut short, or holds what is not read.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, size)
        if reader.take(4) != b"GGUF":
            raise ValueError("the file does not begin as a GGUF file does")
        version, num_tensors, num_keys = reader.unpack("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"GGUF version {version} is not read")
        if num_tensors > min(_MAX_TENSORS, size) or num_keys > size:
            raise ValueError(f"{num_tensors} tensors and {num_keys} keys in a file of {size} bytes")
        wanted: dict[str, Any] = {"general.architecture": None, "general.alignment": 32}
        for _ in range(num_keys):
            key = reader.text()
            value = reader.value()
            if key in wanted:
                wanted[key] = value
        entries = [(reader.text(), *reader.placement()) for _ in range(num_tensors)]
        alignment = wanted["general.alignment"]
        if not isinstance(wanted["general.architecture"], str) or not isinstance(alignment, int) or alignment < 1:
            raise ValueError("its architecture or its alignment is not in order")
        begin = -(-file.tell() // alignment) * alignment
    tensors = tuple(_tensor(name, shape, kind, begin + offset, size) for name, shape, kind, offset in entries)
    return GgufTable(wanted["general.architecture"], tensors)


def read_values(path: Path, tensor: GgufTensor, *, max_values: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a tensor's values in fp32, some rows at a time, each block with the tensor's trailing dimensions.

    Args:
        path: The file that `tensor` is of.
        tensor: From `read_table`.
        max_values: Of one block, if a row has no more.

    Raises:
        ValueError: The file was cut short.
        NotImplementedError: Values of this kind cannot be read.
    """
    row_bytes = tensor.num_bytes // tensor.num_rows
    is_matrix = len(tensor.shape) == 2  # the others are small
    step = max(1, max_values // tensor.shape[-1]) if is_matrix else tensor.num_rows
    with path.open("rb", buffering=0) as file:
        for row in range(0, tensor.num_rows, step):
            count = min(step, tensor.num_rows - row) * row_bytes
            file.seek(tensor.start + row * row_bytes)
            raw = np.fromfile(file, np.uint8, count)
            if len(raw) != count:
                raise ValueError(f"tensor {tensor.name} was cut short while it was read")
            values = dequantize(raw.reshape(-1, row_bytes), tensor.kind)
            yield values.reshape(-1, *tensor.shape[1:])


def _tensor(name: str, shape: tuple[int, ...], kind: int, start: int, file_bytes: int) -> GgufTensor:
    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        raise ValueError(f"tensor {name} is of the unknown type {kind}") from None
    block_values, block_bytes = GGML_QUANT_SIZES[known]
    if not shape or 0 in shape or shape[-1] % block_values:
        raise ValueError(f"tensor {name} is {known.name} of the shape {list(shape)}")
    num_bytes = math.prod(shape) // block_values * block_bytes
    if start + num_bytes > file_bytes:
        raise ValueError(f"tensor {name} ends at byte {start + num_bytes} of a file of {file_bytes}")
    return GgufTensor(name, shape, known, start, num_bytes)


class _Reader:
    """Reads the head of a file of `size` bytes; what does not fit in the file is refused before it is allocated."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("the file is cut short")
        return data

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def text(self) -> str:
        (length,) = self.unpack("Q")
        if length > _MAX_NAME_BYTES:
            raise ValueError(f"a name of {length} bytes")
        return self.take(length).decode()

    def value(self) -> Any:
        """Read a value of the metadata; arrays and long texts are passed over, and None returned."""
        (kind,) = self.unpack("I")
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"metadata of the unknown type {kind}")
        kind, count = self.unpack("IQ")
        if count > self._size:
            raise ValueError(f"an array of {count} values")
        if kind in _SCALARS:
            self._pass_over(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self._pass_over(self.unpack("Q")[0])
        else:
            raise ValueError(f"an array of values of the type {kind}")
        return None

    def placement(self) -> tuple[tuple[int, ...], int, int]:
        """Read a tensor's shape, type and offset in the part of the file that holds the tensors."""
        (count,) = self.unpack("I")
        if count > _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {count} dimensions")
        shape = self.unpack(f"{count}Q")
        kind, offset = self.unpack("IQ")
        return tuple(reversed(shape)), kind, offset

    def _string(self) -> str | None:
        (length,) = self.unpack("Q")
        if length <= _MAX_NAME_BYTES:
            return self.take(length).decode(errors="replace")
        self._pass_over(length)
        return None

    def _pass_over(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise ValueError("the file is cut short")
        self._file.seek(count, 1)
