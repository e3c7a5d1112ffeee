"""What the page shows: frozen, bounded, and harmless, whoever it came from.

Names, reasons and addresses are other peers' and hostile until they have passed here: they lose what is not printable
(line breaks, escapes, marks that turn the direction of writing) and what is too long. Numbers that are no numbers
become None or 0. A list that is too long is cut, never refused: a page that goes dark is what an attacker would want.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

MAX_NAME = 64
MAX_TEXT = 400
MAX_POINTS = 400
MAX_PEERS = 256
MAX_STAGES = 512
MAX_ROUNDS = 40
MAX_RUNS = 16
MAX_HINTS = 6
_MAX_COUNT = 1 << 53
"""Above it JavaScript's numbers lose digits."""

P = TypeVar("P")


def plain(text: object, most: int) -> str:
    """Return a stranger's text without what could disturb others, at most `most` characters of it."""
    return "".join(c for c in str(text)[: 2 * most] if c.isprintable())[:most]


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _amount(value: Any) -> float:
    return min(max(_finite(value) or 0.0, 0.0), 1e18)


def _count(value: Any) -> int:
    return min(max(int(value), 0), _MAX_COUNT)


def thinned(points: Sequence[P], most: int = MAX_POINTS) -> tuple[P, ...]:
    """Return at most `most` of the points, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return tuple(points)
    stride = (len(points) - 1) / (most - 1)
    return tuple(points[round(index * stride)] for index in range(most))


def _cut(most: int) -> BeforeValidator:
    return BeforeValidator(lambda items: tuple(items)[:most])


Name = Annotated[str, BeforeValidator(lambda text: plain(text, MAX_NAME))]
Text = Annotated[str, BeforeValidator(lambda text: plain(text, MAX_TEXT))]
Loss = Annotated[float | None, BeforeValidator(_finite)]
"""Nats per token."""
Amount = Annotated[float, BeforeValidator(_amount)]
Count = Annotated[int, BeforeValidator(_count)]
Point = tuple[Count, float]
"""(step, loss)"""


def _points(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    return thinned([(step, loss) for step, loss in points if math.isfinite(loss)])


Curve = Annotated[tuple[Point, ...], BeforeValidator(_points)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PeerView(_Frozen):
    """One peer; stages and layers are half-open, both 0 for none."""

    id: Name
    name: Name
    is_me: bool = False
    state: Name = ""
    mark: Literal["", "slow", "left"] = ""
    first_stage: Count = 0
    stop_stage: Count = 0
    first_layer: Count = 0
    stop_layer: Count = 0
    drives: bool = True
    tokens_per_s: Amount = 0.0
    tokens_given: Count = 0
    share: Amount = 0.0
    """Of all tokens that are in the adapter, 0 to 1."""
    loss: Loss = None
    version: Count = 0
    heard_s_ago: Amount = 0.0


class RoundView(_Frozen):
    """One averaging round that has ended."""

    version: Count
    """Optimizer steps before it."""
    status: Name
    members: Count
    tokens: Count
    seconds: Amount
    bytes_sent: Count
    """By the node whose page this is; on a coordinator's page by the one that called the round."""
    reason: Text = ""


class Commands(_Frozen):
    """What the owner types; empty where there is no such command from here."""

    join: Text = ""
    stop: Text = ""
    export: Text = ""


class Hint(_Frozen):
    """One thing that the page's owner can do next."""

    kind: Literal["alone", "missing", "rising", "finished", "dropped", "invite"]
    title: Text
    text: Text
    command: Text = ""
    shows_code: bool = False
    """Whether the join line stands beside it as a QR code."""


class RunView(_Frozen):
    """One run, as its source sees it."""

    fingerprint: Name
    name: Name
    base_model: Text = ""
    coordinator: Text = ""
    """Whether it is there, in words; empty for a run without."""
    state: Name = ""
    version: Count = 0
    max_steps: Count = 0
    seconds_left: Annotated[float | None, BeforeValidator(_finite)] = None
    target_tokens: Count = 0
    tokens_towards_next: Count = 0
    tokens_per_s: Amount = 0.0
    loss: Loss = None
    held_out_loss: Loss = None
    held_out_loss_before: Loss = None
    """The first one that was measured."""
    training: Curve = ()
    held_out: Curve = ()
    num_stages: Annotated[int, BeforeValidator(lambda value: min(_count(value), MAX_STAGES))] = 1
    num_layers: Count = 0
    peers: Annotated[tuple[PeerView, ...], _cut(MAX_PEERS)] = ()
    rounds: Annotated[tuple[RoundView, ...], BeforeValidator(lambda items: tuple(items)[-MAX_ROUNDS:])] = ()
    """Oldest first."""
    commands: Commands = Commands()
    hints: Annotated[tuple[Hint, ...], _cut(MAX_HINTS)] = ()


class Snapshot(_Frozen):
    """Everything that the page shows at one moment."""

    runs: Annotated[tuple[RunView, ...], _cut(MAX_RUNS)] = ()


class Source(Protocol):
    """Where the page's contents come from."""

    def snapshot(self) -> Snapshot:
        """Return what there is to see now; cheap, and called on the event loop."""

    def changes(self) -> AsyncIterator[Snapshot]:
        """Yield a snapshot now and again whenever something may have changed, about once a second at most.

        It ends when what is shown ends, before the server does: a stream that goes on holds the server's end up.
        """
