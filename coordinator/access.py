"""Who may call: a token for all, another for what changes a run, and a limit for each.

A caller without a token learns nothing, not even which methods exist: every answer is a bare UNAUTHENTICATED.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from coordinator.secret_files import keep_secret
from coordinator.tally import Tally

_OPERATOR = "/coordinator.v1.Operator/"
_MAX_CALLERS = 4096
_MAX_NONCES = 65_536
STAMP_S = 60.0
"""How far a caller's clock may be off."""


class Limiter:
    """A token bucket for each caller; the callers that were silent longest are forgotten."""

    def __init__(self, *, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, now: float) -> float:
        """Count a call of `caller` at `now` (seconds); return 0, or for how long it is to wait."""
        left, at = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._per_s)
        is_allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if is_allowed else left, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if is_allowed else (1.0 - left) / self._per_s


class Nonces:
    """Those seen within the last minute: a call that is sent again is refused."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def is_new(self, caller: str, nonce: bytes, now: float) -> bool:
        """Note a nonce; return False if the caller has used it within the time that a stamp holds."""
        while self._seen and (next(iter(self._seen.values())) < now - 2 * STAMP_S or len(self._seen) > _MAX_NONCES):
            self._seen.popitem(last=False)
        key = caller.encode() + nonce
        if key in self._seen:
            return False
        self._seen[key] = now
        return True


@dataclass(frozen=True)
class Tokens:
    """The two secrets of a coordinator."""

    member: str
    """In the address that nodes are given."""
    operator: str
    """For what changes a run; stays with whoever runs the coordinator."""

    @classmethod
    def load_or_create(cls, folder: Path) -> Tokens:
        """Read both from the state folder, or make them there (mode 0600).

        Raises:
            OSError: they cannot be read or written.
        """
        return cls(_secret(folder / "member.token"), _secret(folder / "operator.token"))


def _secret(path: Path) -> str:
    if not path.exists():
        keep_secret(path, secrets.token_urlsafe(24).encode())
    return path.read_text().strip()[:128]


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Lets through who brings the right token, before anything of the call is read."""

    def __init__(self, tokens: Tokens, tally: Tally) -> None:
        self._tokens = tokens
        self._tally = tally

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler, or one that turns the caller away."""
        given = ""
        for name, value in handler_call_details.invocation_metadata or ():
            if name == "authorization" and isinstance(value, str):
                given = value.removeprefix("bearer ")[:256]
        is_operator = _same(given, self._tokens.operator)
        is_member = _same(given, self._tokens.member)
        needs_operator = handler_call_details.method.startswith(_OPERATOR)
        if is_operator or (is_member and not needs_operator):
            self._tally.calls["Operator"] += needs_operator
            return _that_reads(await continuation(handler_call_details))
        self._tally.refused["token"] += 1
        if is_member:
            return _turned_away(grpc.StatusCode.PERMISSION_DENIED, "this takes the operator's token")
        return _turned_away(grpc.StatusCode.UNAUTHENTICATED, "")


def _same(given: str, expected: str) -> bool:
    return bool(expected) and hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _turned_away(code: grpc.StatusCode, details: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def abort(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(code, details)

    # of streams, because then nothing of the request is read: a caller who sends none, or a huge one, learns no more
    return grpc.stream_stream_rpc_method_handler(abort)


def _that_reads(handler: Any) -> Any:
    """Return a handler that refuses a request which is none; gRPC would print a traceback and answer UNKNOWN."""
    if handler is None:
        return None
    read, act = handler.request_deserializer, handler.unary_unary

    def read_or(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:  # the calls with a stream refuse an empty request themselves
            return read(b"") if act is None else None

    async def act_or_refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "that is no request")
        return await act(request, context)

    return handler._replace(request_deserializer=read_or, unary_unary=act_or_refuse if act is not None else None)
