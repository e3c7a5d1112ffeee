"""A node's own web page (`--dashboard`): maps the node's status to what `coordinator.web` shows, and serves it.

The mapping is made once a second at most, and only while somebody looks; the loss curves are kept from the events in a
bounded list each, for this process's life.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from statistics import median

from coordinator.listen import WrongAddress
from coordinator.web.hints import with_hints
from coordinator.web.owner import owners_page
from coordinator.web.snapshot import Commands, PeerView, RoundView, RunView, Snapshot, plain
from node.core.errors import ConfigError
from node.core.events import Evaluated, Event, EventBus, MicrobatchDone, Stepped
from node.v1 import control_pb2

DEFAULT_LISTEN = "127.0.0.1:4041"
_INTERVAL_S = 1.0
_KEPT_POINTS = 2000
_KEPT_LEFT = 32
_SLOW_SHARE = 0.4
_SLOW_STEPS = 2
_MAX_FILE_NAME = 40

StatusSource = Callable[[], control_pb2.GetStatusResponse]


class LossCurves:
    """An event sink that keeps the training loss of each step and the held-out losses.

    A step's training loss is the mean of this node's own microbatches since the step before, weighted by their labels;
    on a node without data it is the swarm's.
    """

    def __init__(self, swarm_loss: Callable[[], float | None]) -> None:
        self._swarm_loss = swarm_loss
        self._sum = (0.0, 0)
        self.training: list[tuple[int, float]] = []
        self.held_out: list[tuple[int, float]] = []

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case MicrobatchDone(_, loss, _, labels):
                self._sum = (self._sum[0] + loss * labels, self._sum[1] + labels)
            case Stepped(version):
                (total, labels), self._sum = self._sum, (0.0, 0)
                mean = total / labels if labels else self._swarm_loss()
                if mean is not None:
                    self.training = appended(self.training, (version, mean))
            case Evaluated(version, loss, _):
                self.held_out = appended(self.held_out, (version, loss))


def appended(points: list[tuple[int, float]], point: tuple[int, float]) -> list[tuple[int, float]]:
    """Return the points with one more; of too many every second one goes, the latest stays.

    A version that is not after the last one (another lineage was followed) takes the place of what came after it.
    """
    kept = [p for p in points if p[0] < point[0]] if points and points[-1][0] >= point[0] else points
    if len(kept) >= _KEPT_POINTS:
        kept = kept[::2]
    return [*kept, point]


class NodeSource:
    """What the page of one node shows."""

    def __init__(self, status: StatusSource, curves: LossCurves) -> None:
        self._status = status
        self._curves = curves
        self._seen: dict[str, PeerView] = {}
        self._left: dict[str, tuple[PeerView, float]] = {}
        self._latest: tuple[float, Snapshot] | None = None
        self._end = asyncio.Event()

    def snapshot(self) -> Snapshot:
        """Return what there is to see, at most a second old."""
        now = time.monotonic()
        if self._latest is None or now - self._latest[0] >= 0.9 * _INTERVAL_S:
            self._latest = (now, self._take(now))
        return self._latest[1]

    async def changes(self) -> AsyncIterator[Snapshot]:
        """Yield what there is to see each second, and once more when the node ends."""
        while not self._end.is_set():
            yield self.snapshot()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._end.wait()
        self._latest = None
        yield self.snapshot()

    def end(self) -> None:
        """Let all viewers see the last state, and go."""
        self._end.set()

    def _take(self, now: float) -> Snapshot:
        status = self._status()
        here = {peer.peer_id for peer in status.peers}
        for peer_id in [peer_id for peer_id in self._seen if peer_id not in here]:
            self._left[peer_id] = (self._seen.pop(peer_id), now)
        self._left = {peer_id: gone for peer_id, gone in self._left.items() if peer_id not in here}
        self._left = dict(list(self._left.items())[-_KEPT_LEFT:])
        run = run_view(status, training=self._curves.training, held_out=self._curves.held_out)
        self._seen = {peer.id: peer for peer in run.peers}
        gone = [
            peer.model_copy(update={"mark": "left", "tokens_per_s": 0.0, "heard_s_ago": now - at})
            for peer, at in self._left.values()
        ]
        return Snapshot(runs=(with_hints(run.model_copy(update={"peers": (*run.peers, *gone)})),))


def run_view(
    status: control_pb2.GetStatusResponse,
    *,
    training: list[tuple[int, float]],
    held_out: list[tuple[int, float]],
) -> RunView:
    """Return the run as the page shows it."""
    given = sum(peer.tokens_given for peer in status.peers) or 1
    paces = [peer.stage_tokens_per_s for peer in status.peers if peer.stage_tokens_per_s > 0]
    usual, newest = median(paces) if len(paces) > 1 else 0.0, max((p.version for p in status.peers), default=0)
    home = shlex.quote(status.home)
    return RunView(
        fingerprint=status.fingerprint,
        name=status.run_name or shown_model(status.base_model),
        base_model=shown_model(status.base_model),
        state=f"{status.state}, paused by the operator" if status.is_paused else status.state,
        coordinator=f"coordinator {'here' if status.has_coordinator else 'not there'}" if status.coordinator else "",
        version=status.version,
        max_steps=status.max_steps,
        seconds_left=_optional(status, "seconds_left"),
        target_tokens=status.target_batch_tokens,
        tokens_towards_next=status.tokens_towards_next,
        tokens_per_s=status.tokens_per_s,
        loss=_optional(status, "loss"),
        held_out_loss=_optional(status, "held_out_loss"),
        held_out_loss_before=_optional(status, "held_out_loss_before"),
        training=tuple(training),
        held_out=tuple(held_out),
        num_stages=status.num_stages or 1,
        num_layers=status.num_layers,
        peers=tuple(
            PeerView(
                id=peer.peer_id,
                name=peer.name,
                is_me=peer.is_me,
                state=peer.state,
                mark="slow" if is_slow(peer, usual, newest) else "",
                first_stage=peer.first_stage,
                stop_stage=peer.stop_stage,
                first_layer=peer.first_layer,
                stop_layer=peer.stop_layer,
                drives=peer.drives,
                tokens_per_s=peer.tokens_per_s,
                tokens_given=peer.tokens_given,
                share=peer.tokens_given / given,
                loss=_optional(peer, "loss"),
                version=peer.version,
                heard_s_ago=peer.heard_s_ago,
            )
            for peer in status.peers
        ),
        rounds=tuple(
            RoundView(
                version=round.version,
                status=round.status,
                members=round.members,
                tokens=round.tokens,
                seconds=round.seconds,
                bytes_sent=round.bytes_sent,
                reason=round.reason,
            )
            for round in status.rounds
        ),
        commands=Commands(
            join=f"potluck join {plain(status.addresses[0], 300)}" if status.addresses else "",
            stop=f"potluck stop --home {home}",
            export=f"potluck export peft --home {home} --output adapter",
        ),
    )


def shown_model(base_model: str) -> str:
    """Return a model's name; of a path on its founder's machine only the last part, which may be a long digest."""
    return (
        base_model.rstrip("/").rsplit("/", 1)[-1][:_MAX_FILE_NAME] if base_model.startswith(("/", ".")) else base_model
    )


def is_slow(peer: control_pb2.PeerStatus, usual: float, newest: int) -> bool:
    """Whether a peer holds the others up: far below their median pace through a stage, or steps behind them."""
    if peer.state != "training":
        return False
    return 0 < peer.stage_tokens_per_s < _SLOW_SHARE * usual or peer.version + _SLOW_STEPS <= newest


@contextlib.asynccontextmanager
async def dashboard(
    listen: str, status: StatusSource, events: EventBus, home: Path, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Serve the node's page while inside; its address with the token is said, and stands in the home for the owner.

    Raises:
        ConfigError: the address is none, or taken.
    """
    curves = LossCurves(lambda: _optional(status(), "loss"))
    source = NodeSource(status, curves)
    try:
        async with owners_page(source, listen, home, say, default=DEFAULT_LISTEN):
            events.subscribe(curves)
            try:
                yield
            finally:
                source.end()
    except WrongAddress as error:
        raise ConfigError(
            f"--dashboard: {error}.", hint="Give it last or as --dashboard=127.0.0.1:4041; alone it takes that address."
        ) from error


def _optional(message: control_pb2.GetStatusResponse | control_pb2.PeerStatus, field: str) -> float | None:
    """Return a field that may be absent."""
    return next((value for descriptor, value in message.ListFields() if descriptor.name == field), None)
