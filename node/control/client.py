"""The commands' side of the local API: find the node that runs under a home, and ask it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

import grpc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from node.control.server import MESSAGE_LIMITS, POINTER
from node.core.errors import NodeError, NotRunning
from node.core.versions import LOCAL_API
from node.v1 import control_pb2, control_pb2_grpc

R = TypeVar("R")
_TIMEOUT_S = 10.0
_SAVE_TIMEOUT_S = 120.0
_GATHER_TIMEOUT_S = 600.0
_STAGES_TIMEOUT_S = 600.0
_MAX_POINTER_BYTES = 4096


class _Pointer(BaseModel):
    """Where the running node listens, as it left it in its home."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a node of another version may say more

    pid: int = Field(gt=0, lt=1 << 31)
    address: str = Field(pattern=r"^unix:/", max_length=200)
    api: int = Field(default=0, ge=0, lt=1 << 31)


def running_pid(home: Path) -> int | None:
    """Return the process id of the node that runs under `home`, or None."""
    try:
        pid = _pointer(home).pid
        os.kill(pid, 0)
    except (OSError, ValidationError):
        return None
    return pid


class ControlClient:
    """A connection to a running node; use it as a context manager."""

    def __init__(self, home: Path) -> None:
        """Connect lazily.

        Raises:
            NotRunning: no node runs under `home`.
            NodeError: one of another version does.
        """
        if running_pid(home) is None:
            raise NotRunning(
                f"No node is running under {home}.",
                hint="Start one with `potluck start recipe.yaml` or `potluck join ADDRESS`, "
                "or name its home with --home.",
            )
        pointer = _pointer(home)
        if pointer.api != LOCAL_API:
            raise NodeError(
                f"The node under {home} was started by another version of Potluck than this command's.",
                hint=f"Let it save and end with `kill {pointer.pid}`, and start it again.",
            )
        self._home = home
        self._channel = grpc.insecure_channel(pointer.address, options=MESSAGE_LIMITS)
        self._stub = control_pb2_grpc.ControlStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def status(self) -> control_pb2.GetStatusResponse:
        """Return the swarm as the node sees it."""
        answer: control_pb2.GetStatusResponse = self._call(
            self._stub.GetStatus, control_pb2.GetStatusRequest(), _TIMEOUT_S
        )
        return answer

    def save_checkpoint(self) -> int:
        """Let the node save now; return the version on disk."""
        answer = self._call(self._stub.SaveCheckpoint, control_pb2.SaveCheckpointRequest(), _SAVE_TIMEOUT_S)
        return int(answer.version)

    def gather_adapter(self) -> tuple[control_pb2.GatheredHeader, dict[int, bytes]]:
        """Return the adapter of all stages at one step, by stage a safetensors file."""
        header, parts = control_pb2.GatheredHeader(), dict[int, list[bytes]]()
        stream = self._call(self._stub.GatherAdapter, control_pb2.GatherAdapterRequest(), _GATHER_TIMEOUT_S)
        for message in self._each(stream):
            if message.WhichOneof("kind") == "header":
                header = message.header
            else:
                parts.setdefault(message.part.stage, []).append(message.part.data)
        return header, {stage: b"".join(data) for stage, data in sorted(parts.items())}

    def run_stages(self, request: control_pb2.RunStagesRequest) -> control_pb2.RunStagesResponse:
        """Return hidden states after all stages of the swarm."""
        answer: control_pb2.RunStagesResponse = self._call(self._stub.RunStages, request, _STAGES_TIMEOUT_S)
        return answer

    def stop(self) -> None:
        """Ask the node to save, leave and end."""
        self._call(self._stub.Stop, control_pb2.StopRequest(), _TIMEOUT_S)

    def _each(self, stream: Iterable[R]) -> Iterator[R]:
        try:
            yield from stream
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def _call(self, method: Callable[..., R], request: object, timeout_s: float) -> R:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def _explain(self, error: grpc.RpcError) -> NodeError:
        code = error.code()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return NodeError(error.details() or "the node refused")
        return NotRunning(
            f"The node under {self._home} does not answer ({code.name.lower().replace('_', ' ')}).",
            hint="It may be starting or ending: try again in a few seconds.",
        )


def _pointer(home: Path) -> _Pointer:
    with (home / POINTER).open("rb") as file:
        return _Pointer.model_validate_json(file.read(_MAX_POINTER_BYTES))
