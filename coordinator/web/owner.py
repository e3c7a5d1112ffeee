"""A page for whoever started the program: its address with the token is said, and stands in a file of theirs alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from coordinator.listen import WrongAddress, is_address, is_local, parse_listen
from coordinator.secret_files import keep_secret
from coordinator.web.app import make_app
from coordinator.web.gate import new_token
from coordinator.web.serve import open_socket, page_url, serving
from coordinator.web.snapshot import Source

URL_FILE = "dashboard.url"


@contextlib.asynccontextmanager
async def owners_page(
    source: Source, listen: str, folder: Path, say: Callable[[str], None], *, default: str = ""
) -> AsyncIterator[None]:
    """Serve a page while inside.

    Args:
        source: What it shows.
        listen: Where, as its owner wrote it.
        folder: Gets a file with the address, mode 0600, for as long as the page is there.
        say: Told the address.
        default: If `listen` is this and it is taken, any free port will do.

    Raises:
        WrongAddress: `listen` is none, or it is taken or not this machine's.
    """
    host, port = parse_listen(listen)
    try:
        listener = open_socket(host, port, or_any=listen == default)
    except OSError as error:
        raise WrongAddress(f"cannot listen on {listen}: {error.strerror or error}; 0 takes a free port") from error
    token = new_token()
    url, file = page_url(listener, token), folder / URL_FILE
    names = () if is_address(host) else (host,)
    async with serving(make_app(source, token=token, names=names), listener):
        with contextlib.suppress(OSError):  # on a disk that refuses the page is still there, and its address was said
            keep_secret(file, f"{url}\n".encode())
        say(f"Watch it in a browser:  {url}")
        if not is_local(host):
            say("Others on the network may open it too with that token; the connection is not encrypted.")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
