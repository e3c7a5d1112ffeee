"""Fetch tensors from several peers at once: each idle peer is given the next tensor that it has.

A peer that fails rests, one that sends wrong bytes is never asked again, and their tensors go to others; what came of a
tensor is kept and continued.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from node.core.errors import NoPeerReachable, PeerBusy, PeerError, ProtocolViolation
from node.core.types import PeerId
from node.network.weights import WeightClient
from node.trust.identity import short

_MAX_PEERS = 8
_REST_S = 5.0
_LOOK_AGAIN_S = 1.0


class Part(Protocol):
    """A tensor on its way to the disk."""

    num_bytes: int
    was_resumed: bool

    def append(self, block: bytes | bytearray | memoryview) -> None:
        """Write the next bytes."""

    def finish(self) -> bool:
        """Check and keep the whole; False if it is not the founder's, and then nothing is kept."""

    def close(self) -> None:
        """Let go."""


class Sink(Protocol):
    """Where tensors go; every call may use the disk."""

    def begin(self, name: str) -> Part:
        """Begin a tensor, or go on with it."""


class WeightPool:
    """One fetching of a set of tensors."""

    def __init__(
        self,
        client: WeightClient,
        sink: Sink,
        *,
        names: list[str],
        sizes: Mapping[str, int],
        note: Callable[[str, int], None],
    ) -> None:
        """Set up.

        Args:
            client: Asks the peers.
            sink: Takes the tensors.
            names: All tensors of the manifest, in its order.
            sizes: Bytes of each tensor wanted.
            note: Told how many bytes of a tensor are here now.
        """
        self._client = client
        self._sink = sink
        self._names = names
        self._sizes = sizes
        self._note = note
        # The largest first, so that no peer is left alone with a large one at the end.
        self._todo = sorted(sizes, key=lambda name: (-sizes[name], name))
        self._num_left = len(sizes)
        self._active: dict[PeerId, asyncio.Task[None]] = {}
        self._rest_until: dict[PeerId, float] = {}
        self._liars: set[PeerId] = set()
        self._latest_failure = ""
        self._came_at = time.monotonic()
        self.sources: dict[PeerId, int] = {}
        """How many tensors came from each peer to their end."""

    @property
    def num_active(self) -> int:
        """From how many peers something is coming now."""
        return len(self._active)

    async def run(self, peers: Callable[[], Sequence[PeerId]], *, patience_s: float) -> None:
        """Fetch everything.

        Raises:
            NoPeerReachable: nothing came for `patience_s`.
            OutOfDisk: the disk is full or read-only.
        """
        self._came_at = time.monotonic()
        try:
            while self._num_left:
                self._start_idle(peers())
                if self._active:
                    done, _ = await asyncio.wait(
                        self._active.values(), timeout=_LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
                else:
                    await asyncio.sleep(min(_LOOK_AGAIN_S, patience_s / 10))
                self._active = {peer: task for peer, task in self._active.items() if not task.done()}
                if time.monotonic() - self._came_at > patience_s:
                    raise NoPeerReachable(
                        f"Nobody has sent any of the base model's {self._num_left} missing tensors for "
                        f"{patience_s:.0f} s. {self._latest_failure}".strip(),
                        hint="Is a node with the model running? Or give the model's folder with --base-model.",
                    )
        finally:
            for task in self._active.values():
                task.cancel()
            await asyncio.gather(*self._active.values(), return_exceptions=True)

    def _start_idle(self, peers: Sequence[PeerId]) -> None:
        now = time.monotonic()
        for peer in peers:
            if len(self._active) >= _MAX_PEERS or not self._todo:
                return
            if peer not in self._active and peer not in self._liars and self._rest_until.get(peer, 0.0) <= now:
                self._active[peer] = asyncio.create_task(self._work(peer), name=f"weights from {short(peer)}")

    async def _work(self, peer: PeerId) -> None:
        """Take tensors from one peer until it has no more of what is wanted, or fails."""
        try:
            held = await self._client.held(peer, self._names)
            while (name := next((name for name in self._todo if name in held), None)) is not None:
                self._todo.remove(name)
                is_done = False
                try:
                    is_done = await self._fetch(peer, name)
                finally:
                    if is_done:
                        self._num_left -= 1
                        self.sources[peer] = self.sources.get(peer, 0) + 1
                    else:
                        self._todo.insert(0, name)
            self._rest_until[peer] = time.monotonic() + _LOOK_AGAIN_S
        except ProtocolViolation as error:
            self._liars.add(peer)
            self._latest_failure = error.message
        except PeerBusy as error:
            self._rest_until[peer] = time.monotonic() + error.retry_after_s
        except PeerError as error:
            self._rest_until[peer] = time.monotonic() + _REST_S
            self._latest_failure = error.message

    async def _fetch(self, peer: PeerId, name: str) -> bool:
        """Fetch a tensor or the rest of it; return False if the whole was wrong and not this peer's fault alone."""
        part = await asyncio.to_thread(self._sink.begin, name)
        try:

            async def take(block: bytearray) -> None:
                await asyncio.to_thread(part.append, block)
                self._came_at = time.monotonic()
                self._note(name, part.num_bytes)

            missing = self._sizes[name] - part.num_bytes
            self._note(name, part.num_bytes)
            await self._client.tensor(peer, name, offset=part.num_bytes, num_bytes=missing, take=take)
            if await asyncio.to_thread(part.finish):
                return True
            self._note(name, 0)
        finally:
            part.close()
        if part.was_resumed:
            return False  # the beginning was another's: this tensor is fetched anew
        raise ProtocolViolation(f"{short(peer)} sent {name} with other bytes than the founder's.", peer_id=peer)
