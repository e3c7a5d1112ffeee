"""Score the held-out split, one engine job a microbatch, so that others' work and rounds go in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from node.core.types import Microbatch
from node.training.engine import Engine, Priority


class Evaluable(Protocol):
    """The model as evaluation sees it."""

    def evaluate(self, batch: Microbatch, *, adapter: bool = True) -> float:
        """Return the summed loss without touching gradients."""


@dataclass(frozen=True, slots=True)
class Score:
    """The result of one evaluation."""

    loss: float
    """Mean loss in nats per label."""
    labels: int


async def score(
    engine: Engine, model: Evaluable, batches: Iterable[Microbatch], *, adapter: bool = True
) -> Score | None:
    """Return the mean loss over `batches`, or None if they hold no label."""
    total, labels = 0.0, 0
    for batch in batches:
        total += await engine.run(Priority.OWN, model.evaluate, batch, adapter=adapter)
        labels += batch.num_labels
    return Score(total / labels, labels) if labels else None
