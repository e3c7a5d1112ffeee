"""The manifest of a base model that is here: facts of every tensor and small file, remembered between starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from node.core.errors import WeightsMissing
from node.core.files import sealed, unsealed, write_whole
from node.core.text import brief
from node.model.weights import blocks_of, read_header, weight_files
from node.trust.manifest import MAX_MANIFEST_BYTES, SMALL_FILES, FileFacts, Manifest, TensorFacts, tensor_hash

_TENSORS = TypeAdapter(dict[str, TensorFacts])


def manifest_of(folder: Path, *, cache: Path) -> Manifest:
    """Return the manifest of the whole model in `folder`; the tensors of unchanged files are not read again.

    Raises:
        WeightsMissing: The model is incomplete, or its names are none that peers take.
    """
    files = sorted(set(weight_files(folder).values()))
    known = remembered(cache, files, "tensors", lambda: _TENSORS.dump_json(_tensor_facts(folder)).decode(), _is_facts)
    small = {name: facts for name in sorted(SMALL_FILES) if (facts := _file_facts(folder / name)) is not None}
    try:
        return Manifest(tensors=_TENSORS.validate_json(known), files=small)
    except ValidationError as error:
        raise _unusable(folder, error) from error


def remembered(
    cache: Path, files: list[Path], kind: str, compute: Callable[[], str], is_valid: Callable[[str], bool]
) -> str:
    """Return `compute()`, or what it returned when these files were last seen with these sizes and times."""
    stats = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([kind, stats]).encode()).hexdigest()
    memo = cache / "digests" / key
    try:
        if memo.stat().st_size <= MAX_MANIFEST_BYTES and is_valid(known := unsealed(memo.read_bytes()).decode()):
            return known
    except (OSError, ValueError):
        pass
    value = compute()
    # a value that cannot be kept is computed again the next time
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "digests.lock"):  # nodes of one machine share the memo
            write_whole(memo, sealed(value.encode()))
    return value


def is_hex(text: str) -> bool:
    """Whether a remembered value is a digest of 32 bytes."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _is_facts(text: str) -> bool:
    _TENSORS.validate_json(text)
    return True


def _tensor_facts(folder: Path) -> dict[str, TensorFacts]:
    wanted = weight_files(folder)
    facts: dict[str, TensorFacts] = {}
    for path in sorted(set(wanted.values())):
        for entry in read_header(path):
            if wanted.get(entry.name) != path:
                continue
            digest = tensor_hash(entry.dtype, entry.shape)
            for block in blocks_of(path, entry.start, entry.stop):
                digest.update(block)
            size = entry.stop - entry.start
            try:
                facts[entry.name] = TensorFacts(
                    dtype=entry.dtype, shape=entry.shape, num_bytes=size, digest=digest.hexdigest()
                )
            except ValidationError as error:
                raise _unusable(folder, error) from error
    if absent := sorted(set(wanted) - set(facts)):
        raise WeightsMissing(
            f"The files of {folder} lack {absent[0]}, which its index names.", hint="Download the model again."
        )
    return facts


def _unusable(folder: Path, error: ValidationError) -> WeightsMissing:
    return WeightsMissing(
        f"The files of {folder} hold what cannot be handed on: {brief(error)}.", hint="Download the model again."
    )


def _file_facts(path: Path) -> FileFacts | None:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileFacts(num_bytes=path.stat().st_size, sha256=sha256)
    except (OSError, ValidationError):
        return None
