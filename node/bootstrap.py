"""`potluck bootstrap`: a public meeting point, from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from node.core.errors import SwarmError
from node.host.home import Home
from node.network.meeting import AnyRunValidator, open_meeting_point
from node.network.processes import start_p2p
from node.trust.identity import Identity

_LOOK_S = 5.0
Say = Callable[[str], None]


async def meet_here(
    home: Home,
    listen: Sequence[str],
    announce: Sequence[str],
    *,
    relays: bool,
    ready: Callable[[tuple[str, ...]], None],
    say: Say,
    ended: asyncio.Event,
) -> None:
    """Be a meeting point until `ended` is set.

    Args:
        home: Keeps the identity, so that the address stays; locked by the caller.
        listen: Multiaddrs.
        announce: Multiaddrs to tell instead.
        relays: Pass on the traffic of nodes that nobody can dial.
        ready: Told the addresses.
        say: Told who is here, when that has changed.
        ended: Ends it.

    Raises:
        ConfigError: the port is taken.
        SwarmError: the network daemon did not start, or died.
    """
    identity = Identity.load_or_create(home.path / "identity.key")
    running = await start_p2p(
        home.path / "p2p", identity_path=identity.path, listen=listen, announce=announce, relays_for_others=relays
    )
    try:
        running.told = say
        validator = AnyRunValidator()
        node = await open_meeting_point(running, validator)
        ready(await running.addresses())
        told = (0, 0)
        while not ended.is_set():
            if not running.is_alive:
                raise SwarmError("The network daemon has ended.", hint="Start the same command again.")
            if (now := validator.count()) != told:
                told = now
                runs, nodes = (
                    ("1 run" if now[0] == 1 else f"{now[0]} runs"),
                    ("1 node" if now[1] == 1 else f"{now[1]} nodes"),
                )
                say(f"{nodes} of {runs} meet here.")
            try:
                async with asyncio.timeout(_LOOK_S):
                    await ended.wait()
            except TimeoutError:
                continue
        await node.shutdown()
    finally:
        await running.close()
