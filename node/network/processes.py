"""The libp2p daemon (hivemind's `p2pd`), started as our own child with our own flags.

hivemind would start it in our process group, with its sockets in /tmp, a router port opened and relaying for
strangers switched on; and would leave it running when we are killed. Here it has its own process group (so that
Ctrl-C reaches us alone), dies with us (Linux: parent-death signal; elsewhere: its idle time-out), relays for
nobody, opens no router port, and keeps its sockets in a folder that goes when we do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.utils.multiaddr import Multiaddr

from node.core.children import dying_with_parent
from node.core.errors import ConfigError, NoPeerReachable, SwarmError
from node.core.sockets import SocketFolder
from node.core.text import brief
from node.core.types import PeerId
from node.network.addresses import refuse_taken_port, split_peer_id
from node.network.dht_bounds import DHT_QUOTA, GatedP2P
from node.network.interfaces import announced, local_interfaces
from node.network.quotas import Gate, Told, log_line
from node.network.relaying import RELAY_ENVIRONMENT, stop_relaying

_START_TIMEOUT_S = 15.0
_REDIAL_S = 0.3
_BACKED_OFF = re.compile(r"\[/ip[46]/([0-9a-fA-F.:]+)/tcp/(\d+)[^\]]*\] dial backoff")
_MAX_KNOCKS = 8
_KNOCK_S = 1.0
_CIRCUIT = "/p2p-circuit"

PEER_FAILED = (
    P2PDaemonError,
    ControlFailure,
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    EOFError,
)
"""What hivemind raises when the other side is dead, stopped, refusing or cut off."""


class RunningP2P:
    """A running libp2p daemon and hivemind's handle on it."""

    def __init__(
        self, p2p: P2P, child: asyncio.subprocess.Process, sockets: SocketFolder, announce: Sequence[str] = ()
    ) -> None:
        self.p2p = p2p
        self._announce = tuple(announce)
        self.told: Told = log_line
        """Told by the handlers who is over which quota."""
        if isinstance(p2p, GatedP2P):
            p2p.gate = Gate("dht", DHT_QUOTA, told=self._tell)
        self.peer_id = PeerId(p2p.peer_id.to_base58())
        self._child = child
        self._sockets = sockets

    def _tell(self, text: str) -> None:
        self.told(text)

    @property
    def is_alive(self) -> bool:
        """Whether the daemon's process still runs."""
        return self._child.returncode is None

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._child.pid

    async def addresses(self) -> tuple[str, ...]:
        """Return the multiaddrs under which this node can be dialled, its peer id included, best first."""
        visible = await self.p2p.get_visible_maddrs(latest=True)
        suffix = f"/p2p/{self.peer_id}"
        texts = [str(maddr) if "/p2p/" in str(maddr) else f"{maddr}{suffix}" for maddr in visible]
        if self._announce:  # what the owner says is what others are told
            return tuple(texts)
        relayed = [text for text in texts if f"{_CIRCUIT}/" in text]
        texts = [text for text in texts if f"{_CIRCUIT}/" not in text]
        if relayed:  # they work from everywhere, and the others from few places
            return (*relayed, *announced(texts, await asyncio.to_thread(local_interfaces)))
        return announced(texts, await asyncio.to_thread(local_interfaces)) or tuple(texts)

    async def until_relayed(self, *, timeout_s: float) -> bool:
        """Wait for an address at a relay; return whether there is one."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not any(f"{_CIRCUIT}/" in address for address in await self.addresses()):
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    async def connect(self, address: str, *, timeout_s: float = 8.0) -> PeerId:
        """Dial `address` (a multiaddr that ends in `/p2p/<peer id>`) and return the peer's id.

        Raises:
            ConfigError: it is not such a multiaddr.
            NoPeerReachable: nobody answers there, or somebody else does.
        """
        transport, peer_id = split_peer_id(address)
        if peer_id == self.peer_id:
            raise ConfigError(f"{address} is this node's own address.", hint="Give the address of another node.")
        try:
            await self._dial(PeerID.from_base58(peer_id), _WireAddress(transport), timeout_s)
        except PEER_FAILED as error:
            raise NoPeerReachable(f"No peer answers at {address}: {_reason(error, timeout_s)}.") from error
        except ValueError as error:
            raise ConfigError(f"{address} is not a multiaddr that can be dialled: {brief(error)}.") from error
        return peer_id

    async def _dial(self, target: PeerID, where: _WireAddress, timeout_s: float) -> None:
        """Dial, again if libp2p says that it does not dial just now: two that dial each other at once both fail."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    # hivemind has no public call that dials a peer after the start.
                    await self.p2p._client.connect(target, [where])  # noqa: SLF001
                except ControlFailure as error:
                    if "dial backoff" not in str(error) or await is_nobody_there(str(error)):
                        raise
                    await asyncio.sleep(_REDIAL_S)
                else:
                    return

    async def close(self) -> None:
        """Stop the daemon and remove its sockets."""
        await self.p2p.shutdown()
        if self.is_alive:
            try:
                self._child.terminate()
                async with asyncio.timeout(3):
                    await self._child.wait()
            except ProcessLookupError:
                pass
            except TimeoutError:
                self._child.kill()
                await self._child.wait()
        await asyncio.to_thread(self._sockets.close)


class _WireAddress:
    """A multiaddr as the daemon reads it; through a relay it has the relay's peer id inside.

    hivemind writes that id as a CID, and the daemon reads a multihash there.
    """

    def __init__(self, text: str) -> None:
        start, circuit, rest = text.partition(_CIRCUIT)
        if rest:
            raise ValueError(f"{text} goes on behind the relay")
        self._end = b""
        if circuit:
            start, _, relay_id = start.rpartition("/p2p/")
            multihash = PeerID.from_base58(relay_id).to_bytes()
            self._end = b"\xa5\x03" + bytes([len(multihash)]) + multihash + b"\xa2\x02"
        self._start = Multiaddr(start)

    def to_bytes(self) -> bytes:
        """Return it in binary (https://github.com/multiformats/multiaddr): 0x1a5 is `p2p`, 0x122 `p2p-circuit`."""
        return bytes(self._start.to_bytes()) + self._end


async def start_p2p(
    home: Path,
    *,
    identity_path: Path,
    listen: Sequence[str],
    announce: Sequence[str] = (),
    relays: Sequence[str] = (),
    relays_for_others: bool = False,
) -> RunningP2P:
    """Start the libp2p daemon and attach to it.

    Args:
        home: Folder that remembers where the daemon's sockets are.
        identity_path: Private key file that makes the peer id.
        listen: Multiaddrs to listen on, such as `/ip4/0.0.0.0/tcp/4040`.
        announce: Multiaddrs to tell to others instead of the ones listened on.
        relays: Multiaddrs of peers that pass on what others send to this one, which nobody can dial.
        relays_for_others: Pass on what is sent to others, whoever they are.

    Raises:
        ConfigError: a port to listen on is taken. (The daemon itself would share it silently.)
        SwarmError: it did not start; the message carries its last words.
    """
    for address in listen:
        refuse_taken_port(address)
    sockets = SocketFolder(home)
    try:
        flags = _flags(identity_path, listen, announce, relays, relays_for_others=relays_for_others)
        running = await _start(sockets, flags, listen, announce, RELAY_ENVIRONMENT if relays_for_others else {})
        if not relays_for_others:
            await stop_relaying(running.p2p)
        return running
    except BaseException:  # a request to stop in the middle, too
        await asyncio.to_thread(sockets.close)
        raise


def _flags(
    identity_path: Path,
    listen: Sequence[str],
    announce: Sequence[str],
    relays: Sequence[str],
    *,
    relays_for_others: bool,
) -> list[str]:
    """Return the daemon's arguments, but for its own socket."""
    flags = [
        f"-id={identity_path}",
        f"-hostAddrs={','.join(listen)}",
        "-dhtServer=1",
        "-tls=1",
        "-relay=1",
        f"-relayService={int(relays_for_others)}",
        "-natPortMap=0",
        "-autonat=1",
        "-connManager=1",
        "-idleTimeout=30s",
        "-persistentConnMaxMsgSize=4194304",
        "-b=0",
    ]
    if announce:
        flags.append(f"-announceAddrs={','.join(announce)}")
    if relays:
        # without `relayDiscovery=0` it looks around for three minutes before it asks the ones that are named
        flags += [
            "-autoRelay=1",
            f"-trustedRelays={','.join(relays)}",
            "-relayDiscovery=0",
            "-forceReachabilityPrivate=1",
        ]
    if relays_for_others:
        flags.append("-forceReachabilityPublic=1")
    return flags


async def _start(
    sockets: SocketFolder,
    flags: Sequence[str],
    listen: Sequence[str],
    announce: Sequence[str],
    environment: Mapping[str, str],
) -> RunningP2P:
    control = f"/unix{sockets.path}/p2pd.sock"
    child = await asyncio.create_subprocess_exec(
        *dying_with_parent(),
        str(files("hivemind.hivemind_cli") / "p2pd"),
        f"-listen={control}",
        *flags,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment, "GOLOG_LOG_LEVEL": "error", "GOLOG_LOG_FMT": "nocolor"},
        process_group=0,
    )
    log: deque[str] = deque(maxlen=20)
    assert child.stdout is not None
    reader = asyncio.create_task(_drain(child.stdout, log))
    try:
        p2p = await _attach(control, sockets.path, child)
    except BaseException as error:
        if child.returncode is None:
            child.kill()
        await asyncio.wait([reader], timeout=2)
        if not isinstance(error, SwarmError):
            raise
        raise SwarmError(
            f"The network daemon did not start: {error.message} {' '.join(log)}".strip(), hint=_start_hint(log, listen)
        ) from error
    return RunningP2P(p2p, child, sockets, announce)


async def _attach(control: str, runtime: Path, child: asyncio.subprocess.Process) -> P2P:
    attached = type("P2PInOwnFolder", (GatedP2P,), {"_UNIX_SOCKET_PREFIX": f"/unix{runtime}/"})
    deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        if child.returncode is not None:
            raise SwarmError(f"it ended with code {child.returncode}.")
        if (runtime / "p2pd.sock").exists():
            try:
                p2p: P2P = await attached.replicate(Multiaddr(control))  # type: ignore[attr-defined]
                p2p._client.control._pending_calls = _LiveCalls()  # noqa: SLF001
                return p2p
            except (OSError, P2PDaemonError):
                pass  # the socket is there a moment before somebody listens on it
        await asyncio.sleep(0.02)
    raise SwarmError(f"it did not answer within {_START_TIMEOUT_S:.0f} s.")


class _LiveCalls(dict[Any, "asyncio.Future[bytes]"]):
    """hivemind's table of calls that wait for an answer; one that was cancelled is in it no more.

    Its reader gives an answer to whatever is in the table. If that call was cancelled a moment ago, the reader dies of
    an InvalidStateError, and no call of this process is ever answered again.
    """

    def __contains__(self, call_id: object) -> bool:
        future = self.get(call_id)
        return future is not None and not future.done()


async def _drain(stream: asyncio.StreamReader, log: deque[str]) -> None:
    """Keep the pipe empty, or the daemon would block on its own prints."""
    try:
        while line := await stream.readline():
            text = line.decode(errors="replace").strip()
            if text:
                log.append(text)
                logging.getLogger("potluck.p2pd").debug(text)
    except ValueError:  # a line longer than the stream's limit
        while await stream.read(65536):
            pass


def _reason(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:.0f} s"
    text = str(error)
    for sign, meaning in (
        ("connection refused", "the connection was refused"),
        ("peer id mismatch", "another peer answers there"),
        ("no route to host", "there is no route to that host"),
        ("network is unreachable", "the network is unreachable"),
        ("i/o timeout", "the connection timed out"),
        ("deadline exceeded", "the connection timed out"),
    ):
        if sign in text.lower():
            return meaning
    return text[:300] or type(error).__name__


def _start_hint(log: Sequence[str], listen: Sequence[str]) -> str:
    text = " ".join(log).lower()
    if "address already in use" in text or "failed to listen" in text:
        return f"Is another program listening on {', '.join(listen)}? Choose another port with --listen."
    return "Check --listen and --announce; both take multiaddrs such as /ip4/0.0.0.0/tcp/4040."


async def is_nobody_there(dial_error: str) -> bool:
    """Knock at the addresses of a failed dial: whether none of them has a listener.

    After a dial that failed, libp2p refuses for some seconds to dial again and says only "dial backoff", whoever in
    this node dialled first and why ever it failed.
    """
    doors = _BACKED_OFF.findall(dial_error)[:_MAX_KNOCKS]
    return bool(doors) and all(await asyncio.gather(*(_refuses(host, int(port)) for host, port in doors)))


async def _refuses(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_KNOCK_S):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False  # unreachable is not dead
    writer.close()
    return False
