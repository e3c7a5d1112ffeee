"""Small files, written whole or not at all: the one way in which this program replaces a file.

It is here, below every room, because identities, memos, the home and a model's small files all need the same steps.
Checkpoints and tensors, which are large, have stores of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path

_SEAL = re.compile(rb"\n#blake2b ([0-9a-f]{64})\n\Z")
_NEW = ".new"


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all: after a crash at any moment the old content is there, or the new one.

    One process writes a path at a time. A temporary file that a crash leaves behind is written over by the next call.

    Raises:
        OSError: it was not written, and the old content is untouched.
    """
    temporary = path.with_name(path.name + _NEW)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes or a folder's entries durable: else a rename may be lost, or kept without the bytes.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sealed(data: bytes) -> bytes:
    """Return `data` with its checksum as a last line, so that a flipped bit is found when it is read."""
    return data + b"\n#blake2b " + hashlib.blake2b(data, digest_size=32).hexdigest().encode() + b"\n"


def unsealed(data: bytes) -> bytes:
    """Return what `sealed` was given. A file without a checksum, from an earlier version, is returned as it is.

    Raises:
        ValueError: the checksum is wrong.
    """
    found = _SEAL.search(data)
    if found is None:
        return data
    body = data[: found.start()]
    if hashlib.blake2b(body, digest_size=32).hexdigest().encode() != found[1]:
        raise ValueError("its checksum is wrong: it is damaged")
    return body


def room_text(folder: Path, needed_bytes: int) -> str:
    """Return what a write needs and what its disk has, for a message."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        free = f"{size_text(shutil.disk_usage(there).free)} is free"
    except OSError:
        free = "its free space cannot be read"
    return f"It needs {size_text(needed_bytes)} and {free}."


def size_text(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 1 << 20 else f"{num_bytes} bytes"
