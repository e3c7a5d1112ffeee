"""Serves a registry of metrics to Prometheus over HTTP, for a coordinator and for a node alike.

prometheus-client makes the page; here are the bounds that its own server lacks: few threads, and none that a silent
caller holds for ever. Nothing is encrypted and nobody is asked who he is, so it listens on this machine alone unless
its owner says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

from coordinator.listen import WrongAddress, parse_listen

T = TypeVar("T")

_MAX_CALLERS = 8
_SILENCE_S = 5.0
_ANSWER_S = 5.0


def from_other_threads(function: Callable[[], T], loop: asyncio.AbstractEventLoop) -> Callable[[], T]:
    """Return `function` for other threads: it runs on the event loop, which owns what it reads.

    It raises TimeoutError when the loop has not got to it within a few seconds.
    """

    async def call() -> T:
        return function()

    return lambda: asyncio.run_coroutine_threadsafe(call(), loop).result(_ANSWER_S)


@contextlib.asynccontextmanager
async def metrics_endpoint(registry: CollectorRegistry, listen: str) -> AsyncIterator[str]:
    """Serve `registry` at `listen` while inside; gives the URL, in which port 0 has become the real one.

    Raises:
        WrongAddress: `listen` is no address, or it is taken or not this machine's.
    """
    host, port = parse_listen(listen)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which the text format cannot mark as what it is
    try:
        server = _bind(host, port)
    except OSError as error:
        raise WrongAddress(f"cannot listen on {listen}: {error.strerror or error}") from error
    server.set_app(_patient(make_wsgi_app(registry)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{server.server_address[1]}/metrics"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each caller, of whom there are few at a time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.Semaphore(_MAX_CALLERS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Listen without asking the DNS for this machine's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or hang up if there are too many already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make room for the next one at the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a caller who hung up or fell silent is no event."""


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: Prometheus calls every few seconds."""


def _bind(host: str, port: int) -> _Server:
    kind = _ServerV6 if ":" in host else _Server
    return kind((host, port), _Handler)


def _patient(app: Callable[..., Iterable[bytes]]) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """Answer 503 instead of a traceback when the program is too busy to be asked."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except TimeoutError:
            start_response("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"busy: the event loop did not answer in time\n"]

    return answer
