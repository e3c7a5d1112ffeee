"""Choose hops for this node's microbatches from the swarm's view and from what earlier ones took."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from node.core.errors import NoReplica, PeerBusy, PeerError
from node.core.routing import Holder, Hop, HopTimes, layers_text, missing_stages, route_again
from node.core.types import PeerId, PeerState, StagePlan, SwarmView
from node.network.stages import StageTransport
from node.pipeline.deliveries import Deliveries
from node.pipeline.hops import HopCaller, LocalHop, RemoteHop, Visit
from node.pipeline.wire import Wire
from node.training.engine import Engine
from node.training.stage import StageRunner
from node.v1 import pipeline_pb2 as pb

_DOWN_S = 5.0
"""A peer that failed is passed over for so long, if another can do it."""
_RESET_S = 5.0


class SwarmRouter:
    """Routes over whoever is seen in state TRAINING; versions are told by the holders themselves."""

    def __init__(
        self,
        *,
        plan: StagePlan,
        runner: StageRunner,
        engine: Engine,
        transport: StageTransport,
        wire: Wire,
        deliveries: Deliveries,
        view: Callable[[], SwarmView],
        is_chain: bool,
    ) -> None:
        self._plan = plan
        self._runner = runner
        self._engine = engine
        self._transport = transport
        self._wire = wire
        self._deliveries = deliveries
        self._view = view
        self._is_chain = is_chain
        self._down: dict[PeerId, float] = {}
        self.times: defaultdict[PeerId, HopTimes] = defaultdict(HopTimes)

    def hops(
        self, start: int, stop: int, *, tokens: int, avoid: Collection[PeerId], counted_by: Mapping[int, PeerId]
    ) -> tuple[HopCaller, ...]:
        """Return callers for stages `[start, stop)`.

        Raises:
            NoReplica: some stage has no holder that is not to be avoided.
        """
        found = self.find(start, stop, tokens=tokens, avoid=avoid, counted_by=counted_by)
        return tuple(self._callers(self._view().me, found))

    def find(
        self,
        start: int,
        stop: int,
        *,
        tokens: int,
        avoid: Collection[PeerId] = (),
        counted_by: Mapping[int, PeerId] | None = None,
    ) -> tuple[Hop, ...]:
        """Return the quickest hops for stages `[start, stop)`; stages that have counted it stay with who did.

        Raises:
            NoReplica: some stage has no holder that is not to be avoided.
        """
        now = time.monotonic()
        down = {peer for peer, until in self._down.items() if until > now}
        view = self._view()
        holders = self._holders(view)

        def cost(peer: PeerId, num_stages: int) -> float:
            return 0.0 if peer == view.me else self.times[peer].expected_s(tokens, num_stages)

        for excluded in (down | set(avoid), avoid):
            found = route_again(holders, start, stop, cost=cost, avoid=excluded, counted_by=counted_by or {})
            if found is not None:
                return found
        raise self._nobody([h for h in holders if h.peer_id not in avoid], holders, start, stop)

    def failed(self, error: PeerError) -> None:
        """Pass the peer over for a while."""
        if not isinstance(error, PeerBusy):
            self._down[PeerId(error.peer_id)] = time.monotonic() + _DOWN_S

    def finished(self, visit: Visit, tokens: int) -> None:
        """Learn from a forward and its backward."""
        for hop in visit.hop.hops:
            self.times[hop.peer_id].measured(
                work_s=visit.work_s.get(hop.peer_id, 0.0),
                overhead_s=visit.overhead_s / len(visit.hop.hops),
                tokens=tokens,
                stages=hop.stop_stage - hop.first_stage,
            )

    async def is_there(self, peer: PeerId) -> bool:
        """Return whether a holder answers; asked twice, since a machine that is busy answers late."""
        return await self._transport.ping(peer) or await self._transport.ping(peer)

    async def reset(self, peer: PeerId, session: str) -> None:
        """Ask a holder to drop the sums of a session."""
        request = pb.StageRequest(kind=pb.STAGE_KIND_RESET, session=session)
        with contextlib.suppress(PeerError):
            await self._transport.call(peer, request, reply_bytes=0, timeout_s=_RESET_S)

    def _holders(self, view: SwarmView) -> list[Holder]:
        return [
            Holder(peer.peer_id, peer.shard)
            for peer in view.peers
            if len(peer.shard) and (peer.state is PeerState.TRAINING or peer.peer_id == view.me)
        ]

    def _callers(self, me: PeerId, hops: tuple[Hop, ...]) -> Iterable[HopCaller]:
        """Turn hops into callers; neighbours on the way become one chain where the run asks for that."""
        chain: list[Hop] = []
        for hop in hops:
            if hop.peer_id != me and self._is_chain:
                chain.append(hop)
                continue
            if chain:
                yield self._remote(tuple(chain))
                chain = []
            yield LocalHop(me, hop, self._engine, self._runner) if hop.peer_id == me else self._remote((hop,))
        if chain:
            yield self._remote(tuple(chain))

    def _remote(self, hops: tuple[Hop, ...]) -> RemoteHop:
        return RemoteHop(hops, self._transport, self._wire, self.times, self._deliveries)

    def _nobody(self, answering: list[Holder], holders: list[Holder], start: int, stop: int) -> NoReplica:
        """Say which stages nobody holds, or if all are held, whose holders failed for this microbatch."""
        hint = "Training goes on by itself as soon as somebody brings them: `potluck join ADDRESS` on another machine."
        for among, words in (
            (holders, "Nobody in the swarm holds {} of the model"),
            (answering, "No holder of {} answers"),
        ):
            missing = tuple(s for s in missing_stages(among, self._plan.num_stages) if start <= s < stop)
            if missing:
                first, last = self._plan.ranges[missing[0]], self._plan.ranges[missing[-1]]
                text = words.format(layers_text(first.start, last.stop))
                return NoReplica(f"{text}; training waits.", stages=missing, hint=hint)
        raise AssertionError("every stage has a holder that was not tried")
