"""What a holder's reply means to the driver, and waiting for one without trusting silence."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from node.core.errors import NeedsInput, PeerBusy, PeerError, PeerTimeout, ProtocolViolation, StaleVersion
from node.core.routing import Hop
from node.core.text import printable
from node.core.types import PeerId
from node.network.stages import StageTransport
from node.trust.identity import short
from node.v1 import pipeline_pb2 as pb

_PING_EVERY_S = 1.0
_MAX_RETRY_S = 10.0

Answer = tuple[pb.StageReply, bytearray]


async def watched(
    call: Coroutine[Any, Any, Answer], peers: Sequence[PeerId], transport: StageTransport, *, patience_s: float
) -> Answer:
    """Return the answer to a call; after `patience_s` make sure once a second that all `peers` are alive.

    A peer that is stopped or cut off says nothing, and its connection stays: only asking tells it from a busy one.

    Raises:
        PeerTimeout: a peer does not answer a ping either.
        PeerError: as the call.
    """
    task = asyncio.ensure_future(call)
    silent: set[PeerId] = set()
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=patience_s)
            if done:
                return task.result()
            patience_s = _PING_EVERY_S
            alive = await asyncio.gather(*(transport.ping(peer) for peer in peers))
            missed = {peer for peer, is_alive in zip(peers, alive, strict=True) if not is_alive}
            for peer in peers:
                if peer in missed & silent and not task.done():
                    raise PeerTimeout(f"{short(peer)} does not answer.", peer_id=peer)
            silent = missed  # once is an accident: a machine that is busy answers late
    finally:
        task.cancel()


def raise_for(reply: pb.StageReply, peer: PeerId) -> None:
    """Raise what the reply says, unless it says that all is done.

    Raises:
        StaleVersion: the holder is at another version, or lost its sums.
        NeedsInput: the holder does not keep the input any more.
        PeerBusy: not now.
        PeerError: the holder refuses, or the next one in a chain failed.
    """
    reason = printable(reply.reason)[:200]
    match reply.status:
        case pb.STAGE_STATUS_DONE:
            return
        case pb.STAGE_STATUS_STALE:
            raise StaleVersion(f"{short(peer)}: {reason}", version=reply.version)
        case pb.STAGE_STATUS_NEEDS_INPUT:
            raise NeedsInput(f"{short(peer)}: {reason}")
        case pb.STAGE_STATUS_TRY_LATER:
            retry_s = min(max(0.1, reply.retry_after_s), _MAX_RETRY_S)  # in this order NaN becomes 0.1
            raise PeerBusy(f"{short(peer)}: {reason}", peer_id=peer, retry_after_s=retry_s)
        case pb.STAGE_STATUS_NEXT_FAILED:
            culprit = PeerId(reply.failed_peer[:128]) or peer
            raise PeerError(f"{short(culprit)} failed in the chain: {reason}", peer_id=culprit)
        case pb.STAGE_STATUS_REFUSED:
            raise PeerError(f"{short(peer)} refuses: {reason}", peer_id=peer)
        case _:
            raise ProtocolViolation(f"{short(peer)} sent an unknown answer.", peer_id=peer)


def sessions_of(hops: Sequence[Hop], reply: pb.StageReply) -> dict[int, tuple[PeerId, str]]:
    """Return by stage who did it, and in which session.

    Raises:
        ProtocolViolation: the reply lacks a hop's ticket.
    """
    tickets = {PeerId(ticket.peer_id): ticket.session[:64] for ticket in reply.tickets}
    sessions: dict[int, tuple[PeerId, str]] = {}
    for hop in hops:
        if hop.peer_id not in tickets:
            raise ProtocolViolation(f"{short(hop.peer_id)} gave no ticket.", peer_id=hop.peer_id)
        for stage in range(hop.first_stage, hop.stop_stage):
            sessions[stage] = (hop.peer_id, tickets[hop.peer_id])
    return sessions
