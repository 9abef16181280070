"""When to save: every n steps, every t seconds, or as often as pays.

`"auto"` is Young's interval, √(2·C·M): with a save costing C seconds and a preemption every M
seconds on average, it makes the time spent saving equal to the time expected to be lost (J. W.
Young 1974; J. T. Daly 2006 for the higher orders, which do not matter while C ≪ M). C is the last
save's measured time, so the first save comes after a second of running.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Literal

from mlcloud import errors, units

Every = int | float | str | timedelta

#: Saves of "auto" are at least this far apart, and the first one comes after it.
LEAST_S = 1.0


class Schedule:
    """Says whether a save is due. Times are seconds of one monotonic clock."""

    def __init__(self, every: Every, mean_time_to_preemption_s: float, now: float) -> None:
        self._steps: int | None = None
        self._seconds: float | Literal["auto"] = "auto"
        if isinstance(every, bool) or (isinstance(every, float) and not every.is_integer()):
            raise errors.UsageError(f"every={every!r}: a number of steps is a whole number")
        if isinstance(every, (int, float)):
            self._steps = int(every)
            if self._steps < 1:
                raise errors.UsageError(f"every={every!r}: at least 1 step")
        elif every != "auto":
            self._seconds = units.parse_duration(every).total_seconds()
            if self._seconds <= 0:
                raise errors.UsageError(f"every={every!r}: a positive duration")
        self._mean = max(mean_time_to_preemption_s, LEAST_S)
        self._last = now
        self.cost_s: float | None = None

    @property
    def interval_s(self) -> float | None:
        """Seconds between saves; None when they are counted in steps."""
        if self._steps is not None:
            return None
        if self._seconds != "auto":
            return self._seconds
        if self.cost_s is None:
            return LEAST_S
        return max(LEAST_S, math.sqrt(2 * self.cost_s * self._mean))

    def due(self, step: int, now: float) -> bool:
        """Whether to save after `step` steps."""
        if self._steps is not None:
            return step % self._steps == 0
        interval = self.interval_s
        return interval is not None and now - self._last >= interval

    def saved(self, seconds: float, now: float) -> None:
        """A save, or an attempt, ended now and took so long."""
        self.cost_s = seconds
        self._last = now
