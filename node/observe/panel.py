"""A node's status as a panel that fits a small terminal, and as one line: for the node's own terminal and `--watch`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from node.host.gpus import Gpu
from node.observe.status import human_bytes, human_layers, human_peers, human_seconds, shown
from node.v1 import control_pb2

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 40
_SMOOTHING = 0.8


def sparkline(values: Sequence[float], width: int = _CURVE_POINTS) -> str:
    """Return the values as a row of block characters, the latest `width` of them."""
    latest = values[-width:]
    if not latest:
        return ""
    low, high = min(latest), max(latest)
    span = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] for value in latest)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average of the losses."""
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else _SMOOTHING * smooth[-1] + (1 - _SMOOTHING) * loss)
    return smooth


def panel(status: control_pb2.GetStatusResponse, losses: Sequence[float], gpus: Sequence[Gpu]) -> RenderableType:
    """Return the status as a panel.

    Args:
        status: The swarm as the node sees it.
        losses: Training losses so far, oldest first; drawn as a small curve.
        gpus: This machine's cards.
    """
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    if status.max_steps:
        left = human_seconds(status.seconds_left) if status.HasField("seconds_left") else "–"
        rows.add_row("steps", Group(ProgressBar(total=status.max_steps, completed=status.version, width=40)))
        rows.add_row("", Text(f"{status.version}/{status.max_steps}, {left} left"))
    loss = f"{status.loss:.3f}" if status.HasField("loss") else "–"
    rows.add_row("loss", Text.assemble((loss, "bold"), "  ", (sparkline(smoothed(losses)), "cyan")))
    if status.HasField("held_out_loss"):
        rows.add_row("held-out", Text(f"{status.held_out_loss:.3f}"))
    share = 100 * status.tokens_towards_next / status.target_batch_tokens if status.target_batch_tokens else 0
    rows.add_row("next round", Text(f"{min(share, 100):.0f} %"))
    rows.add_row("speed", Text(f"{status.tokens_per_s:.0f} tokens/s, {human_peers(len(status.peers))}"))
    for gpu in gpus:
        rows.add_row("gpu", Text(gpu_line(gpu)))
    for peer in status.peers:
        rows.add_row("", Text(_peer_line(peer, is_cut=status.num_stages > 1)))
    return Group(Text(f"potluck · {shown(status.state, 32)}", style="bold"), rows)


def gpu_line(gpu: Gpu) -> str:
    """Return a card in one line."""
    heat = f"  {gpu.temperature_c} °C" if gpu.temperature_c is not None else ""
    return f"{shown(gpu.name)}  {human_bytes(gpu.used_bytes)} of {human_bytes(gpu.total_bytes)}{heat}"


def _peer_line(peer: control_pb2.PeerStatus, *, is_cut: bool) -> str:
    mark = "this node" if peer.is_me else f"…{peer.peer_id[-6:]}"
    layers = f"  {human_layers(peer)}" if is_cut else ""
    return f"{shown(peer.name, 64)} ({shown(mark)})  {shown(peer.state, 32)}{layers}  {peer.tokens_per_s:.0f} tokens/s"


def step_line(status: control_pb2.GetStatusResponse, version: int) -> str:
    """Return where the run stands at a step, in one line."""
    parts = [f"step {version}/{status.max_steps}"]
    if status.HasField("loss"):
        parts.append(f"loss {status.loss:.3f}")
    parts += [f"{status.tokens_per_s:.0f} tokens/s", human_peers(len(status.peers))]
    if status.rounds and status.rounds[-1].members > 1:
        parts.append(f"round {status.rounds[-1].seconds:.2f} s")
    if status.HasField("seconds_left"):
        parts.append(f"{human_seconds(status.seconds_left)} left")
    return "  ".join(parts)
