"""The node's side of the local API: a gRPC server on a Unix socket that only the owner's account can open.

The socket lives in a short folder of its own (`core/sockets.py`); the home holds a pointer to it and the process id,
which is how the commands find a running node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import grpc
from grpc import aio

from node.core.errors import NodeError, OutOfDisk
from node.core.files import room_text, write_whole
from node.core.sockets import SocketFolder
from node.core.types import Standing
from node.core.versions import LOCAL_API
from node.v1 import control_pb2, control_pb2_grpc

POINTER = "control.json"
MESSAGE_LIMITS = [("grpc.max_receive_message_length", 512 << 20), ("grpc.max_send_message_length", 512 << 20)]
"""Hidden states of a microbatch of a large model, between two processes of one owner."""
_PART_BYTES = 1 << 20


class Whole(Protocol):
    """An adapter of all stages."""

    @property
    def standing(self) -> Standing:
        """Where it stands."""

    @property
    def by_stage(self) -> Mapping[int, bytes]:
        """Each stage as a safetensors file."""


class Controllable(Protocol):
    """What the local API needs of the node behind it."""

    def status(self) -> control_pb2.GetStatusResponse:
        """Return the swarm as this node sees it."""

    async def save_checkpoint(self) -> int:
        """Save now and return the version that is on disk."""

    async def gather(self) -> Whole:
        """Return the adapter of all stages at one step."""

    async def run_stages(self, request: control_pb2.RunStagesRequest) -> control_pb2.RunStagesResponse:
        """Bring hidden states through all stages of the swarm."""

    def request_stop(self) -> None:
        """Begin to leave."""


class ControlServer(control_pb2_grpc.ControlServicer):
    """Serves the local API for one node."""

    def __init__(self, home: Path, node: Controllable) -> None:
        self._node = node
        self._home = home
        self._pointer = home / POINTER
        self._sockets: SocketFolder | None = None
        self._server: aio.Server | None = None

    async def start(self) -> None:
        """Listen, and leave the pointer in the home.

        Raises:
            OutOfDisk: the pointer or the socket cannot be made.
        """
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        self._sockets = SocketFolder(self._home)
        address = f"unix:{self._sockets.path / 'control.sock'}"
        self._server = aio.server(maximum_concurrent_rpcs=16, options=MESSAGE_LIMITS)
        control_pb2_grpc.add_ControlServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(address)
        await self._server.start()
        pointer = json.dumps({"pid": os.getpid(), "address": address, "api": LOCAL_API}).encode()
        try:
            write_whole(self._pointer, pointer)
        except OSError as error:
            raise OutOfDisk(
                f"Cannot write {self._pointer}: {error.strerror}. {room_text(self._pointer.parent, len(pointer))}",
                hint="Make room on the disk, or choose another --home.",
            ) from error

    async def close(self) -> None:
        """Stop listening and remove the pointer."""
        if self._server is not None:
            await self._server.stop(grace=0.5)
        with contextlib.suppress(OSError):  # on a disk that refuses; whose process is gone is no pointer
            self._pointer.unlink(missing_ok=True)
        if self._sockets is not None:
            await asyncio.to_thread(self._sockets.close)

    async def GetStatus(self, request: Any, context: Any) -> control_pb2.GetStatusResponse:  # noqa: ARG002, N802
        """Return the swarm as this node sees it."""
        return self._node.status()

    async def SaveCheckpoint(self, request: Any, context: Any) -> control_pb2.SaveCheckpointResponse:  # noqa: ARG002, N802
        """Save now."""
        try:
            return control_pb2.SaveCheckpointResponse(version=await self._node.save_checkpoint())
        except NodeError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message)
            raise

    async def GatherAdapter(self, request: Any, context: Any) -> AsyncIterator[control_pb2.GatherAdapterResponse]:  # noqa: ARG002, N802
        """Send all stages of the adapter."""
        try:
            whole = await self._node.gather()
        except NodeError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{error.message} {error.hint}".strip())
            raise
        yield control_pb2.GatherAdapterResponse(
            header=control_pb2.GatheredHeader(
                version=whole.standing.version,
                committed_tokens=whole.standing.committed_tokens,
                num_stages=len(whole.by_stage),
            )
        )
        for stage, data in whole.by_stage.items():
            for start in range(0, len(data), _PART_BYTES):
                part = control_pb2.GatheredPart(stage=stage, data=data[start : start + _PART_BYTES])
                yield control_pb2.GatherAdapterResponse(part=part)

    async def RunStages(self, request: Any, context: Any) -> control_pb2.RunStagesResponse:  # noqa: N802
        """Bring hidden states through all stages."""
        try:
            return await self._node.run_stages(request)
        except NodeError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{error.message} {error.hint}".strip())
            raise

    async def Stop(self, request: Any, context: Any) -> control_pb2.StopResponse:  # noqa: ARG002, N802
        """Begin to leave; the answer comes before the end."""
        self._node.request_stop()
        return control_pb2.StopResponse()
