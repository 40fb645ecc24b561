"""How often is a checkpoint worth the time that it takes?"""

from __future__ import annotations

import math

HOURS_BETWEEN_FAILURES = 24.0  # of one machine; pessimistic, so that little is lost on a bad one


class Pace:
    """Tells when a checkpoint is due, from how long the ones before took.

    `minutes` fixes the interval; None sets it to sqrt(2 · save · M), the optimum of J. W. Young (1974, "A first order
    approximation to the optimum checkpoint interval") for M = 24 h / machines between failures, kept within 1 to 30
    minutes and at 50 times the save itself, so that saving never takes more than 2 % of the time.
    """

    def __init__(self, minutes: float | None, machines: int = 1):
        self._minutes, self._machines = minutes, machines
        self.slowest = 0.0  # seconds of the slowest save of this attempt

    def saved(self, seconds: float) -> None:
        """Note how long a save took."""
        self.slowest = max(self.slowest, seconds)

    @property
    def interval(self) -> float:
        """Seconds from one checkpoint to the next."""
        if self._minutes is not None:
            return 60 * self._minutes
        between = 3600 * HOURS_BETWEEN_FAILURES / self._machines
        return max(50 * self.slowest, min(max(math.sqrt(2 * self.slowest * between), 60.0), 1800.0))

    @property
    def margin(self) -> float:
        """Seconds before a job's end at which the last save must begin."""
        return 30.0 + 3 * self.slowest
