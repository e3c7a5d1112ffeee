"""An Internet in small: a public street, and homes behind routers that let nobody in. Needs root and nftables."""

import shutil
import subprocess
from typing import Self

from faults.rounds_network import can_make_namespaces

_STREET = "potluck-street"
PUBLIC = "45.1.1.10"
"""A public machine's address; libp2p relays at public addresses alone."""


def can_make_routers() -> bool:
    """Whether this process may set up routers."""
    return shutil.which("nft") is not None and can_make_namespaces()


class Internet:
    """One public machine on the street, and homes whose routers translate addresses (one machine each)."""

    def __init__(self, homes: int = 2) -> None:
        self._homes = range(homes)

    def __enter__(self) -> Self:
        self._delete()
        for space in self._spaces():
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", _STREET, "link", "add", "street", "type", "bridge")
        _ip("-n", _STREET, "link", "set", "street", "up")
        self._attach("potluck-public", "pub", PUBLIC)
        for home in self._homes:
            self._attach(_router(home), f"wan{home}", f"45.1.1.{20 + home}")
            _ip("link", "add", "eth0", "netns", _home(home), "type", "veth", "peer", "lan", "netns", _router(home))
            _ip("-n", _router(home), "address", "add", f"192.168.{home + 1}.1/24", "dev", "lan")
            _ip("-n", _router(home), "link", "set", "lan", "up")
            _ip("-n", _home(home), "address", "add", f"192.168.{home + 1}.20/24", "dev", "eth0")
            _ip("-n", _home(home), "link", "set", "eth0", "up")
            _ip("-n", _home(home), "route", "add", "default", "via", f"192.168.{home + 1}.1")
            _inside(_router(home), "sysctl", "-qw", "net.ipv4.ip_forward=1")
            _inside(
                _router(home),
                "nft",
                "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; };"
                ' add rule ip nat out oifname "street" masquerade; add table ip door;'
                " add chain ip door in { type filter hook forward priority 0; policy accept; };"
                ' add rule ip door in iifname "street" ct state new drop',
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._delete()

    def inside(self, home: int | None) -> tuple[str, ...]:
        """Return what to write before a command that runs in a home, or on the public machine."""
        return ("ip", "netns", "exec", "potluck-public" if home is None else _home(home))

    def _attach(self, space: str, port: str, address: str) -> None:
        _ip("link", "add", "street", "netns", space, "type", "veth", "peer", port, "netns", _STREET)
        _ip("-n", _STREET, "link", "set", port, "master", "street", "up")
        _ip("-n", space, "address", "add", f"{address}/24", "dev", "street")
        _ip("-n", space, "link", "set", "street", "up")

    def _spaces(self) -> list[str]:
        return [_STREET, "potluck-public", *map(_router, self._homes), *map(_home, self._homes)]

    def _delete(self) -> None:
        for space in self._spaces():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


def _router(home: int) -> str:
    return f"potluck-router{home}"


def _home(home: int) -> str:
    return f"potluck-home{home}"


def _inside(space: str, *command: str) -> None:
    _ip("netns", "exec", space, *command)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
