"""Files that only their owner may read, written whole or not at all: half a token would lock everybody out for good."""

from __future__ import annotations

import os
from pathlib import Path


def keep_secret(path: Path, data: bytes) -> None:
    """Write a file for its owner alone; after a crash at any moment the old content is there, or the new one.

    Raises:
        OSError: it was not written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
