"""All examinations, in the order in which a person would repair what they find."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from node.config.local import LocalSettings
from node.config.recipe import Recipe
from node.control.client import running_pid
from node.doctor import machine, reach, swarm
from node.doctor.finding import Finding
from node.doctor.model import model_files, room
from node.host.devices import describe
from node.host.gpus import Gpus, driver_version
from node.host.home import Home
from node.listening import listen_addresses
from node.network.interfaces import local_interfaces


def examine(
    home: Path, settings: LocalSettings, recipe: Recipe | None, address: str | None, cache: Path
) -> Iterator[Finding]:
    """Examine this machine, one finding after the other.

    Args:
        home: The node's home; nothing in it is changed.
        settings: The owner's.
        recipe: What is to be trained; None if it is not known yet.
        address: Of a node of the swarm that is to be joined; None if there is none.
        cache: Where converted models are.
    """
    yield machine.device(settings.device)
    if recipe is None or recipe.load_in_4bit:
        yield machine.four_bit(settings.device)
    yield machine.cards(Gpus().read(), driver_version())
    main = describe("cpu")
    yield machine.memory(main.total_bytes, main.free_bytes)
    yield machine.disk(home)
    yield machine.running(home)
    if recipe is not None:
        files, folder = model_files(recipe, cache)
        yield files
        if folder is not None:
            yield room(recipe, folder, settings)
    pid = running_pid(home)
    listen = listen_addresses(settings, Home(home))
    interfaces = local_interfaces()
    yield reach.port(listen, has_running_node=pid is not None)
    yield reach.addresses(listen, settings.announce, interfaces)
    if (found := reach.wsl(_proc_version(), interfaces)) is not None:
        yield found
    if address is None:
        yield swarm.clock(None)
        return
    yield from asyncio.run(swarm.ask(address, listen, Home(home).remembered_port() if pid is not None else None))


def _proc_version() -> str:
    try:
        return Path("/proc/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
