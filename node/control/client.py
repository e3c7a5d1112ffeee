"""The commands' side of the local API: find the node that runs under a home, and ask it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import grpc

from node.control.server import POINTER
from node.core.errors import NodeError, NotRunning
from node.v1 import control_pb2, control_pb2_grpc

R = TypeVar("R")
_TIMEOUT_S = 10.0
_SAVE_TIMEOUT_S = 120.0


def running_pid(home: Path) -> int | None:
    """Return the process id of the node that runs under `home`, or None."""
    try:
        pid = int(str(_pointer(home)["pid"]))
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return pid


class ControlClient:
    """A connection to a running node; use it as a context manager."""

    def __init__(self, home: Path) -> None:
        """Connect lazily.

        Raises:
            NotRunning: no node runs under `home`.
        """
        if running_pid(home) is None:
            raise NotRunning(
                f"No node is running under {home}.",
                hint="Start one with `potluck start recipe.yaml` or `potluck join ADDRESS`, "
                "or name its home with --home.",
            )
        self._home = home
        self._channel = grpc.insecure_channel(str(_pointer(home)["address"]))
        self._stub = control_pb2_grpc.ControlStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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

    def stop(self) -> None:
        """Ask the node to save, leave and end."""
        self._call(self._stub.Stop, control_pb2.StopRequest(), _TIMEOUT_S)

    def _call(self, method: Callable[..., R], request: object, timeout_s: float) -> R:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.FAILED_PRECONDITION:
                raise NodeError(error.details() or "the node refused") from error
            raise NotRunning(
                f"The node under {self._home} does not answer ({code.name.lower().replace('_', ' ')}).",
                hint="It may be starting or ending: try again in a few seconds.",
            ) from error


def _pointer(home: Path) -> dict[str, object]:
    data = (home / POINTER).read_bytes()[:4096]
    loaded = json.loads(data)
    if not isinstance(loaded, dict):
        raise ValueError(f"{home / POINTER} is not a pointer to a node")
    return loaded
