"""Checkpoints on disk: whole, or refused by name.

A generation is a folder with the adapters, a bookmark and a manifest of checksums:

    checkpoints/
      generation-00000041/
        adapter-0.safetensors     one a stage: values and moments (`node.training.state`)
        bookmark.json             where the data stands, counters, the state of random choices
        manifest.json             run, version, size and checksum of the others, and of itself

It is written under a temporary name, synced, renamed, and the parent folder is synced, so that a crash leaves the
new generation, or the one before, and never half of one. This file knows bytes alone: no torch, and nothing is
ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from node.core.errors import CheckpointError, NewerFormat, OutOfDisk
from node.core.events import Event, Fault
from node.core.files import room_text, sync
from node.core.versions import UPGRADE_HERE, format_number

_GENERATION = re.compile(r"generation-(\d{8,12})")
_SCRATCH = re.compile(r"\.(saving|removing)-[0-9a-f]{16}")
_MANIFEST, _BOOKMARK = "manifest.json", "bookmark.json"
_JSON_LIMIT_BYTES = 1 << 20
_FORMAT_NAME, _FORMAT = "potluck-checkpoint", 1
"""What a manifest calls its format. Its outer form, canonical JSON with a checksum, is that of every format."""
_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}

_Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Checkpoint:
    """What a node needs in order to go on as if it had not stopped."""

    fingerprint: str
    """Of the recipe: a checkpoint is of one run."""
    version: int
    adapters: Mapping[int, bytes]
    """By stage, as `StageAdapter.to_bytes` gives it."""
    cursor: Mapping[str, JsonValue] = field(default_factory=dict)
    """Where the data source stands after the microbatches that are in `adapters`, in its own words."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Whatever a node counts over its life: rounds, tokens given, bytes sent."""
    random: Mapping[str, int | str] = field(default_factory=dict)
    """Seeds and positions behind random choices, such as dropout's."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _File(_Strict):
    size: Annotated[int, Field(ge=0, le=1 << 44)]
    blake2b: _Checksum


class _Manifest(_Strict):
    format: Literal["potluck-checkpoint-1"] = "potluck-checkpoint-1"
    fingerprint: Annotated[str, Field(min_length=1, max_length=128)]
    version: Annotated[int, Field(ge=0, le=1 << 62)]
    files: dict[Annotated[str, Field(pattern=r"^(adapter-\d{1,4}\.safetensors|bookmark\.json)$")], _File]


class _Bookmark(_Strict):
    cursor: dict[str, JsonValue]
    counters: dict[str, int]
    random: dict[str, int | str]


class CheckpointStore:
    """The generations of one node's run. One process at a time; calls block on the disk, so use a worker thread."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        emit: Callable[[Event], None] = lambda _: None,
        read_only: bool = False,
    ) -> None:
        """Open the store; leftovers of saves that were cut off are removed.

        Args:
            folder: Made when the first checkpoint is saved.
            keep: Generations that stay on disk, at least 1.
            emit: Told about generations that are refused.
            read_only: Another process owns the store and may be saving: touch nothing.
        """
        assert keep >= 1, "a store that keeps nothing is none"
        self.folder = folder
        self._keep = keep
        self._emit = emit
        self._read_only = read_only
        for path in () if read_only else self._entries(_SCRATCH):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, checkpoint: Checkpoint) -> int:
        """Write a new generation, sync it, and remove those beyond the ones to keep.

        Returns:
            The size of the generation in bytes.

        Raises:
            OutOfDisk: The disk is full or read-only. The generations before are untouched: training may go on.
            CheckpointError: The folder cannot be written for another reason.
        """
        files = _render(checkpoint)
        size = sum(len(data) for data in files.values())
        scratch = self.folder / f".saving-{secrets.token_hex(8)}"
        try:
            _make_folder(self.folder)
            generations = self._generations()
            scratch.mkdir()
            for name, data in files.items():
                _write_synced(scratch / name, data)
            sync(scratch)
            number = generations[-1][0] + 1 if generations else 1
            scratch.rename(self.folder / f"generation-{number:08d}")
            sync(self.folder)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise self._explain(error, size) from None
        self._prune()
        return size

    def free_bytes(self) -> int:
        """Return the free space of the store's disk; 0 if it cannot be read."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return 0

    def load_latest(self, fingerprint: str) -> Checkpoint | None:
        """Return the newest generation that is whole, or None if nothing was ever saved here.

        A generation that is torn or altered is reported with a `Fault` and set aside under another name once an
        older one has proved to be whole.

        Raises:
            CheckpointError: There are generations and none is whole, or the newest whole one is of another run or was
                written by a newer Potluck.
        """
        refused: list[tuple[Path, str]] = []
        for _, path in reversed(self._generations()):
            try:
                checkpoint = _read(path)
            except NewerFormat:
                raise  # it is not damaged: an older one in its place would be a loss
            except CheckpointError as error:
                refused.append((path, error.message))
                continue
            if checkpoint.fingerprint != fingerprint:
                raise CheckpointError(
                    f"The checkpoint {path} belongs to another run: its recipe's fingerprint is "
                    f"{checkpoint.fingerprint[:16]}, this one's is {fingerprint[:16]}.",
                    hint="Start with the recipe that it was made with, or use another --home for the new run.",
                )
            for bad, reason in refused:
                self._set_aside(bad, reason, instead=path)
            return checkpoint
        if refused:
            raise CheckpointError(
                "No checkpoint here is whole. " + " ".join(reason for _, reason in refused),
                hint=f"Restore {self.folder} from a backup, or move it away to start this run anew.",
            )
        return None

    def latest_stages(self, fingerprint: str) -> tuple[int, ...]:
        """Return the stages in the newest generation of this run by its manifest alone; none if there is none."""
        for _, path in reversed(self._generations()):
            with contextlib.suppress(CheckpointError):
                manifest = _read_manifest(path / _MANIFEST)
                if manifest.fingerprint == fingerprint:
                    return tuple(sorted(_stage_of(name) for name in manifest.files if name != _BOOKMARK))
        return ()

    def _generations(self) -> list[tuple[int, Path]]:
        """Return number and folder of each generation, oldest first."""
        found = ((_GENERATION.fullmatch(path.name), path) for path in self._entries(_GENERATION))
        return sorted((int(match[1]), path) for match, path in found if match)

    def _entries(self, pattern: re.Pattern[str]) -> list[Path]:
        """Return the entries of the store's folder whose whole name matches; none if there is no folder."""
        try:
            return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]
        except FileNotFoundError:
            return []

    def _prune(self) -> None:
        """Remove old generations, each renamed first so that none is ever half there under its own name."""
        for _, path in self._generations()[: -self._keep]:
            doomed = self.folder / f".removing-{secrets.token_hex(8)}"
            # Too many generations are no harm; the next save tries again.
            with contextlib.suppress(OSError):
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _set_aside(self, bad: Path, reason: str, *, instead: Path) -> None:
        """Report a refused generation and take it out of the way, so that it does not count as one to keep."""
        if not self._read_only:
            with contextlib.suppress(OSError):  # on a read-only disk it stays and is refused again next time
                bad.rename(bad.with_name(f"refused-{bad.name}-{secrets.token_hex(4)}"))
        self._emit(
            Fault(f"{reason} Using {instead.name} instead.", hint="The work since then is done again. Check the disk.")
        )

    def _explain(self, error: OSError, size: int) -> OutOfDisk | CheckpointError:
        """Turn a failed write into an error with path, bytes needed and bytes free."""
        what = f"Cannot save a checkpoint to {self.folder}: {error.strerror or error}. {room_text(self.folder, size)}"
        if error.errno not in _DISK_ERRORS:
            return CheckpointError(
                what, hint="Check that this folder can be written. The checkpoints before are untouched."
            )
        return OutOfDisk(
            what, hint="Make room there, or give another place with --home. The checkpoints before are untouched."
        )


def _render(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files of a generation by name, the manifest last."""
    files = {f"adapter-{stage}.safetensors": data for stage, data in sorted(checkpoint.adapters.items())}
    bookmark = _Bookmark(
        cursor=dict(checkpoint.cursor), counters=dict(checkpoint.counters), random=dict(checkpoint.random)
    )
    files[_BOOKMARK] = _canonical(bookmark.model_dump())
    manifest = _Manifest(
        fingerprint=checkpoint.fingerprint,
        version=checkpoint.version,
        files={name: _File(size=len(data), blake2b=_checksum(data)) for name, data in files.items()},
    )
    body = manifest.model_dump()
    files[_MANIFEST] = _canonical({**body, "checksum": _checksum(_canonical(body))})
    return files


def _read(path: Path) -> Checkpoint:
    """Read one generation and check all of it, or raise CheckpointError with a message that names the file."""
    manifest = _read_manifest(path / _MANIFEST)
    contents: dict[str, bytes] = {}
    for name, file in manifest.files.items():
        data = _read_file(path / name, limit=file.size)
        if len(data) != file.size or _checksum(data) != file.blake2b:
            raise CheckpointError(f"Checkpoint file {path / name} is torn or altered: its checksum is wrong.")
        contents[name] = data
    try:
        bookmark = _Bookmark.model_validate_json(contents.pop(_BOOKMARK))
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"Checkpoint file {path / _BOOKMARK} is not a bookmark: {_brief(error)}.") from None
    return Checkpoint(
        fingerprint=manifest.fingerprint,
        version=manifest.version,
        adapters={_stage_of(name): data for name, data in contents.items()},
        cursor=bookmark.cursor,
        counters=bookmark.counters,
        random=bookmark.random,
    )


def _stage_of(name: str) -> int:
    return int(name.split("-")[1].split(".", maxsplit=1)[0])


def _read_manifest(path: Path) -> _Manifest:
    """Read a manifest; its bytes must be the very ones that its content is written as."""
    data = _read_file(path, limit=_JSON_LIMIT_BYTES)
    try:
        body = json.loads(data)
        checksum = body.pop("checksum")
        is_whole = checksum == _checksum(_canonical(body)) and data == _canonical({**body, "checksum": checksum})
        if is_whole and (format_number(body.get("format"), _FORMAT_NAME) or 0) > _FORMAT:
            raise NewerFormat(
                f"Checkpoint file {path} was written by a newer Potluck: its format is {body['format']}, and this one "
                f"reads {_FORMAT_NAME}-{_FORMAT}.",
                hint=UPGRADE_HERE,
            )
        manifest = _Manifest.model_validate(body)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"Checkpoint file {path} is torn or altered: {_brief(error)}.") from None
    if not is_whole:
        raise CheckpointError(f"Checkpoint file {path} is torn or altered: its checksum is wrong.")
    return manifest


def _read_file(path: Path, *, limit: int) -> bytes:
    """Return the file's bytes, at most one more than `limit`."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"Checkpoint file {path} cannot be read: {error.strerror}.") from None


def _brief(error: Exception) -> str:
    """Return an error's first line, short enough for a message."""
    return (str(error).split("\n")[0] or type(error).__name__)[:120]


def _canonical(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _make_folder(folder: Path) -> None:
    """Create the folder and its parents, and sync the entry of each one made."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
