"""Read single tensors from safetensors files, write such files, and digest them.

Nothing here needs the whole model in memory, not even as mapped pages, which count as memory in use for as long as a
file stays open; and nothing is ever unpickled: `.bin` and `.pt` files are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from node.core.errors import WeightsMissing
from node.core.text import brief

MAX_HEADER_BYTES = 100 << 20
"""The limit that the safetensors format itself sets on a file's header."""

FLOAT_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types of weights that are read, by the names that the safetensors format gives them."""

_BLOCK_BYTES = 4 << 20
"""What is read at a time where it cannot be read into its place."""

_AGAIN = "Download the model again."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where the bytes of one tensor lie in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte, from the beginning of the file."""
    stop: int

    @property
    def float_type(self) -> torch.dtype | None:
        """Its element type; None if it is none that weights are read from."""
        return FLOAT_TYPES.get(self.dtype)


def weight_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of the model in `folder`.

    Raises:
        WeightsMissing: There are no safetensors weights, or files that the index names are not there.
    """
    files = named_files(folder)
    absent = sorted({file.name for file in files.values() if not file.is_file()})
    if absent:
        raise WeightsMissing(f"{folder} lacks {', '.join(absent)}, which its index names.", hint=_AGAIN)
    return files


def named_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor as `weight_files`, whether the file is there or not."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): folder / Path(str(file)).name for name, file in names.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsMissing(f"Cannot read {index}: {brief(repr(error))}.", hint=_AGAIN) from error
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return {entry.name: single for entry in read_header(single)}
    pickled = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(folder.glob(pattern))]
    if pickled:
        raise WeightsMissing(
            f"{folder} holds its weights as {pickled[0]}, a format that can run code when it is opened.",
            hint="Use a version of the model with *.safetensors files.",
        )
    raise WeightsMissing(
        f"{folder} holds no weights (model.safetensors).", hint="Give the folder that holds *.safetensors files."
    )


def read_header(path: Path) -> list[TensorEntry]:
    """Return the tensors of one safetensors file in the order of their names.

    Raises:
        WeightsMissing: The file is cut short or is no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        entries = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = (8 + length + int(offset) for offset in entry["data_offsets"])
            if not 8 + length <= start <= stop <= size:
                raise ValueError(f"tensor {name} lies at bytes {start} to {stop} of a file of {size}")
            made = TensorEntry(name, str(entry["dtype"]), tuple(map(int, entry["shape"])), start, stop)
            if (kind := made.float_type) is not None and math.prod(made.shape) * kind.itemsize != stop - start:
                raise ValueError(f"tensor {name} is {made.dtype} {list(made.shape)} in {stop - start} bytes")
            f"{name}{made.dtype}".encode()  # JSON may hold half a character, which no digest takes
            entries.append(made)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsMissing(f"{path} is cut short or no safetensors file: {brief(error)}.", hint=_AGAIN) from error
    return sorted(entries, key=lambda entry: entry.name)


class WeightReader:
    """Reads tensors of one model folder by name, one file open at a time and no file mapped.

    A folder that lacks some of its files is legal for whoever reads from the others alone. Whoever reads in the order
    of `names` opens each file once.
    """

    def __init__(self, folder: Path) -> None:
        """Find out what is there.

        Raises:
            WeightsMissing: There are no safetensors weights, or the index cannot be read.
        """
        self._files = named_files(folder)
        self._open_path: Path | None = None
        self._file: FileIO | None = None
        self._entries: dict[str, TensorEntry] = {}

    @property
    def names(self) -> list[str]:
        """The names of all tensors, file by file."""
        return sorted(self._files, key=lambda name: (self._files[name].name, name))

    def entry(self, name: str) -> TensorEntry:
        """Return what the files say of a tensor, without reading it.

        Raises:
            WeightsMissing: The model holds no such tensor, or its file is not there or damaged.
        """
        self._open_file_of(name)
        return self._entries[name]

    def read(self, name: str, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
        """Return a tensor as a fresh one of `dtype` on `device`; nothing larger than it is held meanwhile.

        Its shape is that of `entry`, which the caller has compared with the shape that it expects, and its stored type
        is one of `FLOAT_TYPES`.

        Raises:
            WeightsMissing: The model holds no such tensor, or its file is not there or damaged.
        """
        file = self._open_file_of(name)
        entry = self._entries[name]
        stored = entry.float_type
        assert stored is not None, f"{name} is {entry.dtype}, which the caller should have refused"
        target = torch.empty(entry.shape, dtype=dtype, device=device)
        flat = target.view(-1)
        file.seek(entry.start)
        if stored == dtype and target.device.type == "cpu":
            self._fill(file, flat)
            return target
        block = torch.empty(min(flat.numel(), _BLOCK_BYTES // stored.itemsize), dtype=stored)
        for start in range(0, flat.numel(), max(1, block.numel())):
            part = flat[start : start + block.numel()]
            self._fill(file, block[: part.numel()])
            part.copy_(block[: part.numel()])
        return target

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = self._open_path = None

    def _open_file_of(self, name: str) -> FileIO:
        path = self._files.get(name)
        if path is None:
            raise WeightsMissing(f"The model's files hold no tensor {name}.", hint=_AGAIN)
        if path != self._open_path or self._file is None:
            self.close()
            self._entries = {entry.name: entry for entry in read_header(path)}
            try:
                self._file, self._open_path = FileIO(path), path
            except OSError as error:
                raise WeightsMissing(f"Cannot read {name} from {path}: {brief(error)}.", hint=_AGAIN) from error
        if name not in self._entries:
            raise WeightsMissing(f"{path} lacks {name}, which the index names.", hint=_AGAIN)
        return self._file

    @staticmethod
    def _fill(file: FileIO, flat: torch.Tensor) -> None:
        """Read the next bytes of `file` into the memory of `flat`, a contiguous tensor of one dimension on the CPU."""
        with memoryview(flat.view(torch.uint8).numpy().data) as view:
            done = 0
            while done < len(view):
                try:
                    count = file.readinto(view[done:])
                except OSError as error:
                    raise WeightsMissing(f"Cannot read {file.name}: {error}.", hint=_AGAIN) from error
                if not count:
                    raise WeightsMissing(f"{file.name} was cut short while it was read.", hint=_AGAIN)
                done += count


def write_bf16(path: Path, shapes: Mapping[str, tuple[int, ...]], blocks: Iterable[torch.Tensor]) -> None:
    """Write a safetensors file of tensors in bf16, without ever holding one.

    Args:
        path: The file, which is made or replaced.
        shapes: Of each tensor by name, in the order in which they come.
        blocks: The values of all of them, in bf16 and in this order, cut anywhere.

    Raises:
        OSError: The disk is full or read-only.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, shape in shapes.items():
        start, stop = stop, stop + math.prod(shape) * torch.bfloat16.itemsize
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, stop]}
    body = json.dumps(header).encode()
    body += b" " * (-len(body) % 8)  # the format asks for tensors at multiples of 8
    with path.open("wb") as file:
        file.write(len(body).to_bytes(8, "little") + body)
        for block in blocks:
            stop -= file.write(block.contiguous().view(-1).view(torch.uint8).numpy().data)
    assert stop == 0, f"the tensors of {path} differ from their shapes by {stop} bytes"


def tensor_digests(folder: Path) -> dict[str, str]:
    """Return for each tensor of the model the BLAKE2b-256 of its dtype, shape and bytes, in hex.

    The digest does not depend on how tensors are spread over files.

    Raises:
        WeightsMissing: As `weight_files` and `read_header`.
    """
    wanted = weight_files(folder)
    digests: dict[str, str] = {}
    for path in sorted(set(wanted.values())):
        digests.update({name: digest for name, digest in _digest_file(path) if wanted.get(name) == path})
    absent = sorted(set(wanted) - set(digests))
    if absent:
        raise WeightsMissing(f"The files of {folder} lack {absent[0]}, which its index names.", hint=_AGAIN)
    return dict(sorted(digests.items()))


def _digest_file(path: Path) -> Iterator[tuple[str, str]]:
    for entry in read_header(path):
        digest = hashlib.blake2b(f"{entry.dtype}:{list(entry.shape)}:".encode(), digest_size=32)
        for block in blocks_of(path, entry.start, entry.stop):
            digest.update(block)
        yield entry.name, digest.hexdigest()


def blocks_of(path: Path, start: int, stop: int) -> Iterator[memoryview]:
    """Read bytes `[start, stop)` of a file block by block; each block is valid until the next is asked for.

    Raises:
        WeightsMissing: The file ends before.
    """
    buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(1, stop - start))))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop:
            num = file.readinto(buffer[: min(len(buffer), stop - start)])
            if not num:
                raise WeightsMissing(f"{path} was cut short while it was read.", hint=_AGAIN)
            yield buffer[:num]
            start += num
