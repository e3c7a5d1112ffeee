"""Where a page or an endpoint listens, as its owner writes it."""

from __future__ import annotations

import ipaddress


class WrongAddress(ValueError):
    """A text is not an address to listen on, or nobody can listen there."""


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `:PORT` or `PORT`; without a host it is this machine alone.

    Raises:
        WrongAddress: it is none of these.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16):
        raise WrongAddress(f"{text[:100]!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def is_address(host: str) -> bool:
    """Whether `host` is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_local(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
