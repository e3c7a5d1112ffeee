"""The machine: device, 4-bit kernels, cards, memory, disk, and whether a node runs here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from node.control.client import running_pid
from node.core.errors import NodeError
from node.doctor.finding import Finding, fail, ok, warn
from node.host.devices import cuda_text, describe, num_usable_cores, pick_device
from node.host.gpus import Gpu
from node.model.quantization import try_nf4

_HOT_C = 88
_NF4_ERROR = 0.2
"""Of normal numbers, in deviations; about 0.09 where the kernels are right."""
_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK, _NO_DISK = 2 << 30, 64 << 20


def device(wanted: str) -> Finding:
    """Say which device is used, and what torch knows of GPUs."""
    try:
        name = pick_device(wanted)
        found = describe(name)
    except NodeError as error:
        return fail("device", error.message, error.hint)
    except RuntimeError as error:  # torch's word for a driver or card that fails
        return fail("device", f"The device {wanted} fails: {error}", "restart the machine, or use --device cpu")
    text = f"{name}, {found.label}; torch {cuda_text()}"
    if name == "cpu" and wanted == "auto":
        return warn(
            "device",
            f"{text}. Training on the CPU works and is slow.",
            "With an NVIDIA card: install its driver, then a torch with CUDA (https://pytorch.org/get-started/locally)",
        )
    return ok("device", text)


def four_bit(wanted: str) -> Finding:
    """Quantise and dequantise on the device with the kernels that training uses."""
    try:
        name = pick_device(wanted)
        error = try_nf4(name)
    except NodeError as problem:
        return fail("bitsandbytes", problem.message, problem.hint)
    except (RuntimeError, OSError, AttributeError) as problem:  # a kernel, a library or a symbol that is not there
        return fail(
            "bitsandbytes",
            f"The 4-bit kernels do not run on {wanted}: {problem}",
            "pip install --force-reinstall bitsandbytes (its build must know torch's CUDA), or load_in_4bit: false",
        )
    if not error < _NF4_ERROR:
        return fail(
            "bitsandbytes",
            f"The 4-bit kernels compute wrongly on {name}: values are off by {error:.2f}.",
            "pip install --force-reinstall bitsandbytes; if it stays, please report it",
        )
    return ok("bitsandbytes", f"NF4 there and back on {name}, error {error:.2f} as it should be")


def cards(gpus: Sequence[Gpu], driver: str) -> Finding:
    """Say what the graphics driver knows.

    Args:
        gpus: The machine's cards.
        driver: The driver's version, or '' if there is none.
    """
    if not gpus:
        seen = f"driver {driver} sees no card" if driver else "no NVIDIA driver answers"
        return warn("gpu", f"None: {seen}.", "nvidia-smi shows what the driver sees; without a card the CPU trains")
    texts = []
    for gpu in gpus:
        heat = f", {gpu.temperature_c} °C" if gpu.temperature_c is not None else ""
        texts.append(f"{gpu.name}, {_gib(gpu.total_bytes - gpu.used_bytes)} of {_gib(gpu.total_bytes)} free{heat}")
    text = f"{'; '.join(texts)}; driver {driver}"
    if any(gpu.temperature_c is not None and gpu.temperature_c >= _HOT_C for gpu in gpus):
        return warn("gpu", f"{text}. It is too hot and slows down.", "clean its fans, or sudo nvidia-smi -pl WATTS")
    return ok("gpu", text)


def memory(total_bytes: int, free_bytes: int) -> Finding:
    """Say what main memory there is."""
    text = f"{_gib(free_bytes)} of {_gib(total_bytes)} free, {num_usable_cores()} cores"
    if free_bytes < _LITTLE_MEMORY:
        return warn(
            "memory", f"{text}. That is little.", "close other programs; potluck plan RECIPE says what is needed"
        )
    return ok("memory", text)


def disk(home: Path) -> Finding:
    """Say whether the home can be written, by writing there, and what is free."""
    there = next(path for path in (home, *home.absolute().parents) if path.exists())
    fix = "make room there, or choose another folder with --home"
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x" * 65536)
            file.flush()
    except OSError as error:
        return fail("disk", f"{there} cannot be written: {error.strerror}.", fix)
    text = f"{_gib(free)} free for {home}"
    if free < _NO_DISK:
        return fail("disk", f"{text}. A checkpoint would not fit.", fix)
    if free < _LITTLE_DISK:
        return warn("disk", f"{text}. That is little for a model and its checkpoints.", fix)
    return ok("disk", text)


def running(home: Path) -> Finding:
    """Say whether a node runs under the home."""
    pid = running_pid(home)
    if pid is None:
        return ok("node", f"none runs under {home}")
    return ok("node", f"one runs under {home} (process {pid})", "potluck status shows it")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
