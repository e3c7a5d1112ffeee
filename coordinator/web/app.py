"""The page as an ASGI application: its files, a snapshot, a stream of snapshots, and the join line as a QR code."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import segno
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from coordinator.web.gate import Gate
from coordinator.web.snapshot import Source

_STATIC = Path(__file__).parent / "static"
_MAX_VIEWERS = 16


def make_app(source: Source, *, token: str, names: Collection[str] = ()) -> ASGIApp:
    """Return the page over what `source` shows.

    Args:
        source: What there is to see; asked only while somebody looks.
        token: Who names it once in the URL (`/?token=…`) gets a cookie; everybody else learns nothing.
        names: Host names besides `localhost` under which the page is reached, such as a reverse proxy's.
    """
    page = _Page(source)
    app = Starlette(
        routes=[
            Route("/", page.index),
            Route("/snapshot", page.snapshot),
            Route("/changes", page.changes),
            Route("/join/{fingerprint}.svg", page.join_code),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ]
    )
    return Gate(app, token=token, names=names)


class _Page:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._viewers = 0

    async def index(self, _: Request) -> Response:
        return FileResponse(_STATIC / "index.html")

    async def snapshot(self, _: Request) -> Response:
        return Response(self._source.snapshot().model_dump_json(), media_type="application/json")

    async def changes(self, _: Request) -> Response:
        if self._viewers >= _MAX_VIEWERS:
            return PlainTextResponse("too many viewers\n", 503, {"retry-after": "30"})
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        """Yield server-sent events; a snapshot equal to the one before is a comment, which shows a dead line."""
        self._viewers += 1
        before = ""
        try:
            async for snapshot in self._source.changes():
                now = snapshot.model_dump_json()
                yield f"data: {now}\n\n" if now != before else ": no change\n\n"
                before = now
        finally:
            self._viewers -= 1

    async def join_code(self, request: Request) -> Response:
        wanted = request.path_params["fingerprint"]
        line = next((run.commands.join for run in self._source.snapshot().runs if run.fingerprint == wanted), "")
        if not line:
            return PlainTextResponse("no such run\n", 404)
        return Response(_qr_code(line), media_type="image/svg+xml")


def _qr_code(text: str) -> bytes:
    """Return a QR code as SVG, black on white in both themes: inverted ones are not read by every camera."""
    file = io.BytesIO()
    segno.make(text, error="l", micro=False).save(file, kind="svg", border=3, light="#fff", dark="#000", omitsize=True)
    return file.getvalue()
