"""One node's folder: identity, the runs it takes part in, the peers it knows, its lock.

    home/
      format           version of this folder's layout (docs/versions.md)
      identity.key     the key pair behind the peer id
      lock             held while a node runs here
      control.json     where the running node listens for commands
      current          name of the latest run's folder
      port             the TCP port that this node listened on
      logs/
      runs/<run>/      seal.json  local.json  peers.json  checkpoints/

Small files are written whole (`core/files.py`), with a checksum in their last line.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from node.core import versions
from node.core.errors import CheckpointError, ConfigError, NodeError, OutOfDisk
from node.core.files import room_text, sealed, unsealed, write_whole
from node.core.text import brief
from node.core.types import PeerId
from node.trust.identity import SignedBytes
from node.trust.seal import SealedRun, open_seal

_MAX_SMALL_FILE_BYTES = 512 * 1024
_MAX_KNOWN_PEERS = 64
_FORMAT = "format"


class LocalRun(BaseModel):
    """What only this node knows of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str = Field(default="", max_length=128)
    """Digest of the founder's recipe as it was written, to find the run again; empty at a joiner."""
    data: tuple[str, ...] = Field(default=(), max_length=1000)
    """The owner's files, as given."""
    base_model: str = Field(max_length=4096)
    """Folder of the base model on this machine."""
    tokens_given: int = Field(default=0, ge=0)


class KnownPeer(BaseModel):
    """A peer that was met before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peer_id: str = Field(max_length=100)
    addresses: tuple[str, ...] = Field(max_length=16)
    seen_at_s: float = Field(ge=0)


class _KnownPeers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    peers: tuple[KnownPeer, ...] = Field(max_length=_MAX_KNOWN_PEERS)


class _Coordinator(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(max_length=600)


class RunFolder:
    """The files of one run under one home."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def save_seal(self, run: SealedRun) -> None:
        """Keep the run as its founder signed it."""
        fields = {
            "body": run.signed.body,
            "public_key": run.signed.public_key,
            "signature": run.signed.signature,
        }
        encoded = {name: base64.b64encode(value).decode() for name, value in fields.items()}
        write_small(self.path / "seal.json", json.dumps(encoded).encode())

    def load_seal(self) -> SealedRun:
        """Read the run back.

        Raises:
            CheckpointError: the file is missing, damaged or not signed.
        """
        path = self.path / "seal.json"
        try:
            fields = json.loads(read_small(path))
            signed = SignedBytes(*(base64.b64decode(fields[name]) for name in ("body", "public_key", "signature")))
            return open_seal(signed, sender=PeerId("this node's own file"))
        except (OSError, ValueError, KeyError, TypeError, NodeError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {brief(error)}.",
                hint="Join the swarm again by the address of one of its nodes.",
            ) from error

    def save_manifest(self, manifest: bytes) -> None:
        """Keep the founder's list of the base model's weights, whose digest is in the seal.

        Raises:
            OutOfDisk: it was not written.
        """
        _write(self.path / "manifest.json", manifest)

    def save_local(self, local: LocalRun) -> None:
        """Keep what only this node knows."""
        write_small(self.path / "local.json", local.model_dump_json(indent=1).encode())

    def load_local(self) -> LocalRun:
        """Read it back.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = self.path / "local.json"
        try:
            return LocalRun.model_validate_json(read_small(path))
        except (OSError, ValueError) as error:  # pydantic's is a ValueError
            raise CheckpointError(
                f"{path} cannot be read: {brief(error)}.", hint="Start or join the run again."
            ) from error

    def save_coordinator(self, address: str | None) -> None:
        """Keep the address of the run's coordinator, which is a secret, or forget it."""
        told = _Coordinator(address=address).model_dump_json().encode()
        _write(self.path / "coordinator.json", sealed(told), mode=0o600)

    def load_coordinator(self) -> str | None:
        """Return it, or None if there is none.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.path / "coordinator.json"
        try:
            return _Coordinator.model_validate_json(read_small(path)).address if path.exists() else None
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {brief(error)}.",
                hint="Give the coordinator's address again with --coordinator, or `--coordinator none`.",
            ) from error

    def remember_peers(self, met: Iterable[tuple[PeerId, tuple[str, ...]]]) -> None:
        """Add peers to the ones that this node dials when it starts again; the longest unseen are forgotten."""
        known = {peer.peer_id: peer for peer in self.known_peers()}
        for peer_id, addresses in met:
            if addresses:
                known[peer_id] = KnownPeer(peer_id=peer_id, addresses=addresses[:16], seen_at_s=time.time())
        latest = sorted(known.values(), key=lambda peer: -peer.seen_at_s)[:_MAX_KNOWN_PEERS]
        write_small(self.path / "peers.json", _KnownPeers(peers=tuple(latest)).model_dump_json(indent=1).encode())

    def known_peers(self) -> tuple[KnownPeer, ...]:
        """Return the peers met before, latest first; none if the file is missing or damaged."""
        try:
            return _KnownPeers.model_validate_json(read_small(self.path / "peers.json")).peers
        except (OSError, ValueError):
            return ()


class Home:
    """The folder, and the lock that keeps a second node out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / "lock")

    def acquire(self) -> None:
        """Take the home for this process.

        Raises:
            ConfigError: another node runs here, the folder cannot be written, or a newer Potluck has written it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_newer(self.path)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"Another node is running under {self.path}.",
                hint="Give each node on this machine a home of its own: --home DIR. `potluck status` shows the other.",
            ) from None
        except OSError as error:
            raise ConfigError(
                f"Cannot write to {self.path}: {error.strerror}.", hint="Choose another --home."
            ) from error
        if _format_of(self.path) != versions.HOME_FORMAT:
            write_small(self.path / _FORMAT, str(versions.HOME_FORMAT).encode())

    def release(self) -> None:
        """Give the home back."""
        self._lock.release()

    @property
    def identity_path(self) -> Path:
        """Where the key pair is."""
        return self.path / "identity.key"

    @property
    def log_path(self) -> Path:
        """Where the node's log goes."""
        return self.path / "logs" / "node.jsonl"

    def run(self, fingerprint: str) -> RunFolder:
        """Return a run's folder, which may not exist yet."""
        return RunFolder(self.path / "runs" / fingerprint[:16])

    def create_run(self, fingerprint: str) -> RunFolder:
        """Make a run's folder and make it the current one.

        Raises:
            OutOfDisk: it cannot be made.
        """
        folder = self.run(fingerprint)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutOfDisk(f"Cannot make {folder.path}: {error.strerror}.", hint="Choose another --home.") from error
        write_small(self.path / "current", folder.path.name.encode())
        return folder

    def runs(self) -> list[RunFolder]:
        """Return the folders of all runs, the latest used first."""
        folders = [path for path in (self.path / "runs").glob("*") if (path / "seal.json").is_file()]
        return [RunFolder(path) for path in sorted(folders, key=lambda path: -path.stat().st_mtime)]

    def current_run(self) -> RunFolder:
        """Return the run that this home worked on last.

        Raises:
            ConfigError: there is none, or a newer Potluck has written it.
        """
        refuse_newer(self.path)
        try:
            name = read_small(self.path / "current").decode()
        except (OSError, ValueError):
            name = ""
        folder = self.path / "runs" / name
        if not re.fullmatch(r"[\w.-]{1,100}", name) or not folder.is_dir():
            raise ConfigError(
                f"There is no run under {self.path}.",
                hint="Start one with `potluck start recipe.yaml`, or name the node's home with --home.",
            )
        return RunFolder(folder)

    def remembered_port(self) -> int | None:
        """Return the TCP port that this node used last, so that its address stays the same."""
        try:
            port = int(read_small(self.path / "port"))
        except (OSError, ValueError):
            return None
        return port if 0 < port < 65536 else None

    def remember_port(self, port: int) -> None:
        """Keep the port for the next start."""
        write_small(self.path / "port", str(port).encode())

    def archive_run(self, folder: RunFolder) -> Path:
        """Move a run's folder aside and return where it went; nothing is deleted.

        Raises:
            OutOfDisk: it cannot be moved.
        """
        name, number = f"{folder.path.name}-until-{int(time.time())}", 1
        while (target := folder.path.with_name(f"{name}.{number}" if number > 1 else name)).exists():
            number += 1
        try:
            folder.path.rename(target)
        except OSError as error:
            raise OutOfDisk(f"Cannot move {folder.path}: {error.strerror}.", hint="Choose another --home.") from error
        return target


def refuse_newer(home: Path) -> None:
    """Raise ConfigError if a newer Potluck has written this home; nothing in it is touched."""
    found = _format_of(home)
    if found is not None and found > versions.HOME_FORMAT:
        raise ConfigError(
            f"{home} was written by a newer Potluck: its format is {found}, and this one reads {versions.HOME_FORMAT}.",
            hint=f"{versions.UPGRADE_HERE} Or choose another --home.",
        )


def _format_of(home: Path) -> int | None:
    """Return the home's format; None if nothing says so, as in a new one and in those from before there was a number.

    A damaged number says nothing either: the files themselves name their formats, too.
    """
    try:
        text = read_small(home / _FORMAT)
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() and len(text) < 7 else None


def write_small(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, with its checksum.

    Raises:
        OutOfDisk: it was not written: the disk is full, read-only, or fails. What was there is untouched.
    """
    _write(path, sealed(data))


def _write(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, mode=mode)
    except OSError as error:
        raise OutOfDisk(
            f"Cannot write {path}: {error.strerror}. {room_text(path.parent, len(data))}",
            hint="Make room on the disk, or choose another --home.",
        ) from error


def read_small(path: Path) -> bytes:
    """Read a file of ours that cannot be large.

    Raises:
        OSError: it is missing, unreadable or too large.
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_SMALL_FILE_BYTES + 1)
    if len(data) > _MAX_SMALL_FILE_BYTES:
        raise OSError(f"{path} is larger than {_MAX_SMALL_FILE_BYTES} bytes")
    return unsealed(data)
