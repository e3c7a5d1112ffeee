"""What the run's operator and the coordinator say to what trains: written in one place, read wherever it counts.

All of it is optional. Nothing here can make a node take a step that it would not take by itself, a moment later.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Orders:
    """The latest word; a node without a coordinator keeps the one it begins with."""

    is_paused: bool = False
    """The operator lets the run rest: no microbatch is begun and no round called."""
    is_finished: bool = False
    """The operator has ended the run: what there is is the result."""
    due: tuple[int, str] | None = None
    """Version and hash of the lineage at which the coordinator says that a round is due."""

    def stand_down(self) -> None:
        """Nobody is there to give orders: go on training; what is finished stays finished."""
        self.is_paused, self.due = False, None
