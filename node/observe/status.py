"""The answer of `potluck status`, laid out for a terminal. Names of other peers are plain text, never markup."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from node.core.routing import layers_text
from node.core.text import printable
from node.v1 import control_pb2


def human_bytes(count: float) -> str:
    """Return a byte count as people read it: 1.5 MB, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration as people read it: 45 s, 3 min, 2 h 05 min."""
    total = round(seconds)
    if total < 90:
        return f"{total} s"
    minutes = round(total / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def shown(text: str, most: int = 200) -> str:
    """Return a text of somebody else's as it may be shown: nothing that controls a terminal, and not endless."""
    return printable(text[: 2 * most])[:most]


def human_peers(count: int) -> str:
    """Return how many peers there are, as people say it."""
    return "alone" if count <= 1 else f"{count} peers"


def human_layers(peer: control_pb2.PeerStatus) -> str:
    """Return which decoder layers a peer holds, as people read it; the last one is included."""
    if peer.stop_layer <= peer.first_layer:
        return "no layers"
    return layers_text(peer.first_layer, peer.stop_layer)


def missing_layers(status: control_pb2.GetStatusResponse) -> list[int]:
    """Return the decoder layers that no peer holds."""
    held = {layer for peer in status.peers for layer in range(peer.first_layer, min(peer.stop_layer, 1 << 16))}
    return [layer for layer in range(status.num_layers) if layer not in held]


def perplexity(loss: float) -> float:
    """Return e^loss, infinity where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def render_status(status: control_pb2.GetStatusResponse) -> RenderableType:
    """Return the status as a rich renderable."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in _facts(status):
        facts.add_row(name, Text(shown(value)))
    parts: list[RenderableType] = [facts, Text(""), _peers(status)]
    if status.addresses:
        join = Text("\nInvite another machine:\n", style="dim")
        join.append(f"potluck join {shown(status.addresses[0], 300)}", style="bold")
        parts.append(join)
    return Group(*parts)


def _facts(status: control_pb2.GetStatusResponse) -> list[tuple[str, str]]:
    target = status.target_batch_tokens
    share = f"{min(100, 100 * status.tokens_towards_next // target)} % of the next round" if target else ""
    facts = [
        ("run", f"{status.run_name or status.base_model} ({status.fingerprint[:12]})"),
        ("state", f"{status.state}, paused by the operator" if status.is_paused else status.state),
        ("step", f"{status.version} of {status.max_steps}, {share}"),
        ("adapter", f"{status.adapter_hash[:16]}"),
        ("swarm", f"{human_peers(len(status.peers))}, {status.tokens_per_s:.0f} tokens/s"),
    ]
    if status.coordinator:
        facts.append(("coordinator", f"{status.coordinator}, {'there' if status.has_coordinator else 'not there'}"))
    if status.num_stages > 1:
        missing = missing_layers(status)
        held = f"nobody holds {len(missing)} of them, from {missing[0]} on" if missing else "all are held"
        facts.append(("layers", f"{status.num_layers} in {status.num_stages} stages, {held}"))
    if status.HasField("loss"):
        facts.append(("loss", f"{status.loss:.3f}"))
    if status.HasField("held_out_loss"):
        before = f" (base {status.held_out_loss_before:.3f})" if status.HasField("held_out_loss_before") else ""
        facts.append(("held-out loss", f"{status.held_out_loss:.3f}{before}"))
    if status.HasField("seconds_left"):
        facts.append(("time left", human_seconds(status.seconds_left)))
    given = status.given
    facts.append(
        (
            "this node gave",
            f"{given.tokens_committed} tokens in {given.rounds_committed} rounds, {human_bytes(given.bytes_sent)} sent",
        )
    )
    if given.hidden_bytes_sent or given.hidden_bytes_received:
        sent, received = human_bytes(given.hidden_bytes_sent), human_bytes(given.hidden_bytes_received)
        facts.append(("hidden states", f"{sent} sent, {received} received"))
    if given.rounds_dropped:
        facts.append(("dropped rounds", str(given.rounds_dropped)))
    return facts


def _peers(status: control_pb2.GetStatusResponse) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    is_cut = status.num_stages > 1
    columns = ["peer", "state", *(["layers"] if is_cut else []), "step", "adapter", "tokens/s", "loss", "tokens given"]
    for column in columns:
        is_text = column in {"peer", "state", "adapter", "layers"}
        table.add_column(column, justify="left" if is_text else "right")
    for peer in status.peers:
        name = Text(shown(f"{shown(peer.name, 64)} …{peer.peer_id[-6:]}"))
        if peer.is_me:
            name.append(" (this node)", style="green")
        loss = f"{peer.loss:.3f}" if peer.HasField("loss") else "–"
        table.add_row(
            name,
            Text(shown(peer.state, 32)),
            *([human_layers(peer)] if is_cut else []),
            str(peer.version),
            Text(shown(peer.adapter_hash, 8)),
            f"{peer.tokens_per_s:.0f}",
            loss,
            str(peer.tokens_given),
        )
    return table
