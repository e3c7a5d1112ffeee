"""What a node has of a coordinator, if it has one: the link, what it obeys, and what people are told of it."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.client import CoordinatorClient
from coordinator.v1 import coordinator_pb2
from node.board import Board
from node.core.errors import CheckpointError
from node.core.events import CoordinatorFound, CoordinatorLost, Event, EventBus, Fault, OperatorSaid, RoundFinished
from node.core.orders import Orders
from node.core.types import PeerId, Shard
from node.enlist import Enlisted
from node.host.home import RunFolder
from node.host.shapes import ModelShape
from node.model.families import read_config
from node.network.addresses import parse_coordinator
from node.network.coordinated import CoordinatedMembership
from node.network.coordinator_link import CoordinatorLink, Watch
from node.network.dht import DhtMembership
from node.network.membership import Membership
from node.trust.identity import Identity
from node.v1 import swarm_pb2


class Coordination:
    """One node's relation to one coordinator; an event sink that reports the rounds which this node called."""

    def __init__(
        self,
        address: str,
        identity: Identity,
        run: Enlisted,
        board: Board,
        events: EventBus,
        orders: Orders,
        *,
        nudge: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        """Set up.

        Args:
            address: The coordinator's, as the person gave it.
            identity: This node's.
            run: What the node trains.
            board: Has the figures for the coordinator's page.
            events: Told when the coordinator comes and goes.
            orders: Where the operator's word goes.
            nudge: Called when the orders have changed.
            stop: Called when the operator has taken this node out.

        Raises:
            ConfigError: the address is none.
        """
        self._me: PeerId = identity.peer_id
        self._board = board
        self._events = events
        self._orders = orders
        self._said = "resumed"
        self._nudge = nudge
        self._stop = stop
        parsed = parse_coordinator(address)
        self.target = parsed.target
        """HOST:PORT."""
        self._link = CoordinatorLink(
            CoordinatorClient(parsed, identity),
            identity,
            _as_run(run),
            orders,
            Watch(found=self._found, lost=self._lost, ordered=self._ordered, evicted=self._evicted),
        )
        events.subscribe(self)

    def helped(self, dht: DhtMembership) -> Membership:
        """Begin to look for the coordinator, and return the membership that it helps."""
        self._link.start()
        return CoordinatedMembership(dht, self._link, lambda: (self._board.held_out_loss, self._board.bytes_sent))

    @property
    def is_connected(self) -> bool:
        """Whether the coordinator is there now."""
        return self._link.is_connected

    @property
    def suggested(self) -> Shard:
        """Stages that the swarm lacks most, by the coordinator's reckoning; perhaps not of the run."""
        return self._link.suggested

    def __call__(self, event: Event) -> None:
        """Report a round, if it was this node's to call."""
        if isinstance(event, RoundFinished) and min(event.result.members, default="") == self._me:
            self._link.report(event.result)

    def _found(self) -> None:
        self._events.emit(CoordinatorFound(self.target))

    def _lost(self, reason: str) -> None:
        self._events.emit(CoordinatorLost(self.target, reason))

    def _ordered(self) -> None:
        says = "finished" if self._orders.is_finished else "paused" if self._orders.is_paused else "resumed"
        if says != self._said:
            self._said = says
            self._events.emit(OperatorSaid(says))
        self._nudge()

    def _evicted(self) -> None:
        self._events.emit(
            Fault(
                "The swarm's operator has taken this node out of the run.",
                "Ask whoever runs the coordinator; what was trained here is saved.",
            )
        )
        self._stop()


def coordinator_address(asked: str | None, folder: RunFolder, events: EventBus) -> str | None:
    """Return the address of the run's coordinator, or None if it has none; it is remembered for the next start.

    Args:
        asked: What the owner says: an address, `none`, or nothing.
        folder: Where the one used before is remembered.
        events: Told if that cannot be read: it is no reason to end now.

    Raises:
        ConfigError: it is no coordinator's address.
    """
    remembered = None
    try:
        remembered = folder.load_coordinator()
    except CheckpointError as error:
        events.emit(Fault(error.message, error.hint))
    if asked is None:
        return remembered
    wanted = None if asked == "none" else str(parse_coordinator(asked))
    if wanted != remembered:
        folder.save_coordinator(wanted)
    return wanted


def _as_run(run: Enlisted) -> coordinator_pb2.Run:
    recipe, signed = run.recipe, run.sealed.signed
    sealed = swarm_pb2.Signed(body=signed.body, public_key=signed.public_key, signature=signed.signature)
    stages = recipe.potluck.stages
    assert stages != "auto", "the founder has resolved it"
    return coordinator_pb2.Run(
        fingerprint=run.fingerprint,
        sealed=sealed.SerializeToString(),
        name=recipe.potluck.name or "",
        base_model=str(recipe.base_model)[-200:],
        num_stages=stages,
        num_layers=ModelShape.of(read_config(run.model_folder)).num_layers,
        max_steps=recipe.max_steps or 1,
        target_batch_tokens=recipe.potluck.averaging.target_batch_tokens,
    )
