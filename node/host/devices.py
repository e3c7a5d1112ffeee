"""Which device to compute on, and what it has: asked of torch and the operating system, never guessed."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from node.core.errors import BackendUnavailable, ConfigError

_NAME = re.compile(r"auto|cpu|mps|cuda(?::(\d{1,2}))?")
_UNLIMITED_BYTES = 1 << 60
"""Control groups write a number above this, or a word, when there is no limit."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device as it is now."""

    name: str
    """As torch calls it: `cpu`, `mps`, `cuda:0`."""
    label: str
    """For people, e.g. `NVIDIA GeForce RTX 4090`."""
    total_bytes: int
    free_bytes: int
    """What a new process could take; on the CPU without swapping."""
    has_bf16: bool
    """Whether the hardware multiplies bfloat16; others emulate it and are slower than with float32."""


def pick_device(wanted: str) -> str:
    """Return torch's name of the device to use.

    Args:
        wanted: `cpu`, `mps`, `cuda`, `cuda:<index>`, or `auto`: the first CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: `wanted` is no such name.
        BackendUnavailable: There is no such device here.
    """
    match = _NAME.fullmatch(wanted)
    if match is None:
        raise ConfigError(f"Unknown device {wanted!r}.", hint="Use auto, cpu, mps, cuda, or cuda:<index>.")
    if wanted == "cpu":
        return "cpu"
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise BackendUnavailable("The device mps was asked for, and there is no Apple GPU here.", hint=_USE_CPU)
        return "mps"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda:0" if count else "cpu"
    if count == 0:
        raise BackendUnavailable(
            f"The device {wanted} was asked for, and torch sees no GPU: {_why_no_cuda()}.", hint=_USE_CPU
        )
    index = int(match[1] or 0)
    if index >= count:
        raise BackendUnavailable(
            f"The device {wanted} was asked for, and there are {count} here.",
            hint=f"Use one of {', '.join(f'cuda:{i}' for i in range(count))}.",
        )
    return f"cuda:{index}"


_USE_CPU = "Use --device cpu, or --device auto to take what there is."


def describe(name: str) -> Device:
    """Return what is known about a device whose name `pick_device` gave."""
    if name.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(name)
        return Device(
            name=name,
            label=torch.cuda.get_device_name(name),
            total_bytes=total,
            free_bytes=free,
            has_bf16=torch.cuda.get_device_capability(name) >= (8, 0),
        )
    total, free = _main_memory()
    # An Apple GPU shares the main memory.
    return Device(name, label=_processor(), total_bytes=total, free_bytes=free, has_bf16=_cpu_has_bf16())


def num_usable_cores() -> int:
    """Return the physical cores that this process may use, at least 1: affinity and container limits count."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = _cgroup_cores()
    return max(1, min(cores, int(quota)) if quota else cores)


def suggest_threads(num_nodes: int = 1) -> int:
    """Return how many threads torch should use for one operation, when `num_nodes` nodes share this machine.

    Threads beyond the physical cores slow a matrix product down, and so do two nodes that fight for one core.
    """
    return max(1, num_usable_cores() // max(1, num_nodes))


def _main_memory() -> tuple[int, int]:
    """Return total and available bytes of main memory, within the limit of a container."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit, used = _cgroup_memory()
    if limit < total:
        total, available = limit, max(0, min(available, limit - used))
    return total, available


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Return limit and use in bytes of this container's memory; a limit of 2^60 means none."""
    for folder, limit_name, use_name, cache_key in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(folder / limit_name)
        if limit is not None and limit < _UNLIMITED_BYTES:
            # The page cache counts as used and is given up when asked for.
            stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if line.count(" ") == 1)
            cache = stat.get(cache_key, "0")
            return limit, max(0, (_number(folder / use_name) or 0) - (int(cache) if cache.isdecimal() else 0))
    return _UNLIMITED_BYTES, 0


def _cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the processor time that this container may use, in cores; None if it is not limited."""
    quota, _, period = _text(root / "cpu.max").strip().partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _processor() -> str:
    """Return the processor's name as the system gives it."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "CPU"


def _cpu_has_bf16() -> bool:
    """Return whether the processor has bfloat16 products of its own, by the flags that Linux lists."""
    flags = {
        flag
        for line in _text(Path("/proc/cpuinfo")).splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
        for flag in line.partition(":")[2].split()
    }
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def cuda_text() -> str:
    """Return torch's version, and what it can do with GPUs or why not."""
    if torch.cuda.is_available():
        return f"{torch.__version__}, CUDA {torch.version.cuda}"
    return f"{torch.__version__}, no GPU: {_why_no_cuda()}"


def _why_no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is a build without CUDA"
    return "no driver or no GPU is there"
