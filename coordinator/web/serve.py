"""Runs the page in the caller's event loop, without touching the process's signals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp

_BACKLOG = 64
_MAX_CONNECTIONS = 64
_LAST_WORDS_S = 1


class _Server(uvicorn.Server):
    """Leaves Ctrl-C and SIGTERM to the program around it, which knows what is to be saved first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def open_socket(host: str, port: int, *, or_any: bool = False) -> socket.socket:
    """Listen on a port; with `or_any` on a free one if that one is taken.

    Raises:
        OSError: the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError:
        if not or_any:
            raise
        return socket.create_server((host, 0), family=family, backlog=_BACKLOG)


def page_url(listener: socket.socket, token: str) -> str:
    """Return the address to open in a browser; it contains the token."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={token}"


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve while inside; streams that are open at the end are cut after a second."""
    server = _Server(
        uvicorn.Config(
            app,
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name="web page")
    try:
        yield
    finally:
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3 * _LAST_WORDS_S):
                await task
        listener.close()
