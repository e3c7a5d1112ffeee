"""What one input costs: processor time, and memory at its highest."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

MAX_S = 0.05
MAX_BYTES = 64 << 20
_LIST = str(["a text"] * 300)
_YARDSTICK_S = 0.013
"""What `_yardstick` takes on a quiet core of the Xeon that the figures in the docs are from."""


def cpu_s(work: Callable[[], None]) -> float:
    """Return the processor time of `work`: of several tries the least, if the first is too long to be believed.

    Processor time, too, doubles while others use the caches, so the later tries are set against a yardstick.
    """
    least = _once(work)
    for tries in range(8):
        if least <= MAX_S:
            break
        gc.collect()
        time.sleep(0.05 * tries)
        slower = _once(_yardstick) / _YARDSTICK_S
        least = min(least, _once(work) / max(1.0, slower))
    return least


def _once(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _yardstick() -> None:
    YAML(typ="safe", pure=True).compose(_LIST)


class Peak:
    """How far this process's memory rises; says 0 where the system does not tell."""

    def reset(self) -> None:
        """Begin to measure."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = self._bytes("VmRSS")
        except OSError:
            self._before = None

    def growth_bytes(self) -> int:
        """Return the highest since `reset`, less what was in use then."""
        return self._bytes("VmHWM") - self._before if self._before is not None else 0

    @staticmethod
    def _bytes(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
