"""The metrics that are read from the node's status at the moment when Prometheus asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.core.lifecycle import State
from node.core.types import PeerState
from node.v1 import control_pb2

StatusSource = Callable[[], control_pb2.GetStatusResponse]
DeviceSource = Callable[[], tuple[int, int] | None]
"""Bytes in use and in all of the device that computes."""

_RUN_CHARS = 12


class NodeCollector(Collector):
    """Turns the status into metrics, once for each time that it is collected."""

    def __init__(self, status: StatusSource, device: DeviceSource) -> None:
        self._status = status
        self._device = device

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not ask a node that does not live yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the status; what is not known yet is left out rather than given as 0."""
        status = self._status()
        yield _one_of(
            "potluck_state", "1 for the state that the node is in, else 0.", (s.value for s in State), status.state
        )
        yield from _training(status)
        yield from _swarm(status)
        yield from _traffic(status)
        device = self._device()
        if device is not None:
            memory = GaugeMetricFamily(
                "potluck_device_memory_bytes", "Memory of the device that computes.", labels=["kind"]
            )
            memory.add_metric(["used"], device[0])
            memory.add_metric(["total"], device[1])
            yield memory


def _training(status: control_pb2.GetStatusResponse) -> Iterator[Metric]:
    yield _gauge("potluck_step", "Optimizer steps behind this node's adapter.", status.version)
    if status.max_steps:
        yield _gauge("potluck_max_steps", "Optimizer steps of the whole run.", status.max_steps)
    if status.target_batch_tokens:
        share = status.tokens_towards_next / status.target_batch_tokens
        yield _gauge("potluck_step_progress_ratio", "Tokens trained towards the next step, of those it needs.", share)
    mine = next((peer for peer in status.peers if peer.is_me), None)
    if mine is not None and mine.HasField("loss"):
        yield _gauge("potluck_training_loss", "Mean of this node's latest microbatches, in nats per token.", mine.loss)
    if status.HasField("loss"):
        yield _gauge("potluck_swarm_training_loss", "Mean over the swarm, in nats per token.", status.loss)
    if status.HasField("held_out_loss"):
        yield _gauge(
            "potluck_held_out_loss", "Of this node's held-out rows, latest, in nats per token.", status.held_out_loss
        )
    if status.fingerprint:
        run = GaugeMetricFamily("potluck_run_info", "1, with the beginning of the run's fingerprint.", labels=["run"])
        run.add_metric([status.fingerprint[:_RUN_CHARS]], 1)
        yield run


def _swarm(status: control_pb2.GetStatusResponse) -> Iterator[Metric]:
    yield _gauge("potluck_swarm_tokens_per_second", "Tokens per second of all peers together.", status.tokens_per_s)
    states = Counter(peer.state for peer in status.peers)
    peers = GaugeMetricFamily("potluck_peers", "Peers that are alive, this node included, by state.", labels=["state"])
    for state in PeerState:
        peers.add_metric([state.value], states[state.value])
    yield peers
    if not status.num_stages:
        return
    yield _gauge("potluck_stages", "Stages that the run cuts the model into.", status.num_stages)
    if mine := next((peer for peer in status.peers if peer.is_me), None):
        yield _gauge("potluck_stages_held", "Stages that this node holds.", max(0, mine.stop_stage - mine.first_stage))
    yield _gauge(
        "potluck_stage_replicas_lowest",
        "Peers that hold the stage that the fewest hold: at 1, nobody could replace them; at 0, training waits.",
        _fewest_holders(status),
    )


def _fewest_holders(status: control_pb2.GetStatusResponse) -> int:
    # a peer's numbers are its own words: only stages that the run has are looked at
    return min(
        sum(peer.first_stage <= stage < peer.stop_stage for peer in status.peers) for stage in range(status.num_stages)
    )


def _traffic(status: control_pb2.GetStatusResponse) -> Iterator[Metric]:
    given = status.given
    tokens = CounterMetricFamily("potluck_tokens_committed", "Tokens of this node's own data in rounds that were kept.")
    tokens.add_metric([], given.tokens_committed)
    yield tokens
    sent = CounterMetricFamily("potluck_sent_bytes", "Bytes sent to peers, by what they were for.", labels=["kind"])
    sent.add_metric(["rounds"], given.bytes_sent)
    sent.add_metric(["hidden_states"], given.hidden_bytes_sent)
    yield sent
    received = CounterMetricFamily(
        "potluck_received_bytes", "Bytes received from peers, by what they were for.", labels=["kind"]
    )
    received.add_metric(["hidden_states"], given.hidden_bytes_received)
    yield received


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _one_of(name: str, text: str, values: Iterable[str], current: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for value in values:
        family.add_metric([value], float(value == current))
    return family
