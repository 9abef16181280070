"""Budgets: how much may be spent, by whom, in which time; and what follows from what was spent.

    "5"  "5/h"  "50/day"  "1000/month"          a limit in dollars, once or in each period (UTC)
                  │
    spent so far, dollars an hour now, seconds that stopping takes
                  │
                  ├─ a chosen part is spent          ──► alert, once a period
                  ├─ spent + what stopping costs ≥ limit ──► stop: checkpoint, park, refuse
                  │    (its seconds, and what clouds bill at least of nodes just started)
                  └─ else                             ──► go on

What is promised is the compute that mlcloud launched, at the prices it knows: the stop comes early
enough for the last second to be paid for. Storage, egress and tax are not in it. Pure: the time is
passed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from mlcloud.errors import UsageError
from mlcloud.units import format_usd, parse_duration, suggest

Period = Literal["", "hour", "day", "week", "month"]
ALERTS = (0.5, 0.8, 0.95)
_NOTHING = Decimal(0)

_PERIODS: dict[str, Period] = {
    "h": "hour",
    "hour": "hour",
    "d": "day",
    "day": "day",
    "w": "week",
    "week": "week",
    "month": "month",
    "mo": "month",
}
_SHAPE = re.compile(
    r"\$?\s*(?P<usd>[0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)\s*(?:(?:/|per )\s*(?P<per>\w+))?"
)


@dataclass(frozen=True)
class Limit:
    """So many dollars, in all (`period` empty) or in each period."""

    usd: Decimal
    period: Period = ""

    @classmethod
    def parse(cls, text: object) -> Limit:
        """`"5"`, `"$5"`, `"5/h"`, `"50/day"`, `"1000/month"`; numbers are dollars in all.

        Raises `UsageError`.
        """
        accepted = "a budget is dollars, in all or in a period: '5', '5/h', '50/day', '1000/month'"
        match = _SHAPE.fullmatch(str(text).strip())
        if match is None or isinstance(text, bool):
            raise UsageError(f"cannot read {text!r} as a budget: {accepted}")
        try:
            usd = Decimal(match["usd"].replace(",", "").replace("_", ""))
        except InvalidOperation:
            raise UsageError(f"cannot read {text!r} as a budget: {accepted}") from None
        if usd <= 0:
            raise UsageError(f"a budget of {text} lets nothing run; {accepted}")
        per = match["per"]
        if per is not None and per.lower() not in _PERIODS:
            hint = suggest(per, ["h", "hour", "day", "month"])
            raise UsageError(f"unknown period {per!r} in {text!r}: {accepted}{hint}")
        return cls(usd, _PERIODS[per.lower()] if per else "")

    def starts(self, now: datetime) -> datetime | None:
        """When the present period began; None where there is only one."""
        if not self.period:
            return None
        at = now.astimezone(timezone.utc).replace(minute=0, second=0, microsecond=0)
        if self.period == "hour":
            return at
        at = at.replace(hour=0)
        if self.period == "week":  # ISO's, from Monday
            return at - timedelta(days=at.weekday())
        return at if self.period == "day" else at.replace(day=1)

    def ends(self, now: datetime) -> datetime | None:
        """When the next period begins."""
        start = self.starts(now)
        if start is None:
            return None
        if self.period == "month":
            return (start + timedelta(days=32)).replace(day=1)
        lasts = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
        return start + lasts[self.period]

    def __str__(self) -> str:
        return f"{format_usd(self.usd)}{' a ' + self.period if self.period else ''}".replace(
            "a hour", "an hour"
        )


class Budget:
    """A limit and whom it is for: `Budget("50/day")` the cluster, `Budget("5", session="exp")`,
    `Budget("20/day", user="ada")` all sessions that `ada` made, `Budget("5", job="j-1")` a job.

    `limit` is dollars, in all or in each hour, day or month (UTC); a job's is in all. At the
    fractions `alerts` of it whoever watches is told; at the limit, less what stopping costs, what
    runs is checkpointed and parked, and new work is refused with `BudgetExceeded`. `apply()` puts
    it into force, as does giving it to a cluster or a session. Raises `UsageError`.
    """

    def __init__(
        self,
        limit: str | float | Decimal,
        *,
        session: str | None = None,
        user: str | None = None,
        job: str | None = None,
        alerts: tuple[float, ...] = ALERTS,
    ) -> None:
        self.limit = Limit.parse(limit)
        self.session, self.user, self.job = session, user, job
        check_scope(self.limit, session, user, job)
        wrong = [each for each in alerts if not 0 < each < 1]
        if wrong:
            raise UsageError(f"an alert is a part of the limit between 0 and 1, not {wrong[0]}")
        self.alerts = tuple(sorted(alerts))

    def __repr__(self) -> str:
        return f"<Budget {self.limit} for the {whose(self.session, self.user, self.job)}>"

    @property
    def text(self) -> str:
        """The limit as it is written."""
        return f"{self.limit.usd:f}" + (f"/{self.limit.period}" if self.limit.period else "")

    def apply(self) -> Any:
        """Put it into force at the gateway in use. Raises `NotFound` for an unknown session."""
        from importlib import import_module

        # The notebook's side, which this room does not know.
        return import_module("mlcloud.client.api").default().set_budget(self)


def check_scope(
    limit: Limit | None, session: str | None, user: str | None, job: str | None
) -> None:
    """Raises `UsageError` unless that is one scope, and one that may have this limit."""
    given = [each for each in (session, user, job) if each is not None]
    if len(given) > 1:
        raise UsageError("a budget is of one session, one user or one job: give one of them")
    if given and not given[0].strip():
        raise UsageError("a budget is of somebody: an empty name is nobody's")
    if job is not None and limit is not None and limit.period:
        raise UsageError(f"a job's budget is for all of it, in dollars: '5', not '{limit}'")


def whose(session: str | None, user: str | None = None, job: str | None = None) -> str:
    """In words: `session exp`, `user ada`, `job j-1`, `cluster`."""
    known = {"session": session, "user": user, "job": job}
    return next((f"{kind} {name}" for kind, name in known.items() if name), "cluster")


@dataclass(frozen=True)
class Look:
    """What was found when a budget was looked at. `stop`: no more may be spent."""

    spent: Decimal
    reserve: Decimal
    stop: bool
    passed: tuple[float, ...]  # the alerts whose part of the limit is spent


def look(
    limit: Limit,
    alerts: tuple[float, ...],
    spent: Decimal,
    usd_per_hour: Decimal,
    stop_s: float,
    owed: Decimal = _NOTHING,
) -> Look:
    """`stop_s` is how long stopping takes, with the time to the next look; `owed` what is billed
    after that all the same (`least.py`)."""
    reserve = usd_per_hour * Decimal(str(stop_s)) / 3600 + owed
    passed = tuple(each for each in alerts if spent >= limit.usd * Decimal(str(each)))
    return Look(spent, reserve, spent + reserve >= limit.usd, passed)


def dollars(limit: str | float | Decimal) -> Decimal:
    """`5`, `"5"` or `"$5"`. Raises `UsageError`, also for dollars in a period."""
    number = isinstance(limit, (int, float, Decimal)) and not isinstance(limit, bool)
    found = Limit.parse(f"{Decimal(str(limit)):f}" if number else limit)  # not 1e-06
    if found.period:
        raise UsageError(f"this limit is of dollars in all: 5, not {limit}")
    return found.usd


def dollars_or_time(budget: str | float | Decimal) -> tuple[Decimal | None, str | None]:
    """Dollars (`2.5`, `"$2.5"`), or a duration (`"10m"`). Raises `UsageError`."""
    try:
        return dollars(budget), None
    except UsageError:
        if isinstance(budget, str) and "$" not in budget:
            parse_duration(budget)
            return None, budget
    raise UsageError(f"a budget is dollars (2.5) or a duration ('10m'); {budget} buys nothing")
