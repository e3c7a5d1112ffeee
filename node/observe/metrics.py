"""What a node tells Prometheus: counted from its events, and read from its status when it is asked.

Names and units follow Prometheus' rules. A label has few values, all of them ours: never a peer's name, id or text.
Losses are means in nats per token. docs/metrics.md lists what is here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from coordinator.listen import WrongAddress
from coordinator.scrape import metrics_endpoint
from node.core.errors import ConfigError
from node.core.events import (
    AdapterSynced,
    CheckpointSaved,
    Event,
    Fault,
    MicrobatchDone,
    MicrobatchRetried,
    PeerLost,
    PeerSeen,
    RoundFinished,
    StagesFound,
    StagesMissing,
    Stepped,
    WorkLost,
)
from node.core.types import RoundResult, RoundStatus
from node.core.versions import PROTOCOL, software
from node.observe.metrics_read import DeviceSource, NodeCollector, StatusSource

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class NodeMetrics:
    """An event sink whose registry is what Prometheus reads."""

    def __init__(self, status: StatusSource, device: DeviceSource) -> None:
        """Register everything, so that a series is there, with 0, before its first event.

        Args:
            status: The node's status; called from other threads.
            device: The compute device's memory, or None where it cannot be told; called from other threads.
        """
        self.registry = registry = CollectorRegistry()
        self._tokens = Counter(
            "potluck_tokens_trained", "Tokens of this node's own data trained on.", registry=registry
        )
        self._microbatch_s = Histogram(
            "potluck_microbatch_duration_seconds",
            "Time that one microbatch of this node's own data took, forward and backward.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._retries = Counter(
            "potluck_microbatch_retries",
            "Microbatches that went on with other peers or were done again.",
            registry=registry,
        )
        self._rounds = Counter(
            "potluck_rounds",
            "Averaging rounds that this node took part in, by how they ended.",
            ["status"],
            registry=registry,
        )
        self._round_s = Histogram(
            "potluck_round_duration_seconds",
            "Time that averaging rounds with other peers took, by how they ended.",
            ["status"],
            buckets=_SECONDS,
            registry=registry,
        )
        for status_of_round in RoundStatus:
            self._rounds.labels(status_of_round.value)
        for with_others in (RoundStatus.COMMITTED, RoundStatus.DROPPED):
            self._round_s.labels(with_others.value)
        self._round_tokens = Counter(
            "potluck_round_tokens", "Tokens of all members together in the rounds that were kept.", registry=registry
        )
        self._rate = Gauge("potluck_learning_rate", "Learning rate of the latest optimizer step.", registry=registry)
        self._norm = Gauge(
            "potluck_gradient_norm", "Norm of the whole adapter's gradient at the latest step.", registry=registry
        )
        self._epoch = Gauge("potluck_epoch", "Passes over this node's own data.", registry=registry)
        self._saves = Histogram(
            "potluck_checkpoint_duration_seconds",
            "Time that saving a checkpoint took.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._save_bytes = Gauge("potluck_checkpoint_size_bytes", "Size of the latest checkpoint.", registry=registry)
        self._save_step = Gauge("potluck_checkpoint_step", "Step of the latest checkpoint on disk.", registry=registry)
        self._saved_at = Gauge(
            "potluck_checkpoint_timestamp_seconds",
            "Unix time at which the latest checkpoint was on disk; 0 before the first.",
            registry=registry,
        )
        self._fetches = Counter(
            "potluck_adapter_fetches", "Times that the adapter was fetched from a peer.", registry=registry
        )
        self._fetched = Counter(
            "potluck_adapter_fetched_bytes", "Bytes of adapters fetched from peers.", registry=registry
        )
        self._lost = Counter(
            "potluck_lost_tokens", "Tokens of this node in rounds that the swarm did not keep.", registry=registry
        )
        self._seen = Counter("potluck_peers_seen", "Peers that appeared.", registry=registry)
        self._gone = Counter("potluck_peers_lost", "Peers that left or fell silent.", registry=registry)
        self._missing = Gauge(
            "potluck_stages_missing", "1 while training waits for layers that nobody holds, else 0.", registry=registry
        )
        self._faults = Counter(
            "potluck_faults", "Things that went wrong and that the node survived.", registry=registry
        )
        Info("potluck_build", "Version of the program and of its protocol.", registry=registry).info(
            {"version": software(), "protocol": str(PROTOCOL)}
        )
        ProcessCollector(registry=registry)
        registry.register(NodeCollector(status, device))

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case MicrobatchDone(_, _, tokens, _, seconds):
                self._tokens.inc(tokens)
                self._microbatch_s.observe(seconds)
            case RoundFinished(result):
                self._count_round(result)
            case Stepped(_, rate, norm, _, epoch):
                self._rate.set(rate)
                self._norm.set(norm)
                self._epoch.set(epoch)
            case CheckpointSaved(version, seconds, size):
                self._saves.observe(seconds)
                self._save_bytes.set(size)
                self._save_step.set(version)
                self._saved_at.set(time.time())
            case AdapterSynced(_, _, size):
                self._fetches.inc()
                self._fetched.inc(size)
            case WorkLost(tokens):
                self._lost.inc(tokens)
            case StagesMissing():
                self._missing.set(1)
            case StagesFound():
                self._missing.set(0)
            case _:
                self._count(event)

    def _count(self, event: Event) -> None:
        kinds = {MicrobatchRetried: self._retries, PeerSeen: self._seen, PeerLost: self._gone, Fault: self._faults}
        counter = kinds.get(type(event))
        if counter is not None:
            counter.inc()

    def _count_round(self, result: RoundResult) -> None:
        self._rounds.labels(result.status.value).inc()
        self._round_tokens.inc(result.tokens)
        if result.status is not RoundStatus.ALONE:
            self._round_s.labels(result.status.value).observe(result.seconds)


@contextlib.asynccontextmanager
async def serving_metrics(metrics: NodeMetrics, listen: str, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Let Prometheus read `metrics` at `listen` while inside.

    Raises:
        ConfigError: one cannot listen there.
    """
    try:
        async with metrics_endpoint(metrics.registry, listen) as url:
            say(f"Metrics for Prometheus:  {url}")
            yield
    except WrongAddress as error:
        raise ConfigError(
            f"--metrics: {error}.", hint="Give a free port of this machine, such as --metrics=127.0.0.1:4043."
        ) from error
