"""A base model's folder as peers see it: which tensors of the manifest lie where, and how it is filled by them.

The folder being filled has Hugging Face's layout, one safetensors file for each tensor and an index that names all of
them, so that the ordinary loader reads a shard from it while the rest is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node.core.errors import OutOfDisk, WeightsMissing
from node.core.files import room_text, sync, write_whole
from node.model.weights import TensorEntry, blocks_of, named_files, read_header
from node.trust.manifest import Manifest, TensorFacts, tensor_hash

MANIFEST_FILE = "manifest.json"
_INDEX_FILE = "model.safetensors.index.json"
_PART = ".part"


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `[start, stop)` of a file."""

    path: Path
    start: int
    stop: int


class ModelStore:
    """Finds the manifest's tensors and small files in a model's folder, whole or partial; files are only read."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._headers: dict[Path, tuple[tuple[int, int], dict[str, TensorEntry]]] = {}
        self._files: dict[str, bool] = {}
        self._by_name: dict[str, Path] | None = None

    def manifest_bytes(self) -> bytes:
        """Return the founder's manifest."""
        return self.manifest.to_bytes()

    def held_bits(self) -> bytes:
        """Return `held` as bits, one for each of the manifest's tensors in its order, the lowest bit first."""
        held, names = self.held(), self.manifest.names
        bits = sum(1 << position for position, name in enumerate(names) if name in held)
        return bits.to_bytes((len(names) + 7) // 8, "little")

    def held(self) -> frozenset[str]:
        """Return the names of the manifest's tensors that are here with the same type, shape and size."""
        return frozenset(name for name in self.manifest.tensors if self.tensor(name) is not None)

    def tensor(self, name: str) -> Extent | None:
        """Return where a tensor's bytes are, or None if they are not here."""
        facts = self.manifest.tensors.get(name)
        if facts is None:
            return None
        try:
            path = self._weight_files().get(name)
            entry = self._header(path).get(name) if path is not None else None
        except (WeightsMissing, OSError):
            return None
        if entry is None or (entry.dtype, entry.shape, entry.stop - entry.start) != (
            facts.dtype,
            facts.shape,
            facts.num_bytes,
        ):
            return None
        return Extent(path, entry.start, entry.stop) if path is not None else None

    def file(self, name: str) -> Extent | None:
        """Return where a small file is, or None if it is not here or not the founder's."""
        facts = self.manifest.files.get(name)
        if facts is None:
            return None
        path = self.folder / name
        if name not in self._files:
            self._files[name] = _is_file_with(path, facts.num_bytes, facts.sha256)
        return Extent(path, 0, facts.num_bytes) if self._files[name] else None

    def is_right(self, name: str) -> bool:
        """Read a tensor that is here and return whether it is the founder's."""
        extent, facts = self.tensor(name), self.manifest.tensors[name]
        if extent is None:
            return False
        digest = tensor_hash(facts.dtype, facts.shape)
        for block in blocks_of(extent.path, extent.start, extent.stop):
            digest.update(block)
        return digest.hexdigest() == facts.digest

    def _weight_files(self) -> dict[str, Path]:
        # The index never changes while a node runs; only files come.
        if self._by_name is None:
            self._by_name = named_files(self.folder)
        return self._by_name

    def _header(self, path: Path) -> dict[str, TensorEntry]:
        stat = path.stat()
        version = (stat.st_size, stat.st_mtime_ns)
        known = self._headers.get(path)
        if known is None or known[0] != version:
            known = (version, {entry.name: entry for entry in read_header(path)})
            self._headers[path] = known
        return known[1]


class FetchedFolder(ModelStore):
    """A model's folder that is filled from peers; nothing in it under its final name is unchecked."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder, manifest)
        self._positions = {name: position for position, name in enumerate(manifest.names)}

    def prepare(self) -> None:
        """Make the folder with its index and the manifest.

        Raises:
            OutOfDisk: the disk is full or read-only.
        """
        size = sum(facts.num_bytes for facts in self.manifest.tensors.values())
        weight_map = {name: self._file_of(name).name for name in self.manifest.names}
        index = json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}).encode()
        self._write(MANIFEST_FILE, self.manifest.to_bytes())
        self._write(_INDEX_FILE, index)

    def put_file(self, name: str, data: bytes) -> bool:
        """Keep a small file; return False, and keep nothing, if it is not the founder's."""
        facts = self.manifest.files[name]
        if len(data) != facts.num_bytes or hashlib.sha256(data).hexdigest() != facts.sha256:
            return False
        self._write(name, data)
        self._files[name] = True
        return True

    def drop_damaged(self, names: Iterable[str]) -> list[str]:
        """Read the tensors that are here and remove those that are not the founder's any more; return their names.

        Every start does so: a disk that rots changes neither size nor time of a file.

        Raises:
            OutOfDisk: one cannot be removed.
        """
        damaged = [name for name in sorted(self.held() & frozenset(names)) if not self.is_right(name)]
        for name in damaged:
            try:
                self._file_of(name).unlink()
            except OSError as error:
                raise _disk(self.folder, error, self.manifest.tensors[name].num_bytes) from error
        return damaged

    def begin(self, name: str) -> TensorPart:
        """Go on with a tensor from where it was broken off, or begin it.

        Raises:
            OutOfDisk: the disk is full or read-only.
        """
        try:
            return TensorPart(self._file_of(name), name, self.manifest.tensors[name])
        except OSError as error:
            raise _disk(self.folder, error, self.manifest.tensors[name].num_bytes) from error

    def _file_of(self, name: str) -> Path:
        return self.folder / f"tensor-{self._positions[name]:05d}.safetensors"

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                return
            write_whole(path, data)
        except OSError as error:
            raise _disk(self.folder, error, len(data)) from error


class TensorPart:
    """A tensor on its way to the disk: hashed as it comes, under its final name only when it is whole and right."""

    def __init__(self, path: Path, name: str, facts: TensorFacts) -> None:
        self._path = path
        self._facts = facts
        self._digest = tensor_hash(facts.dtype, facts.shape)
        head = json.dumps({name: {"dtype": facts.dtype, "shape": facts.shape, "data_offsets": [0, facts.num_bytes]}})
        body = head.encode()
        body += b" " * (-len(body) % 8)  # the format asks for tensors at multiples of 8
        header = len(body).to_bytes(8, "little") + body
        self._temporary = path.with_name(path.name + _PART)
        self._file: BinaryIO = self._temporary.open("a+b", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        if not len(header) <= size <= len(header) + facts.num_bytes or self._file.read(len(header)) != header:
            self._file.truncate(0)
            self._file.write(header)
            size = len(header)
        for block in blocks_of(self._temporary, len(header), size):
            self._digest.update(block)
        self.num_bytes = size - len(header)
        """Bytes of the tensor that are here."""
        self.was_resumed = self.num_bytes > 0

    def append(self, block: bytes | bytearray | memoryview) -> None:
        """Write the next bytes.

        Raises:
            OutOfDisk: the disk is full or read-only.
        """
        view = memoryview(block)
        assert self.num_bytes + len(view) <= self._facts.num_bytes, "more than the tensor has"
        self._digest.update(view)
        try:
            while view.nbytes:
                written = self._file.write(view)
                self.num_bytes += written
                view = view[written:]
        except OSError as error:
            raise _disk(self._path.parent, error, self._facts.num_bytes) from error

    def finish(self) -> bool:
        """Give the whole tensor its final name; return False, and drop it, if it is not the founder's."""
        try:
            if self.num_bytes != self._facts.num_bytes or self._digest.hexdigest() != self._facts.digest:
                self._temporary.unlink(missing_ok=True)
                return False
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)
            sync(self._path.parent)
        except OSError as error:
            raise _disk(self._path.parent, error, self._facts.num_bytes) from error
        return True

    def close(self) -> None:
        """Let go of the file; what is in it stays for the next time."""
        self._file.close()


def _is_file_with(path: Path, num_bytes: int, sha256: str) -> bool:
    try:
        if path.stat().st_size != num_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _disk(folder: Path, error: OSError, needed_bytes: int) -> OutOfDisk:
    return OutOfDisk(
        f"Cannot write to {folder}: {error.strerror}. {room_text(folder, needed_bytes)}",
        hint="Make room on the disk for the base model's weights.",
    )
