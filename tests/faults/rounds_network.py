"""Two halves of a network that can be torn apart and healed: namespaces, a router between them, and a rate on its way.

A cut is silent, as when a line goes dead far away: packets go into the router and none comes out, no error returns.
Needs root. (The kernel's `netem` is not built in everywhere; `tbf` and forwarding are.)
"""

import os
import subprocess
from typing import Self

_ROUTER = "potluck-r"


def can_make_namespaces() -> bool:
    """Whether this process may tear a network apart."""
    if os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", "potluck-probe"], capture_output=True)
    subprocess.run(["ip", "netns", "delete", "potluck-probe"], capture_output=True)
    return made.returncode == 0


class Halves:
    """The network, for as long as the context lasts; side 0 and side 1."""

    def __init__(self, *, mbit_per_s: float | None = None) -> None:
        """Set up.

        Args:
            mbit_per_s: Rate from one half to the other, each way; None for none.
        """
        self._rate = mbit_per_s

    def __enter__(self) -> Self:
        self._delete()
        for space in (_ROUTER, *map(_space, (0, 1))):
            _run("ip", "netns", "add", space)
            _run("ip", "-n", space, "link", "set", "lo", "up")
        for side in (0, 1):
            inner, outer = f"pl-n{side}", f"pl-r{side}"
            _run("ip", "link", "add", inner, "netns", _space(side), "type", "veth", "peer", outer, "netns", _ROUTER)
            _run("ip", "-n", _space(side), "address", "add", f"{self.address(side)}/24", "dev", inner)
            _run("ip", "-n", _ROUTER, "address", "add", f"10.201.{side}.1/24", "dev", outer)
            _run("ip", "-n", _space(side), "link", "set", inner, "up")
            _run("ip", "-n", _ROUTER, "link", "set", outer, "up")
            _run("ip", "-n", _space(side), "route", "add", "default", "via", f"10.201.{side}.1")
            if self._rate is not None:
                rate = f"{self._rate}mbit"
                shape = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "300ms")
                _run("ip", "netns", "exec", _ROUTER, "tc", "qdisc", "add", "dev", outer, *shape)
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self._delete()

    def address(self, side: int) -> str:
        """Return the IP address of one half."""
        return f"10.201.{side}.2"

    def inside(self, side: int) -> tuple[str, ...]:
        """Return what to write before a command that runs in one half."""
        return ("ip", "netns", "exec", _space(side))

    def cut(self) -> None:
        """Let nothing through any more."""
        self._forward("0")

    def heal(self) -> None:
        """Let everything through again."""
        self._forward("1")

    @staticmethod
    def _forward(value: str) -> None:
        _run("ip", "netns", "exec", _ROUTER, "sysctl", "-qw", f"net.ipv4.ip_forward={value}")

    @staticmethod
    def _delete() -> None:
        for space in (_ROUTER, _space(0), _space(1)):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


def _space(side: int) -> str:
    return f"potluck-{side}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
