"""A local network: machines, as network namespaces, on one bridge. Needs root."""

import subprocess
from typing import Self

_SWITCH = "potluck-lan"


class Lan:
    """The network, for as long as the context lasts; each machine has a bridge of Docker's beside its card."""

    def __init__(self, machines: int = 2) -> None:
        self._machines = range(machines)

    def __enter__(self) -> Self:
        self._delete()
        _run("netns", "add", _SWITCH)
        _run("-n", _SWITCH, "link", "add", "switch", "type", "bridge")
        _run("-n", _SWITCH, "link", "set", "switch", "up")
        for machine in self._machines:
            space, port = _space(machine), f"port{machine}"
            _run("netns", "add", space)
            _run("-n", space, "link", "set", "lo", "up")
            _run("link", "add", "eth0", "netns", space, "type", "veth", "peer", port, "netns", _SWITCH)
            _run("-n", _SWITCH, "link", "set", port, "master", "switch", "up")
            _run("-n", space, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
            _run("-n", space, "link", "set", "eth0", "up")
            _run("-n", space, "link", "add", "docker0", "type", "bridge")
            _run("-n", space, "address", "add", "172.17.0.1/16", "dev", "docker0")
            _run("-n", space, "link", "set", "docker0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._delete()

    def address(self, machine: int) -> str:
        """Return the IP address of a machine."""
        return f"10.202.0.{machine + 10}"

    def inside(self, machine: int) -> tuple[str, ...]:
        """Return what to write before a command that runs on a machine."""
        return ("ip", "netns", "exec", _space(machine))

    def _delete(self) -> None:
        for space in (_SWITCH, *map(_space, self._machines)):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


def _space(machine: int) -> str:
    return f"potluck-lan{machine}"


def _run(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
