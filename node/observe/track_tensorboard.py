"""TensorBoard: event files on this disk."""

from __future__ import annotations

from collections.abc import Mapping

from tensorboard.summary import Writer

from node.observe.trackers import Subject


class TensorBoard:
    """A folder of event files for each life of the node; `tensorboard --logdir` of the folder above shows all."""

    def __init__(self, subject: Subject) -> None:
        """Make the folder.

        Raises:
            OSError: it cannot be written.
        """
        self._writer = Writer(str(subject.folder / subject.run / subject.name))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Put points on curves."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that it is seen while it runs, and kept if the node is killed

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
