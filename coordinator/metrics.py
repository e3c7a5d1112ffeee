"""What a coordinator tells Prometheus. A label has few values, all of them ours: never a name, an id or an address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.hub import Hub
from coordinator.run_state import State
from coordinator.tally import METHODS, OUTCOMES, REFUSALS


def coordinator_registry(read: Callable[[], list[Metric]]) -> CollectorRegistry:
    """Return what Prometheus is given.

    Args:
        read: Returns `standing` of the hub; called from other threads.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Standing(read))
    return registry


class _Standing(Collector):
    def __init__(self, read: Callable[[], list[Metric]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not ask a loop that waits for it."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read it."""
        yield from self._read()


def standing(hub: Hub) -> list[Metric]:
    """Return how things stand; on the event loop."""
    states = Counter(run.state for run in hub.runs.values())
    runs = GaugeMetricFamily("potluck_coordinator_runs", "Runs that the coordinator knows.", labels=["state"])
    for state in State:
        runs.add_metric([state.name.lower()], states[state])
    members = sum(len(run.members) for run in hub.runs.values())
    rate = sum(member.facts.tokens_per_s for run in hub.runs.values() for member in run.members.values())
    tally = hub.tally
    return [
        runs,
        GaugeMetricFamily("potluck_coordinator_members", "Members of all runs, by their heartbeats.", value=members),
        GaugeMetricFamily("potluck_coordinator_watchers", "Nodes that are told of changes.", value=hub.num_watchers),
        GaugeMetricFamily(
            "potluck_coordinator_tokens_per_second", "Tokens a second of all members together.", value=rate
        ),
        _counter("calls", "Calls that were let in.", "method", METHODS, tally.calls),
        _counter("refused_calls", "Calls that were turned away.", "reason", REFUSALS, tally.refused),
        _counter("rounds", "Averaging rounds that members reported.", "outcome", OUTCOMES, tally.rounds),
    ]


def _counter(name: str, help: str, label: str, values: Iterable[str], counts: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"potluck_coordinator_{name}", help, labels=[label])
    for value in values:
        family.add_metric([value], counts[value])
    return family
