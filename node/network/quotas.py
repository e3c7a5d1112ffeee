"""How much of this node one peer may take: streams, bytes on their way in, requests a second.

The shape is that of libp2p's resource manager (https://github.com/libp2p/specs, go-libp2p `rcmgr`): a limit for a door
and one for each peer at that door, and who is above it is refused at once instead of queued. The daemon below has no
limits of its own that could be set, so what counts is what reaches our handlers.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message

from node.core.types import PeerId
from node.network.malformed import Malformed
from node.trust.identity import short

Told = Callable[[str], None]
"""Takes one line for people."""

_SAY_EVERY_S = 10.0
_MAX_REMEMBERED = 1024
"""Peers whose rate is known at a door; who was silent longest is forgotten first."""


class OverQuota(Malformed):
    """A peer takes more than its share; the message names the quota."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of one door; every honest peer stays far below those that are for one."""

    streams: int = 0
    """Streams that are served at a time."""
    streams_of_peer: int = 0
    num_bytes: int = 0
    """Bytes that are announced and not yet taken in, of all streams."""
    bytes_of_peer: int = 0
    """One request may have more if the peer has nothing else under way."""
    requests_per_s: float = 0.0
    """Of one peer, on average."""
    burst: int = 0
    """Requests of one peer at once."""


def log_line(text: str) -> None:
    """Log a line; what stands for a node's events where there are none."""
    logging.getLogger("potluck.quota").warning(text)


class Gate:
    """Keeps the quota of one door; belongs to the event loop."""

    def __init__(self, door: str, quota: Quota, *, told: Told = log_line) -> None:
        """Set up.

        Args:
            door: Its name, for people.
            quota: What is allowed.
            told: Told who is over which quota, at most every ten seconds for each of them.
        """
        self._door = door
        self._quota = quota
        self._told = told
        self._streams: Counter[PeerId] = Counter()
        self._num_streams = 0
        self._bytes: Counter[PeerId] = Counter()
        self._num_bytes = 0
        self._rates: dict[PeerId, tuple[float, float]] = {}
        """By peer: requests that it may make now, and when that was true."""
        self._said_at: dict[tuple[str, PeerId], float] = {}

    @contextmanager
    def stream(self, peer: PeerId) -> Iterator[None]:
        """Count a stream as long as the context lasts.

        Raises:
            OverQuota: too many are open; close it at once.
        """
        if self._streams[peer] >= self._quota.streams_of_peer:
            raise self._over("streams_of_peer", peer, f"{self._streams[peer]} streams open")
        if self._num_streams >= self._quota.streams:
            raise self._over("streams", peer, "one stream more than are served at a time")
        self._streams[peer] += 1
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1
            _take(self._streams, peer, 1)

    @contextmanager
    def reserve(self, peer: PeerId, num_bytes: int) -> Iterator[None]:
        """Count bytes that a peer announced as long as the context lasts.

        Raises:
            OverQuota: with these it would have too many on their way.
        """
        if self._bytes[peer] and self._bytes[peer] + num_bytes > self._quota.bytes_of_peer:
            raise self._over("bytes_of_peer", peer, f"{self._bytes[peer] + num_bytes} bytes on their way")
        if self._num_bytes and self._num_bytes + num_bytes > self._quota.num_bytes:
            raise self._over("num_bytes", peer, f"{num_bytes} bytes more than there is room for")
        self._bytes[peer] += num_bytes
        self._num_bytes += num_bytes
        try:
            yield
        finally:
            self._num_bytes -= num_bytes
            _take(self._bytes, peer, num_bytes)

    def request(self, peer: PeerId) -> None:
        """Count a request.

        Raises:
            OverQuota: there were too many a moment ago; do not answer.
        """
        now = time.monotonic()
        left, at_s = self._rates.pop(peer, (float(self._quota.burst), now))
        left = min(float(self._quota.burst), left + (now - at_s) * self._quota.requests_per_s)
        self._rates[peer] = (max(0.0, left - 1.0), now)
        if len(self._rates) > _MAX_REMEMBERED:
            del self._rates[next(iter(self._rates))]
        if left < 1.0:
            raise self._over("requests_per_s", peer, f"more than {self._quota.requests_per_s:g} requests a second")

    def _over(self, quota: str, peer: PeerId, what: str) -> OverQuota:
        text = f"over_quota: {short(peer)} has {what} at the door {self._door}; refused (quota {quota})."
        now = time.monotonic()
        said_at = self._said_at.get((quota, peer))
        if said_at is None or now - said_at >= _SAY_EVERY_S:
            self._said_at[quota, peer] = now
            self._told(text)
            if len(self._said_at) > _MAX_REMEMBERED:
                del self._said_at[next(iter(self._said_at))]
        return OverQuota(text)


class Bounded:
    """A kind of message as hivemind's handlers take it, that is not parsed when it is too long.

    A frame of 4 MiB, which the daemon lets through, can hold two million empty messages, and they 100 MB.
    """

    def __init__(self, kind: type[Message], max_bytes: int) -> None:
        self._kind = kind
        self._max_bytes = max_bytes

    def FromString(self, data: bytes) -> Message:  # noqa: N802  (hivemind calls it so)
        """Return the message in `data`.

        Raises:
            Malformed: it is too long, or no such message.
        """
        if len(data) > self._max_bytes:
            raise Malformed(f"a message of {len(data)} bytes")
        try:
            return self._kind.FromString(data)
        except DecodeError:
            raise Malformed("that is not the expected message") from None


def _take(counts: Counter[PeerId], peer: PeerId, amount: int) -> None:
    counts[peer] -= amount
    if counts[peer] <= 0:
        del counts[peer]
