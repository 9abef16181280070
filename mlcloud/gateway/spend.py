"""What each session cost, step by step: the figures of a chart, cheap enough to be asked for often.

    charges(since, until) of each step ──► steps whose bills are settled: kept
                                      ╰──► the last minutes, whose ends may still be entered: anew

A step is an interval of the same length from the epoch on, so that all who ask share what is kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from fractions import Fraction

from mlcloud.cost.ledger import Ledger
from mlcloud.cost.meter import charges, cluster_cost, to_usd
from mlcloud.errors import UsageError
from mlcloud.models import Spend, SpendOf

#: A node's or a session's end is entered within so much of it.
SETTLED = timedelta(minutes=5)
MOST_STEPS = 400
KEPT = 2000  # steps, of all lengths

Step = dict[str | None, Fraction]


class Spending:
    """Of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
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
        found: Step = {}
        for charge in charges(self._ledger, now, since=begin, until=min(begin + step, now)):
            found[charge.session_id] = found.get(charge.session_id, Fraction(0)) + charge.usd
        if begin + step + SETTLED < now:
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _before_today(self, now: datetime) -> Fraction:
        """What was spent before this day (UTC) began; looked at again while that may change."""
        day = floor(now, timedelta(days=1))
        if self._before is None or self._before[0] != day or self._before[1] < day + SETTLED:
            spent = cluster_cost(self._ledger, now, until=day).exact
            self._before = (day, now, spent)
        return self._before[2]


def floor(time: datetime, step: timedelta) -> datetime:
    """The beginning of the step that `time` lies in."""
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return time - (time - epoch) % step
