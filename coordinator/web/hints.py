"""What the page's owner can do next, decided from what the page shows. Pure."""

from __future__ import annotations

from coordinator.web.snapshot import Hint, RunView

_RISING_POINTS = 3
_RISING_SHARE = 0.005
_DROPPED_ROUNDS = 3


def hints(run: RunView) -> tuple[Hint, ...]:
    """Return the advice for a run, the most pressing first."""
    if run.max_steps and run.version >= run.max_steps:
        return (_finished(run),)
    urgent = [hint for hint in (_missing(run), _rising(run), _dropped(run)) if hint is not None]
    invitation = _invite(run, is_well=not urgent)
    return (*urgent, invitation) if invitation is not None else tuple(urgent)


def with_hints(run: RunView) -> RunView:
    """Return the run with its advice."""
    return run.model_copy(update={"hints": hints(run)})


def missing_stages(run: RunView) -> list[int]:
    """Return the stages that no peer holds that is here."""
    held = {
        stage
        for peer in run.peers
        if peer.mark != "left"
        for stage in range(peer.first_stage, min(peer.stop_stage, run.num_stages))
    }
    return [stage for stage in range(run.num_stages) if stage not in held]


def is_rising(losses: list[float]) -> bool:
    """Whether a held-out loss has stayed above its minimum for the last points, by more than noise."""
    if len(losses) <= _RISING_POINTS:
        return False
    best = min(losses[:-_RISING_POINTS])
    return all(loss > best * (1 + _RISING_SHARE) for loss in losses[-_RISING_POINTS:])


def _finished(run: RunView) -> Hint:
    return Hint(
        kind="finished",
        title="The run is finished",
        text=f"All {run.max_steps} steps are made. Export the adapter to use it.",
        command=run.commands.export,
    )


def _missing(run: RunView) -> Hint | None:
    missing = missing_stages(run)
    if run.num_stages <= 1 or not missing or not run.peers:
        return None
    named = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    what = f"Stage {named} has no holder" if len(missing) == 1 else f"Stages {named} have no holder"
    return Hint(
        kind="missing",
        title=what,
        text="Training waits, and goes on by itself as soon as a machine brings these layers.",
        command=f"{run.commands.join} --lend" if run.commands.join else "",
        shows_code=bool(run.commands.join),
    )


def _rising(run: RunView) -> Hint | None:
    if not is_rising([loss for _, loss in run.held_out]):
        return None
    best_step, best = min(run.held_out, key=lambda point: point[1])
    return Hint(
        kind="rising",
        title="The held-out loss rises",
        text=f"It was lowest at step {best_step} ({best:.3f}): the adapter begins to learn the data by heart. "
        "Stop, export what there is, or start anew with fewer steps or a lower learning rate.",
        command=run.commands.stop,
    )


def _dropped(run: RunView) -> Hint | None:
    latest = run.rounds[-_DROPPED_ROUNDS:]
    if len(latest) < _DROPPED_ROUNDS or any(round.status != "dropped" for round in latest):
        return None
    return Hint(
        kind="dropped",
        title=f"The last {_DROPPED_ROUNDS} rounds were dropped",
        text=f"Nothing is lost, but no step is made. The latest reason: {latest[-1].reason or 'none given'}",
    )


def _invite(run: RunView, *, is_well: bool) -> Hint | None:
    if not run.commands.join:
        return None
    here = [peer for peer in run.peers if peer.mark != "left"]
    if len(here) <= 1:
        return Hint(
            kind="alone",
            title="Nobody is here" if not here else "This node trains alone" if here[0].is_me else "One node is alone",
            text="Run this on another machine to bring it in. It needs no base model, only data of its own: "
            "add --data FILE, or --lend to lend only its memory.",
            command=run.commands.join,
            shows_code=True,
        )
    return Hint(
        kind="invite",
        title="All is well" if is_well else "Bring in another machine",
        text="Nothing needs you. One more machine joins with this line:" if is_well else "It joins with this line:",
        command=run.commands.join,
        shows_code=True,
    )
