"""Weights & Biases: figures go to its servers, or with WANDB_MODE=offline to this disk.

Its library would also send this machine's name, the command line (and with it the names of data files), the state of
the git repository, the list of packages and what is printed. All of that is switched off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from node.core.errors import ConfigError
from node.observe.trackers import Subject

_PROJECT = "potluck"


class WeightsAndBiases:
    """One W&B run for each life of the node, in a group for each run of Potluck."""

    def __init__(self, subject: Subject) -> None:
        """Begin a W&B run in the project of WANDB_PROJECT, `potluck` if unset.

        Raises:
            wandb.Error: it cannot begin.
        """
        subject.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            group=subject.run,
            name=subject.name,
            config=dict(subject.config),
            dir=subject.folder,
            settings=wandb.Settings(
                console="off",
                host="",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        # a node may go back to an earlier step, which W&B's own counter refuses
        self._run.define_metric("train/global_step")
        self._run.define_metric("*", step_metric="train/global_step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Put points on curves."""
        self._run.log({"train/global_step": step, **figures})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def refuse_without_login() -> None:
    """Say before the training what would otherwise fail in it.

    Raises:
        ConfigError: figures would go to W&B's servers, and there is no key for them.
    """
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise ConfigError(
            "--track wandb: this machine is not logged in to Weights & Biases.",
            hint="Run `wandb login` or set WANDB_API_KEY; or keep the figures here with WANDB_MODE=offline.",
        )
