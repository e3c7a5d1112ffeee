"""Keeps strangers away from the page: the right host name, the token, and headers that leave a script no way.

A page on localhost is reachable for every web page that the owner's browser shows, so the token alone would not do:
the Host header is checked (DNS rebinding), the cookie is `SameSite=Strict`, no other origin is ever allowed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOKEN_BYTES = 32
_MAX_COOKIE_CHARS = 4096
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def new_token() -> str:
    """Return a fresh token that goes into a URL."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def is_own_host(header: str, names: Collection[str]) -> bool:
    """Whether a Host header names this machine.

    A number cannot be rebound to another one, so every IP address may stand there; of names only `localhost` and those
    given.
    """
    host = header.strip().lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host == "localhost" or host in names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Gate:
    """ASGI middleware in front of everything, the page's own files included."""

    def __init__(self, app: ASGIApp, *, token: str, names: Collection[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._names = frozenset(name.lower() for name in names)
        # cookies do not know ports: two nodes on one machine must not throw out each other's
        self._cookie = f"potluck-{hashlib.sha256(self._token).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._answer(scope)
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """Return what to say instead of the page, or None for who may see it."""
        headers = Headers(scope=scope)
        if not is_own_host(headers.get("host", ""), self._names):
            return PlainTextResponse("not here\n", 421)
        given = QueryParams(scope["query_string"]).get("token")
        if given is not None and scope["path"] == "/" and self._is_right(given):
            come_in = RedirectResponse("/", 303)
            come_in.set_cookie(self._cookie, given, httponly=True, samesite="strict", path="/")
            return come_in
        if self._is_right(_cookie_in(headers.get("cookie", ""), self._cookie)):
            return None
        return PlainTextResponse("unauthorized\n", 401)

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)


def _cookie_in(header: str, name: str) -> str:
    try:
        morsel = SimpleCookie(header[:_MAX_COOKIE_CHARS]).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""
