"""Against a swarm: versions, clock, and whether one of its nodes reaches this one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from node.core.errors import NodeError, RunMismatch
from node.doctor.finding import Finding, fail, ok, warn
from node.doctor.reach import from_outside
from node.network.addresses import tcp_port_of
from node.network.door import MAX_CLOCK_DIFFERENCE_S, Welcomed, say_hello
from node.network.interfaces import local_interfaces
from node.network.processes import start_p2p
from node.trust.identity import Identity

_DRIFTED_S = 5.0
_SET_CLOCK = "sudo timedatectl set-ntp true"


def clock(ahead_s: float | None) -> Finding:
    """Say how far this clock is from the swarm's.

    Args:
        ahead_s: Seconds; None if there was nobody to ask.
    """
    if ahead_s is None:
        return ok("clock", "not compared with anything; --address of a swarm's node compares it")
    text = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the swarm's"
    if abs(ahead_s) > MAX_CLOCK_DIFFERENCE_S:
        return fail("clock", f"{text}: records of peers expire by it.", _SET_CLOCK)
    return warn("clock", f"{text}.", _SET_CLOCK) if abs(ahead_s) > _DRIFTED_S else ok("clock", text)


def run_text(welcomed: Welcomed) -> Finding:
    """Say what the swarm is."""
    founded = welcomed.run.seal.fingerprint[:12]
    return ok("swarm", f"run {founded}, {welcomed.speaker}, the same protocol as this one")


async def ask(address: str, listen: Sequence[str], running_port: int | None) -> list[Finding]:
    """Ask the node at `address`, and let it knock here.

    Args:
        address: A join line's multiaddr.
        listen: Where this machine's node would listen.
        running_port: The port of the node that runs here already; None if none does, and then this program listens.
    """
    with tempfile.TemporaryDirectory(prefix="potluck-doctor-") as folder:
        identity = Identity.load_or_create(Path(folder) / "identity.key")
        where = ["/ip4/0.0.0.0/tcp/0"] if running_port else list(listen)
        try:
            running = await start_p2p(Path(folder), identity_path=identity.path, listen=where)
        except NodeError as error:
            return [fail("swarm", error.message, error.hint), clock(None)]
        try:
            mine = await running.addresses()
            port = running_port or next((p for a in mine if (p := tcp_port_of(a))), 0)
            peer_id = await running.connect(address)
            welcomed = await say_hello(running.p2p, peer_id, knock_port=port)
        except RunMismatch as error:
            return [fail("swarm", error.message, error.hint), clock(None)]
        except NodeError as error:
            hint = error.hint or "Is the node running there? Is its port open in its firewall and router?"
            return [fail("swarm", error.message, hint), clock(None)]
        finally:
            await running.close()
    own = [interface.ip for interface in local_interfaces()]
    knocked = from_outside(port, is_open=welcomed.port_is_open, seen_at=welcomed.seen_at, own=own)
    return [run_text(welcomed), clock(welcomed.clock_ahead_s), knocked]
