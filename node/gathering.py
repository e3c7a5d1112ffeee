"""The whole adapter of a run that is cut into stages: this node's own, and from its peers all others at one step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.core.errors import NoReplica, PeerBusy, PeerError
from node.core.routing import layers_text
from node.core.types import PeerState, Shard, Standing, SwarmView
from node.enlist import Enlisted
from node.loaded import Loaded
from node.model.build import adapter_shapes
from node.network.door import fetch_state
from node.network.processes import RunningP2P
from node.specs import Cutting, load_spec
from node.training.state import Layout, decode, encoded_size_limit

_PATIENCE_S = 60.0
_RETRY_S = 0.5


@dataclass(frozen=True)
class Gathered:
    """An adapter, whole."""

    standing: Standing
    by_stage: dict[int, bytes]
    """Each as `StageAdapter.to_bytes` gives it, checked."""


async def gather(loaded: Loaded, enlisted: Enlisted, running: RunningP2P, view: Callable[[], SwarmView]) -> Gathered:
    """Return all stages' adapters at one step.

    Rounds go on meanwhile; if one commits in between, what was fetched is of two steps and is fetched again.

    Raises:
        NoReplica: nobody holds some stage.
        PeerError: a peer failed, again and again.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await _try(loaded, enlisted, running, view())
        except (PeerError, NoReplica):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_RETRY_S)


async def _try(loaded: Loaded, enlisted: Enlisted, running: RunningP2P, view: SwarmView) -> Gathered:
    plan, held = loaded.cutting.plan, loaded.cutting.held
    await loaded.strategy.settled()
    standing = loaded.strategy.standing
    own = await asyncio.gather(*(loaded.strategy.export(stage) for stage in held.stages))
    if any(_place(exported.standing) != _place(standing) for exported in own):
        raise PeerBusy("A round has just ended.", peer_id=view.me, retry_after_s=_RETRY_S)
    by_stage = {stage: exported.data for stage, exported in zip(held.stages, own, strict=True)}
    for stage in range(plan.num_stages):
        if stage not in by_stage:
            by_stage[stage] = await _fetch(stage, standing, loaded, enlisted, running, view)
    return Gathered(standing, dict(sorted(by_stage.items())))


async def _fetch(
    stage: int, standing: Standing, loaded: Loaded, enlisted: Enlisted, running: RunningP2P, view: SwarmView
) -> bytes:
    plan = loaded.cutting.plan
    holders = [p for p in view.replicas(stage) if p.peer_id != view.me and p.state is PeerState.TRAINING]
    if not holders:
        layers = plan.ranges[stage]
        raise NoReplica(
            f"Nobody in the swarm holds {layers_text(layers.start, layers.stop)} now, so the adapter is not whole.",
            stages=(stage,),
            hint="Try again when a node that holds them is back (`potluck status`).",
        )
    layout = await asyncio.to_thread(_layout, loaded, enlisted, stage)
    errors: list[PeerError] = []
    for holder in holders:
        try:
            fetched = await fetch_state(
                running.p2p,
                holder.peer_id,
                fingerprint=enlisted.fingerprint,
                stage=stage,
                max_bytes=encoded_size_limit(layout),
            )
        except PeerError as error:
            errors.append(error)
            continue
        if (fetched.version, fetched.base_hash) != _place(standing):
            raise PeerBusy("A peer is a step away.", peer_id=holder.peer_id, retry_after_s=_RETRY_S)
        await asyncio.to_thread(decode, fetched.data, layout)
        return fetched.data
    raise errors[0]


def _layout(loaded: Loaded, enlisted: Enlisted, stage: int) -> Layout:
    cutting = Cutting(loaded.cutting.plan, Shard(stage, stage + 1), drives=False)
    return Layout.of(adapter_shapes(enlisted.model_folder, load_spec(enlisted.recipe, "cpu", cutting)))


def _place(standing: Standing) -> tuple[int, str]:
    return standing.version, standing.base_hash
