"""What each session cost, step by step: the figures of a chart, cheap enough to be asked for often.

    charges(since, until) of each step ──► steps whose bills cannot change: kept
                                      ╰──► the last minutes, whose ends may still be entered: anew
    days that are settled ──► their sums, evenly over their steps: no finer is kept of them

A step is an interval of the same length from the epoch on, so that all who ask share what is kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Protocol

from mlcloud.cost.ledger import Ledger
from mlcloud.cost.meter import charges, cluster_cost, to_usd
from mlcloud.cost_models import Spend, SpendOf
from mlcloud.errors import UsageError

#: A node's or a session's end is entered within so much of it.
SETTLED = timedelta(minutes=5)
MOST_STEPS = 400
DAY, MICROSECOND = timedelta(days=1), timedelta(microseconds=1)
KEPT = 2000  # steps, of all lengths

Step = dict[str | None, Fraction]


class Settled(Protocol):
    """Days of which the ledger has no entries any more (`billing`)."""

    @property
    def horizon(self) -> datetime | None:
        """When the first day begins that is not settled; None where none is."""

    def spent_on(self, day: datetime) -> Step:
        """What each session cost on the day that begins then; None: no session."""

    def spent_before(self, horizon: datetime) -> Fraction:
        """What all cost before the horizon."""


class Spending:
    """Of the ledger that `ledger` gives, and of what is `settled`."""

    def __init__(self, ledger: Callable[[], Ledger], settled: Settled | None = None) -> None:
        self._ledger = ledger
        self._settled = settled
        self._days: dict[tuple[datetime, datetime], Step] = {}  # by the horizon, then the day
        self._kept: OrderedDict[tuple[float, datetime], Step] = OrderedDict()
        self._before: tuple[datetime, datetime, Fraction] | None = None

    async def series(
        self, since: datetime, step_s: int, now: datetime, name: Callable[[str], str]
    ) -> Spend:
        """Dollars by session and step, from the step that `since` (UTC) lies in to now.

        `name` gives a session's name for its id. Raises `UsageError` for more than `MOST_STEPS`.
        """
        step = timedelta(seconds=step_s)
        begin = floor(since, step)
        count = max(1, -((begin - now) // step))
        if count > MOST_STEPS:
            raise UsageError(
                f"{count:,} steps of {step_s} s are too many for one answer (at most "
                f"{MOST_STEPS}): ask for longer ones, or for a later beginning"
            )
        steps = []
        for number in range(count):
            steps.append(self._step(begin + number * step, step, now))
            if number % 20 == 19:
                await asyncio.sleep(0)  # cells must not wait for a chart
        sessions = dict.fromkeys(key for each in steps for key in each)
        return Spend(
            begins_at=begin,
            step_s=step_s,
            of=[
                SpendOf(
                    session=None if key is None else name(key),
                    usd=[to_usd(each.get(key, Fraction(0))) for each in steps],
                )
                for key in sorted(sessions, key=lambda key: (key is None, key or ""))
            ],
            usd_before_today=to_usd(self._before_today(now)),
        )

    def _step(self, begin: datetime, step: timedelta, now: datetime) -> Step:
        key = (step.total_seconds(), begin)
        known = self._kept.get(key)
        if known is not None:
            self._kept.move_to_end(key)
            return known
        end = min(begin + step, now)
        found, live = self._of_settled(begin, end)
        if live < end:
            for charge in charges(self._ledger(), now, since=live, until=end):
                found[charge.session_id] = found.get(charge.session_id, Fraction(0)) + charge.usd
        if begin + step + SETTLED < now:
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _of_settled(self, begin: datetime, end: datetime) -> tuple[Step, datetime]:
        """What lies in settled days, and where the ledger's entries begin."""
        horizon = self._settled.horizon if self._settled is not None else None
        if self._settled is None or horizon is None or begin >= horizon:
            return {}, begin
        found: Step = {}
        at = begin
        while at < min(end, horizon):
            day = floor(at, DAY)
            until = min(end, horizon, day + DAY)
            known = self._days.get((horizon, day))
            if known is None:
                known = self._days[horizon, day] = self._settled.spent_on(day)
            for key, usd in known.items():
                part = Fraction((until - at) // MICROSECOND, DAY // MICROSECOND)
                found[key] = found.get(key, Fraction(0)) + usd * part
            at = until
        return found, min(max(begin, horizon), end)

    def _before_today(self, now: datetime) -> Fraction:
        """What was spent before this day (UTC) began; looked at again while that may change."""
        day = floor(now, timedelta(days=1))
        if self._before is None or self._before[0] != day or self._before[1] < day + SETTLED:
            horizon = self._settled.horizon if self._settled is not None else None
            spent = cluster_cost(self._ledger(), now, since=horizon, until=day).exact
            if self._settled is not None and horizon is not None:
                spent += self._settled.spent_before(horizon)
            self._before = (day, now, spent)
        return self._before[2]


def floor(time: datetime, step: timedelta) -> datetime:
    """The beginning of the step that `time` lies in."""
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return time - (time - epoch) % step
