"""Read single tensors from safetensors files, and digest them.

Nothing here needs the whole model in memory, and nothing is ever unpickled: `.bin` and `.pt` files are refused.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from node.core.errors import WeightsMissing

MAX_HEADER_BYTES = 100 << 20
"""The limit that the safetensors format itself sets on a file's header."""

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


def weight_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of the model in `folder`.

    Raises:
        WeightsMissing: There are no safetensors weights, or files that the index names are not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): folder / Path(str(file)).name for name, file in names.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsMissing(f"Cannot read {index}: {error!r}.", hint=_AGAIN) from error
        absent = sorted({file.name for file in files.values() if not file.is_file()})
        if absent:
            raise WeightsMissing(f"{folder} lacks {', '.join(absent)}, which its index names.", hint=_AGAIN)
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
            entries.append(TensorEntry(name, str(entry["dtype"]), tuple(map(int, entry["shape"])), start, stop))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsMissing(f"{path} is cut short or no safetensors file: {error}.", hint=_AGAIN) from error
    return sorted(entries, key=lambda entry: entry.name)


class WeightReader:
    """Reads tensors of one model folder by name, one file open at a time.

    An open file stays mapped, so whoever reads in the order of `names` keeps one mapping alive.
    """

    def __init__(self, folder: Path) -> None:
        self._files = weight_files(folder)
        self._open_path: Path | None = None
        self._handle: safe_open | None = None

    @property
    def names(self) -> list[str]:
        """The names of all tensors, file by file."""
        return sorted(self._files, key=lambda name: (self._files[name].name, name))

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor as stored, a view of the mapped file: clone what is kept.

        Raises:
            WeightsMissing: The model holds no such tensor, or its file is damaged.
        """
        path = self._files.get(name)
        if path is None:
            raise WeightsMissing(f"The model's files hold no tensor {name}.", hint=_AGAIN)
        try:
            if path != self._open_path or self._handle is None:
                self._handle, self._open_path = safe_open(path, framework="pt"), path
            tensor: torch.Tensor = self._handle.get_tensor(name)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise WeightsMissing(f"Cannot read {name} from {path}: {error}.", hint=_AGAIN) from error
        return tensor

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def close(self) -> None:
        """Let go of the mapped file."""
        self._handle = self._open_path = None


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
    entries = read_header(path)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        for entry in entries:
            digest = hashlib.blake2b(f"{entry.dtype}:{list(entry.shape)}:".encode(), digest_size=32)
            with view[entry.start : entry.stop] as content:
                digest.update(content)
            yield entry.name, digest.hexdigest()
