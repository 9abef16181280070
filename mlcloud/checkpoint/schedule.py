"""When to save: every n steps, every t seconds, or as often as pays.

`"auto"` is Young's interval, √(2·C·M): with a save costing C seconds and a preemption every M
seconds on average, it makes the time spent saving equal to the time expected to be lost (J. W.
Young 1974; J. T. Daly 2006 for the higher orders, which do not matter while C ≪ M). C is what the
last save cost the loop: how long it stood still, and by how much its items took longer while the
state was written beside them. The first save comes after a second of running, and none before the
one before it is committed.
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
        self._quiet_s: float | None = None  # an item, while nothing is written
        self._beside, self._beside_s = 0, 0.0  # items while it is, and their time
        self.cost_s: float | None = None
        self.takes_s: float | None = None

    @property
    def interval_s(self) -> float | None:
        """Seconds between saves; None when they are counted in steps."""
        if self._steps is not None:
            return None
        if self._seconds != "auto":
            return self._seconds
        if self.cost_s is None:
            return LEAST_S
        return max(LEAST_S, math.sqrt(2 * self.cost_s * self._mean), self.takes_s or 0.0)

    def due(self, step: int, now: float) -> bool:
        """Whether to save after `step` steps."""
        if self._steps is not None:
            return step % self._steps == 0
        interval = self.interval_s
        return interval is not None and now - self._last >= interval

    def ran(self, seconds: float, items: int = 1, *, beside: bool) -> None:
        """So many items took so long together; `beside`: while a state was written."""
        if beside:
            self._beside, self._beside_s = self._beside + items, self._beside_s + seconds
        elif self._quiet_s is None:
            self._quiet_s = seconds / items
        else:
            self._quiet_s += (seconds / items - self._quiet_s) / 8

    def began(self, now: float) -> None:
        """A save has begun."""
        self._last = now
        self._beside, self._beside_s = 0, 0.0

    def saved(self, stall_s: float, takes_s: float) -> None:
        """A save, or an attempt, has ended: the loop stood still for so long of what it took.

        The next is due an interval after the loop went on.
        """
        self._last += stall_s
        slower = 0.0
        if self._quiet_s is not None:
            slower = max(0.0, self._beside_s - self._beside * self._quiet_s)
        self.cost_s = stall_s + slower
        self.takes_s = takes_s
