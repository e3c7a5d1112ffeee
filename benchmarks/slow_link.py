"""Two hosts on one machine with a slow link between them: network namespaces, and packets that are really late.

Each namespace has a TUN device; this process carries packets from one to the other, as late and as thin as asked. (The
kernel's own `netem` does the same, where it is built in.) Needs root.
"""

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
import threading
from typing import Self

SPACES = ("potluck-a", "potluck-b")
ADDRESSES = ("10.201.7.1", "10.201.7.2")
_DEVICE = "plink{}"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 1400
_QUEUE_BYTES = 256 * 1024
"""What a home router holds before it drops packets."""


class SlowLink:
    """The link, for as long as the context lasts."""

    def __init__(self, *, mbit_per_s: float, one_way_s: float) -> None:
        self._bytes_per_s = mbit_per_s * 1e6 / 8
        self._one_way_s = one_way_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._devices: list[int] = []
        self._free_at = [0.0, 0.0]

    def __enter__(self) -> Self:
        for space in SPACES:
            _run("ip", "netns", "delete", space, check=False)
            _run("ip", "netns", "add", space)
        for side, (space, address) in enumerate(zip(SPACES, ADDRESSES, strict=True)):
            name = _DEVICE.format(side)
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
            self._devices.append(device)
            _run("ip", "link", "set", name, "netns", space)
            inside = ("ip", "netns", "exec", space)
            _run(*inside, "ip", "address", "add", f"{address}/24", "dev", name)
            _run(*inside, "ip", "link", "set", name, "mtu", str(_MTU), "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
        for side in (0, 1):
            self._loop.add_reader(self._devices[side], self._carry, side)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for device in self._devices:
            os.close(device)
        for space in SPACES:
            _run("ip", "netns", "delete", space, check=False)

    def _carry(self, side: int) -> None:
        """Take what one side sends, and deliver it when the link has had the time for it."""
        while True:
            try:
                packet = os.read(self._devices[side], 65536)
            except BlockingIOError:
                return
            now = self._loop.time()
            begin = max(now, self._free_at[side])
            if (begin - now) * self._bytes_per_s > _QUEUE_BYTES:
                continue  # the queue is full: dropped
            self._free_at[side] = begin + len(packet) / self._bytes_per_s
            self._loop.call_at(self._free_at[side] + self._one_way_s, self._deliver, self._devices[1 - side], packet)

    @staticmethod
    def _deliver(device: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # the other side is gone, or full: lost, as on any link
            os.write(device, packet)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)


def inside(side: int, command: list[str]) -> list[str]:
    """Return a command that runs on one side of the link."""
    return ["ip", "netns", "exec", SPACES[side], *command]
