"""A node's side of the coordinator's protocol: calls that are signed, bounded in time and size, and never retried.

Whoever calls decides what a failure means; a coordinator is optional, so mostly "later".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
import grpc.aio
from cryptography import x509
from google.protobuf.message import Message

from coordinator.address import CoordinatorAddress
from coordinator.signing import Signer, signed_call
from coordinator.v1 import coordinator_pb2 as pb

PROTOCOL = 1
_CALL_S = 5.0
_MAX_REPLY_BYTES = 1 << 20
_NOT_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
)
_SERVICE = "/coordinator.v1.Coordinator"
Reply = TypeVar("Reply", bound=Message)
Stamped = pb.JoinRequest | pb.HeartbeatRequest | pb.LeaveRequest | pb.WatchRunRequest | pb.ReportRoundRequest


class CoordinatorError(Exception):
    """A call came to nothing; the text says why."""


class CoordinatorUnavailable(CoordinatorError):
    """Nobody is there, or it does not answer in time."""


class CoordinatorRefused(CoordinatorError):
    """It answered, and will not do it."""

    def __init__(self, reason: str, code: grpc.StatusCode) -> None:
        super().__init__(reason)
        self.code = code


class CoordinatorBusy(CoordinatorRefused):
    """It has taken as many calls as it takes of one node; this one may be made again later."""


class CoordinatorClient:
    """One connection to one coordinator; opened by the first call, closed by `close`."""

    def __init__(self, address: CoordinatorAddress, signer: Signer) -> None:
        self._address = address
        self._signer = signer
        self._channel: grpc.aio.Channel | None = None
        self._opening = asyncio.Lock()
        self._metadata = (("authorization", f"bearer {address.token}"),)

    async def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """Enter a run, or found it here; every method raises CoordinatorUnavailable or CoordinatorRefused."""
        return await self._call("Join", request, pb.JoinResponse)

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        """Say what this node does now."""
        return await self._call("Heartbeat", request, pb.HeartbeatResponse)

    async def leave(self, request: pb.LeaveRequest) -> None:
        """Say goodbye."""
        await self._call("Leave", request, pb.LeaveResponse)

    async def report_round(self, request: pb.ReportRoundRequest) -> None:
        """Say what came of a round."""
        await self._call("ReportRound", request, pb.ReportRoundResponse)

    async def list_runs(self) -> list[pb.RunSummary]:
        """Return the runs that this coordinator knows."""
        reply = await self._send("ListRuns", pb.ListRunsRequest(), pb.ListRunsResponse)
        return list(reply.runs)

    async def watch(self, fingerprint: str) -> AsyncIterator[pb.WatchRunResponse]:
        """Yield all members of a run, its status, and then what changes, until the connection ends."""
        channel = await self._connected()
        request = self._sign("WatchRun", pb.WatchRunRequest(fingerprint=fingerprint))
        method = channel.unary_stream(
            f"{_SERVICE}/WatchRun",
            request_serializer=pb.SignedCall.SerializeToString,
            response_deserializer=pb.WatchRunResponse.FromString,
        )
        stream = method(request, metadata=self._metadata)
        try:
            async for change in stream:
                yield change
        except grpc.aio.AioRpcError as error:
            raise _read(error) from None
        finally:
            stream.cancel()

    async def close(self) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _call(self, method: str, request: Stamped, reply: type[Reply]) -> Reply:
        return await self._send(method, self._sign(method, request), reply)

    async def _send(self, method: str, message: Message, reply: type[Reply]) -> Reply:
        channel = await self._connected()
        call: grpc.aio.UnaryUnaryMultiCallable[Any, Reply] = channel.unary_unary(
            f"{_SERVICE}/{method}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        try:
            answer: Reply = await call(message, metadata=self._metadata, timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            raise _read(error) from None
        return answer

    def _sign(self, method: str, request: Stamped) -> pb.SignedCall:
        request.stamp.CopyFrom(pb.Stamp(at_s=time.time(), nonce=secrets.token_bytes(16), protocol=PROTOCOL))
        return signed_call(self._signer, method, request.SerializeToString())

    async def _connected(self) -> grpc.aio.Channel:
        async with self._opening:
            if self._channel is None:
                self._channel = await open_channel(self._address)
            return self._channel


def _read(error: grpc.aio.AioRpcError) -> CoordinatorError:
    details = "".join(c for c in (error.details() or "") if c.isprintable())[:300]
    if error.code() in _NOT_THERE:
        return CoordinatorUnavailable(details or "it does not answer")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return CoordinatorBusy(details, error.code())
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return CoordinatorRefused("its token is another one than in this address", error.code())
    return CoordinatorRefused(details or error.code().name.lower(), error.code())


async def open_channel(address: CoordinatorAddress) -> grpc.aio.Channel:
    """Open a connection to a coordinator whose certificate is the one in its address.

    Raises:
        CoordinatorUnavailable: nobody is there.
        CoordinatorRefused: the certificate is another one.
    """
    options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", _MAX_REPLY_BYTES), *_KEEPALIVE]
    # a proxy for the web is no way to a machine in the house
    options.append(("grpc.enable_http_proxy", 0))
    if address.insecure:
        return grpc.aio.insecure_channel(address.target, options=options)
    if address.sha256 is None:
        return grpc.aio.secure_channel(address.target, grpc.ssl_channel_credentials(), options=options)
    pem = await _certificate(address)
    options.append(("grpc.ssl_target_name_override", _name_in(pem)))
    return grpc.aio.secure_channel(address.target, grpc.ssl_channel_credentials(pem), options=options)


async def _certificate(address: CoordinatorAddress) -> bytes:
    """Fetch the certificate (PEM) and compare it with the address."""

    def fetch() -> str:
        return ssl.get_server_certificate((address.host, address.port), timeout=_CALL_S)

    try:
        pem = (await asyncio.to_thread(fetch)).encode()
        found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()
    except (OSError, ValueError) as error:
        raise CoordinatorUnavailable(f"nothing answers at {address.target} ({str(error)[:120]})") from None
    if found != address.sha256:
        raise CoordinatorRefused(
            f"the certificate at {address.target} is not the one in this address: it was made anew, or somebody is "
            "in between; ask whoever runs the coordinator for the address that it prints",
            grpc.StatusCode.UNAUTHENTICATED,
        )
    return pem


def _name_in(pem: bytes) -> str:
    """Return a name that the certificate is made out to."""
    with contextlib.suppress(ValueError, x509.ExtensionNotFound, IndexError):
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(names.get_values_for_type(x509.DNSName)[0])
    return "potluck"
