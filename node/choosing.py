"""Which part of the run's model this node is to hold, given its memory, its owner's wish and the swarm."""

from __future__ import annotations

from node.config.local import LocalSettings
from node.core.types import Shard, SwarmView
from node.enlist import Enlisted
from node.holding import Room, pick_shard
from node.host.devices import describe
from node.host.shapes import ModelShape
from node.model.families import read_config
from node.specs import Cutting, load_spec
from node.training.checkpoint import CheckpointStore


def choose(
    enlisted: Enlisted, device: str, settings: LocalSettings, view: SwarmView, moves_to: Shard | None, hint: Shard
) -> tuple[Room, Cutting]:
    """Return what fits here, and what of it to hold.

    Args:
        enlisted: The run.
        device: Where to compute.
        settings: The owner's, with a wish or a limit perhaps.
        view: Who holds what.
        moves_to: Stages that this node has been found to be needed for.
        hint: Stages that a coordinator finds to be needed most; of no weight where the view says who holds what.
    """
    drives = enlisted.data is not None
    shape = ModelShape.of(read_config(enlisted.model_folder))
    bf16 = load_spec(enlisted.recipe, device).compute == "bfloat16"
    room = Room.of(enlisted.recipe, shape, describe(device), settings, drives=drives, bf16=bf16)
    held = CheckpointStore(enlisted.folder.checkpoints, read_only=True).latest_stages(enlisted.fingerprint)
    others = [peer for peer in view.peers if peer.peer_id != view.me]
    if moves_to is None and settings.stages == "auto" and not held and not others:
        moves_to = _around(hint, room)
    shard = moves_to or pick_shard(room, settings, others, before=held, lends=not drives)
    return room, Cutting(room.plan, shard, drives)


def _around(hint: Shard, room: Room) -> Shard | None:
    """Return as many stages as fit, those of the hint among them; None if there is no hint, or no room."""
    capacity, num_stages = room.num_stages, room.plan.num_stages
    if not 0 <= hint.first_stage < hint.stop_stage <= num_stages or not 0 < capacity < num_stages:
        return None
    start = min(hint.first_stage, num_stages - capacity)
    return Shard(start, start + capacity)
