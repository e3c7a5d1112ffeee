"""`potluck coordinator runs|pause|resume|evict|finish`: the operator's verbs."""

from __future__ import annotations

from typing import Any

import click

from coordinator.cli import command, operator_verb

__all__ = ["command"]
_CALL_S = 5.0
_run_argument = click.argument("run", default="")


async def _call(channel: Any, metadata: Any, service: str, method: str, request: Any, reply: Any) -> Any:
    call = channel.unary_unary(
        f"/coordinator.v1.{service}/{method}",
        request_serializer=lambda sent: sent.SerializeToString(),
        response_deserializer=reply.FromString,
    )
    return await call(request, metadata=metadata, timeout=_CALL_S)


@operator_verb("runs")
async def runs(channel: Any, metadata: Any) -> None:
    """List the runs: state, step and peers of each."""
    from coordinator.v1 import coordinator_pb2 as pb

    reply = await _call(channel, metadata, "Coordinator", "ListRuns", pb.ListRunsRequest(), pb.ListRunsResponse)
    if not reply.runs:
        click.echo("No run yet: start one with `potluck start RECIPE --coordinator ADDRESS`.")
    for run in reply.runs:
        state = pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower().replace("_", " ")
        name = run.name or run.base_model
        peers = "1 peer" if run.num_peers == 1 else f"{run.num_peers} peers"
        click.echo(f"{run.fingerprint[:12]}  {state:<10}  step {run.version} of {run.max_steps}  {peers}  {name}")


@operator_verb("pause")
@_run_argument
async def pause(channel: Any, metadata: Any, run: str) -> None:
    """Let RUN rest: its nodes begin no microbatch and call no round until `resume`.

    RUN is the beginning of its fingerprint, as `runs` shows it; without it, the only one. A node that loses the
    coordinator goes on training.
    """
    from coordinator.v1 import coordinator_pb2 as pb

    await _call(channel, metadata, "Operator", "Pause", pb.PauseRequest(fingerprint=run), pb.PauseResponse)
    click.echo("Paused.")


@operator_verb("resume")
@_run_argument
async def resume(channel: Any, metadata: Any, run: str) -> None:
    """Let RUN go on."""
    from coordinator.v1 import coordinator_pb2 as pb

    await _call(channel, metadata, "Operator", "Resume", pb.ResumeRequest(fingerprint=run), pb.ResumeResponse)
    click.echo("It goes on.")


@operator_verb("finish")
@_run_argument
async def finish(channel: Any, metadata: Any, run: str) -> None:
    """End RUN for good: its nodes save what there is, score it and stop."""
    from coordinator.v1 import coordinator_pb2 as pb

    await _call(channel, metadata, "Operator", "Finish", pb.FinishRequest(fingerprint=run), pb.FinishResponse)
    click.echo("Finished.")


@operator_verb("evict")
@click.argument("peer")
@_run_argument
async def evict(channel: Any, metadata: Any, peer: str, run: str) -> None:
    """Take PEER out of RUN for good.

    PEER is a peer id, or its end. Nodes with this coordinator leave it out; one without goes by the DHT alone.
    """
    from coordinator.v1 import coordinator_pb2 as pb

    request = pb.EvictRequest(fingerprint=run, peer_id=peer)
    await _call(channel, metadata, "Operator", "Evict", request, pb.EvictResponse)
    click.echo("Evicted.")
