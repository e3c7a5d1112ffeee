"""Follow the swarm: fetch the state of this node's stages from whoever holds them where the swarm stands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Protocol

from node.core.errors import NodeError, PeerBusy, PeerError, ProtocolViolation, SwarmError
from node.core.events import AdapterSynced, EventBus, Fault
from node.core.progress import peer_ahead
from node.core.types import Peer, PeerState, Progress, Standing, SwarmView
from node.network.door import fetch_state
from node.network.processes import RunningP2P
from node.training.adapter import StageAdapter
from node.training.state import AdapterState, decode, encoded_size_limit

_RETRY_S = 1.0
LOST_AFTER_S = 60.0
"""A stage that nobody brings back for so long begins anew, rather than that the swarm waits for ever."""
LOOK_FOR_S = 3.0
"""A stage keeps the bits that this node has only after so long a look: announcements travel for a second or two."""


class Follower(Protocol):
    """The rounds of this node, as far as syncing needs them."""

    async def adopt(self, states: dict[int, AdapterState], standing: Standing, lineage: tuple[str, ...]) -> None:
        """Go there."""


class Sync:
    """Brings this node to where the swarm is."""

    def __init__(
        self,
        *,
        running: RunningP2P,
        fingerprint: str,
        adapters: dict[int, StageAdapter],
        unknown: Collection[int],
        rounds: Follower,
        progress: Callable[[], Progress],
        events: EventBus,
    ) -> None:
        """Set up.

        Args:
            running: To fetch with.
            fingerprint: Of the run.
            adapters: Of the stages held.
            unknown: Stages held whose bits at this node's own standing are not here.
            rounds: Takes in what was fetched.
            progress: Where this node is.
            events: Told what was fetched, and what nobody has any more.
        """
        self._running = running
        self._fingerprint = fingerprint
        self._adapters = adapters
        self._unknown = set(unknown)
        self._rounds = rounds
        self._progress = progress
        self._events = events
        self._searching_since: float | None = None

    async def step(self, view: SwarmView) -> bool:
        """Do what is due; return whether this node is where the swarm is."""
        mine = self._progress()
        ahead = peer_ahead(view, mine)
        if ahead is None and not self._unknown:
            return True
        target = mine.standing if ahead is None or ahead.progress is None else ahead.progress.standing
        wanted = set(self._unknown if ahead is None else self._adapters)
        try:
            await self._follow(view, target, wanted)
        except PeerBusy:
            await asyncio.sleep(_RETRY_S)
        except (PeerError, SwarmError, NodeError) as error:
            self._events.emit(Fault(error.message, "Trying again, with another peer if there is one."))
            await asyncio.sleep(_RETRY_S)
        return False

    async def _follow(self, view: SwarmView, target: Standing, wanted: set[int]) -> None:
        """Fetch the wanted stages at `target`, and go there.

        A stage that nobody holds there keeps the bits it has, unless a replica has newer ones: that one is on its way
        to `target` too.
        """
        states: dict[int, AdapterState] = {}
        lineage: tuple[str, ...] = ()
        size = 0
        found = {stage: _holder(view, stage, target) for stage in sorted(wanted)}
        sources = {stage: holder for stage, holder in found.items() if holder is not None}
        before = self._progress()
        # at step 0 the bits here are those that every run begins with, and the swarm is further
        fresh = self._adapters.keys() if before.version == 0 else self._unknown
        missing = wanted - sources.keys()
        if not missing:
            self._searching_since = None
        elif not self._go_without(missing, lost=missing & set(fresh), view=view):
            await asyncio.sleep(_RETRY_S)
            return
        for stage, holder in sources.items():
            fetched = await fetch_state(
                self._running.p2p,
                holder.peer_id,
                fingerprint=self._fingerprint,
                stage=stage,
                max_bytes=encoded_size_limit(self._adapters[stage].layout),
            )
            state = await asyncio.to_thread(decode, fetched.data, self._adapters[stage].layout)
            if state.version != fetched.version:
                raise ProtocolViolation("A peer sent another version than it said.", peer_id=holder.peer_id)
            if (fetched.version, fetched.base_hash) != (target.version, target.base_hash):
                raise PeerBusy("it has gone on meanwhile", peer_id=holder.peer_id, retry_after_s=0.1)
            states[stage], lineage = state, fetched.lineage
            size += len(fetched.data)
        await self._rounds.adopt(states, target, lineage)
        self._unknown.clear()
        self._searching_since = None
        reason = "another lineage had more tokens" if before.committed_tokens else "joined the swarm"
        for source in {holder.peer_id: holder for holder in sources.values()}.values():
            self._events.emit(AdapterSynced(source.peer_id, target.version, size, reason))

    def _go_without(self, missing: set[int], *, lost: set[int], view: SwarmView) -> bool:
        """Return whether nobody will bring the state of these stages any more.

        Args:
            missing: Stages whose state nobody offers.
            lost: Those among them of which this node has no bits either.
            view: Who is there.
        """
        now = time.monotonic()
        if self._searching_since is None:
            self._searching_since = now
            if lost:
                self._events.emit(
                    Fault(
                        f"Nobody here has the adapter of stage {_names(lost)} at this step.",
                        f"Waiting {LOST_AFTER_S:.0f} s for a node that has a checkpoint of it.",
                    )
                )
        mine = self._progress().standing
        is_wanted = bool(lost) or any(_has_newer_bits(view, stage, mine) for stage in missing)
        if now - self._searching_since < (LOST_AFTER_S if is_wanted else LOOK_FOR_S):
            return False
        if lost:
            self._events.emit(
                Fault(f"The adapter of stage {_names(lost)} is lost; it begins anew.", "The other stages go on.")
            )
        return True


def _names(stages: Collection[int]) -> str:
    return ", ".join(map(str, sorted(stages)))


def _has_newer_bits(view: SwarmView, stage: int, mine: Standing) -> bool:
    return any(
        peer.peer_id != view.me and peer.progress is not None and peer.progress.standing.is_heavier_than(mine)
        for peer in view.replicas(stage)
    )


def _holder(view: SwarmView, stage: int, target: Standing) -> Peer | None:
    """Return a peer that holds `stage` at `target`, or None."""
    for peer in view.replicas(stage):
        progress = peer.progress
        if peer.peer_id == view.me or progress is None or peer.state is not PeerState.TRAINING:
            continue
        if (progress.version, progress.base_hash) == (target.version, target.base_hash):
            return peer
    return None
