"""The first word with a swarm: at a peer's address, at those of peers met before, or through a coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from coordinator.address import CoordinatorAddress, is_coordinator_address
from coordinator.client import CoordinatorClient, CoordinatorError, CoordinatorUnavailable
from coordinator.v1 import coordinator_pb2
from node.core.errors import CheckpointError, ConfigError, NodeError, NoPeerReachable, ProtocolViolation, RunMismatch
from node.core.text import printable
from node.core.types import PeerId
from node.host.home import Home, KnownPeer, RunFolder
from node.network.addresses import MAX_ADDRESS_CHARS, parse_coordinator, split_peer_id
from node.network.door import Welcomed, say_hello
from node.network.processes import RunningP2P
from node.trust.identity import Identity, SignedBytes
from node.trust.seal import MAX_SEAL_BYTES, SealedRun, open_seal
from node.v1 import swarm_pb2

Say = Callable[[str], None]
Greeting = tuple[Welcomed, tuple[str, ...]]
"""The run, and addresses to dial from here on."""
_MAX_DIALLED = 32
_DIALLED_AT_ONCE = 8


async def greet(address: str, home: Home, identity: Identity, running: RunningP2P, say: Say) -> Greeting:
    """Ask what is trained at `address`, which is a peer's or a coordinator's, or by peers met there before.

    Raises:
        NoPeerReachable: nobody answers, there or at any peer met before.
        ConfigError: the address is malformed.
        NodeError: who answers is not of use, with the reason.
    """
    if is_coordinator_address(address):
        return await _greet_through_coordinator(address, home, identity, running, say)
    _, given_peer = split_peer_id(address)
    try:
        return await _greet(running, address), (address,)
    except NoPeerReachable as error:
        return await _greet_remembered(home, running, given_peer, error, say)


async def _greet_through_coordinator(
    address: str, home: Home, identity: Identity, running: RunningP2P, say: Say
) -> Greeting:
    """Enter the only run that a coordinator knows, by any of its members; or an earlier one, if it does not answer."""
    parsed = parse_coordinator(address)
    client = CoordinatorClient(parsed, identity)
    try:
        reply = await client.join(coordinator_pb2.JoinRequest(addresses=(await running.addresses())[:8]))
    except CoordinatorUnavailable as error:
        unreachable = NoPeerReachable(
            f"The coordinator at {parsed.target} does not answer: {printable(str(error))}.",
            hint="Is `potluck coordinator serve` running there, and its port open? Any node's own address works too.",
        )
        return await _greet_old_friends(address, home, running, unreachable, say)
    except CoordinatorError as error:
        raise NoPeerReachable(
            f"The coordinator at {parsed.target} lets nobody in: {printable(str(error))}.",
            hint="Copy its address anew, or join by the address of one of the swarm's nodes.",
        ) from error
    finally:
        await client.close()
    return await _greet_members(reply, parsed, running, say)


async def _greet_members(
    reply: coordinator_pb2.JoinResponse, coordinator: CoordinatorAddress, running: RunningP2P, say: Say
) -> Greeting:
    """Go to the members that a coordinator names; if none can be reached, go by the run that it keeps."""
    run = _open_run(reply.run, coordinator)
    addresses = [a for a in reply.addresses if len(a) <= MAX_ADDRESS_CHARS][:_MAX_DIALLED]
    for start in range(0, len(addresses), _DIALLED_AT_ONCE):
        some = addresses[start : start + _DIALLED_AT_ONCE]
        for answer in await asyncio.gather(*(_greet(running, one) for one in some), return_exceptions=True):
            if isinstance(answer, Welcomed) and answer.run.seal.fingerprint == run.seal.fingerprint:
                return answer, tuple(addresses)
            if isinstance(answer, RunMismatch):
                raise answer
            if isinstance(answer, BaseException) and not isinstance(answer, NodeError):
                raise answer
    say(f"None of the swarm's {len(addresses)} addresses answers now; going by what the coordinator keeps of the run.")
    ahead_s = time.time() - reply.clock_s if 0 < reply.clock_s < 1e11 else 0.0
    return Welcomed(run=run, peer_state="absent", clock_ahead_s=ahead_s), tuple(addresses)


def _open_run(run: coordinator_pb2.Run, coordinator: CoordinatorAddress) -> SealedRun:
    """Check the founder's signature on what a coordinator hands on."""
    name = PeerId(f"the coordinator at {coordinator.target}")
    try:
        if len(run.sealed) > 2 * MAX_SEAL_BYTES:
            raise DecodeError("it is too large")
        envelope = swarm_pb2.Signed.FromString(run.sealed)
    except DecodeError as error:
        raise ProtocolViolation(f"The run that {name} sent cannot be read: {error}.", peer_id=name) from None
    return open_seal(SignedBytes(envelope.body, envelope.public_key, envelope.signature), sender=name)


async def _greet_old_friends(
    coordinator: str, home: Home, running: RunningP2P, error: NoPeerReachable, say: Say
) -> Greeting:
    """The swarm outlives its coordinator: ask the peers met in a run that was entered through it."""
    for folder in home.runs():
        with contextlib.suppress(CheckpointError):
            if folder.load_coordinator() != coordinator:
                continue
            return await _greet_known(folder, running, folder.known_peers(), error, say)
    raise error


async def _greet(running: RunningP2P, address: str) -> Welcomed:
    try:
        peer_id = await running.connect(address)
    except NoPeerReachable as error:
        raise NoPeerReachable(error.message, hint=_unreachable_hint(address)) from error
    return await say_hello(running.p2p, peer_id)


async def _greet_remembered(
    home: Home, running: RunningP2P, given: PeerId, error: NoPeerReachable, say: Say
) -> Greeting:
    """The node at the address may be gone while the swarm lives: ask the peers met in a run with it."""
    for folder in home.runs():
        peers = folder.known_peers()
        if given in {peer.peer_id for peer in peers}:
            others = [peer for peer in peers if peer.peer_id != given]
            with contextlib.suppress(CheckpointError):
                return await _greet_known(folder, running, others, error, say)
    raise error


async def _greet_known(
    folder: RunFolder, running: RunningP2P, peers: Sequence[KnownPeer], error: NoPeerReachable, say: Say
) -> Greeting:
    """Ask peers met in a run; if none answers, go on alone with what there is of it.

    Raises:
        CheckpointError: there is nothing of it that can be read.
    """
    say(f"{error.message} Trying {len(peers)} other peers of that run.")
    for peer in peers:
        for address in peer.addresses:
            try:
                return await _greet(running, address), (address,)
            except (NoPeerReachable, ConfigError):
                continue
    run = folder.load_seal()
    say("None of them answers; going on alone with what this node has.")
    return Welcomed(run=run, peer_state="absent", clock_ahead_s=0.0), ()


def _unreachable_hint(address: str) -> str:
    hints = ["Is the node running there (`potluck status`)?", "Is its port open in its firewall and router?"]
    if address.startswith(("/ip4/127.", "/ip6/::1")):
        hints.insert(0, "This is a loopback address: it works on that machine alone; use its LAN or public address.")
    hints.append("`potluck status` on any other node of the swarm prints another address that will do.")
    return " ".join(hints)
