"""trackio: a database on this disk, or a Hugging Face Space if the owner's environment names one."""

from __future__ import annotations

import os
from collections.abc import Mapping

import trackio

from node.observe.trackers import Subject

_PROJECT = "potluck"


class Trackio:
    """One trackio run for each life of the node, in a group for each run of Potluck."""

    def __init__(self, subject: Subject) -> None:
        """Begin a trackio run in the project of TRACKIO_PROJECT, `potluck` if unset."""
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or _PROJECT,
            name=subject.name,
            group=subject.run,
            config=dict(subject.config),
            private=True,  # a Space that it makes would be public
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Put points on curves."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()
