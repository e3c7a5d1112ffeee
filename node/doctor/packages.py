"""Python and the libraries, without which nothing else can be examined. Imports none of them by itself."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Mapping

from node.core.text import brief
from node.core.versions import software
from node.doctor.finding import Finding, fail, ok

LIBRARIES = {
    "torch": "torch",
    "bitsandbytes": "node.model.quantization",  # silences what it says of a kernel that is never called
    "transformers": "transformers",
    "peft": "peft",
    "hivemind": "hivemind",
    "grpc": "grpc",
    "datasets": "datasets",
}
"""What a node cannot run without, and what imports it."""
_PYTHONS = ((3, 11), (3, 13))
"""The oldest and the newest that Potluck is made for; pyproject.toml says the same to pip."""
_INSTALL = f"{sys.executable} -m pip install --force-reinstall potluck"


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Say whether this Python runs Potluck."""
    text = (
        f"{version[0]}.{version[1]} on {platform.system()} {platform.machine()}, Potluck {software() or '(no version)'}"
    )
    if _PYTHONS[0] <= version <= _PYTHONS[1]:
        return ok("python", text)
    oldest, newest = ("{}.{}".format(*bound) for bound in _PYTHONS)
    return fail(
        "python", f"{text}; Potluck needs {oldest} to {newest}.", f"python{newest} -m venv .venv, and install again"
    )


def libraries(modules: Mapping[str, str] = LIBRARIES) -> Finding:
    """Import the libraries and say which cannot be."""
    for name, module in modules.items():
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken library may raise anything
            return fail("libraries", f"{name} cannot be imported: {brief(error)}", _INSTALL)
    return ok("libraries", f"{', '.join(modules)} can be imported")
