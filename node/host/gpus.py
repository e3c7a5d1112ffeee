"""Memory and temperature of NVIDIA's GPUs, asked from the driver itself (NVML), for the terminal.

The whole card's, other programs' share included: what an owner wants to know is whether it is too hot or full. A
machine without such a card or driver has none of them, which is no error.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pynvml

_FRESH_S = 1.0
_MAX_NAME = 60


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card at one moment."""

    name: str
    used_bytes: int
    total_bytes: int
    temperature_c: int | None


def driver_version() -> str:
    """Return the version of NVIDIA's driver, or '' if there is none that answers."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())[:_MAX_NAME]
    except pynvml.NVMLError:
        return ""


class Gpus:
    """The machine's cards; loads the driver's library at the first question."""

    def __init__(self) -> None:
        self._is_there: bool | None = None
        self._latest: tuple[float, tuple[Gpu, ...]] = (float("-inf"), ())

    def read(self) -> tuple[Gpu, ...]:
        """Return all cards, at most a second old; none where there is no driver, or it has just failed."""
        now = time.monotonic()
        if self._is_there is not False and now - self._latest[0] >= _FRESH_S:
            self._latest = (now, self._read())
        return self._latest[1]

    def _read(self) -> tuple[Gpu, ...]:
        try:
            if self._is_there is None:
                self._is_there = False
                pynvml.nvmlInit()
                self._is_there = True
            return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError:
            return ()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        temperature = int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:  # a virtual or cut card may not tell
        temperature = None
    name = str(pynvml.nvmlDeviceGetName(handle))[:_MAX_NAME]
    return Gpu(name, int(memory.used), int(memory.total), temperature)
