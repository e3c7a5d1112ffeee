"""How long a step waits for somebody who has just fetched this node's state, and would be behind again at once.

Where a step takes a second, a newcomer that is not waited for fetches one state after the other: its announcement is
told once a second and looked at once a second.
"""

from __future__ import annotations

HOLD_S = 2.5
"""An announcement's way."""


class Newcomers:
    """Those who fetch, without their names: they hold up the steps for half of the time at most.

    What is trained meanwhile counts in the step that was held up.
    """

    def __init__(self) -> None:
        """Set up."""
        self._since_s = float("-inf")

    def expect(self, now_s: float) -> None:
        """Somebody fetches; unless steps are or were just held up, they are from now on."""
        if now_s - self._since_s >= 2 * HOLD_S:
            self._since_s = now_s

    def are_awaited(self, now_s: float) -> bool:
        """Return whether to take no step now."""
        return 0 <= now_s - self._since_s < HOLD_S
