"""What a budget says, and what follows from what was spent."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcloud.cost.budgets import Budget, Limit, dollars_or_time, look
from mlcloud.errors import UsageError

NOW = datetime(2026, 11, 30, 23, 59, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "usd", "period"),
    [
        ("5", "5", ""),
        (5, "5", ""),
        (0.25, "0.25", ""),
        ("$0.50", "0.50", ""),
        ("5/h", "5", "hour"),
        ("50/day", "50", "day"),
        ("50 per day", "50", "day"),
        ("1,000/month", "1000", "month"),
        (".5/d", "0.5", "day"),
    ],
)
def test_limits(text: object, usd: str, period: str) -> None:
    assert Limit.parse(text) == Limit(Decimal(usd), period)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read"),
        ("five", "cannot read"),
        ("-5", "cannot read"),
        (True, "cannot read"),
        ("0", "lets nothing run"),
        ("5/dya", "did you mean 'day'"),
        ("5/year", "unknown period"),
        ("nan", "cannot read"),
        ("1e3", "cannot read"),
    ],
)
def test_what_is_no_limit(text: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Limit.parse(text)


def test_periods_are_utc() -> None:
    assert Limit.parse("5").starts(NOW) is None
    assert Limit.parse("5/h").starts(NOW) == NOW.replace(minute=0, second=0)
    assert Limit.parse("5/day").ends(NOW) == datetime(2026, 12, 1, tzinfo=timezone.utc)
    assert Limit.parse("5/month").starts(NOW) == datetime(2026, 11, 1, tzinfo=timezone.utc)
    december = NOW + timedelta(days=5)
    assert Limit.parse("5/month").ends(december) == datetime(2027, 1, 1, tzinfo=timezone.utc)
    # In Kolkata it is the next day already; the day of a budget is UTC's.
    india = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert Limit.parse("5/day").starts(india) == NOW.replace(hour=0, minute=0, second=0)


def test_alerts() -> None:
    assert Budget("10", alerts=(0.9, 0.5)).alerts == (0.5, 0.9)
    with pytest.raises(UsageError, match="between 0 and 1, not 80"):
        Budget("10", alerts=(80,))
    seen = look(Limit(Decimal(10)), (0.5, 0.9), Decimal("5"), Decimal(0), 4)
    assert (seen.passed, seen.stop) == ((0.5,), False)


@given(
    limit=st.decimals("0.01", "1000", places=4),
    rate=st.decimals("0.0001", "500", places=4),
    stop_s=st.floats(0.5, 60),
    interval=st.floats(0.1, 10),
)
def test_what_is_spent_until_all_has_stopped_stays_within(
    limit: Decimal, rate: Decimal, stop_s: float, interval: float
) -> None:
    """Looked at every `interval` seconds, and stopped within the reserve's time: the limit holds,
    unless it is spent within the first interval."""
    a_second = rate / 3600
    at = 0.0
    while not look(Limit(limit), (), a_second * Decimal(at), rate, stop_s + interval).stop:
        at += max(interval, float(limit / a_second) / 200)
        if at > float(limit / a_second) * 2:
            raise AssertionError("it never stops")
    late = max(interval, float(limit / a_second) / 200)
    spent = a_second * Decimal(at + stop_s)
    assert spent <= limit + a_second * Decimal(late + stop_s)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (1e-6, (Decimal("0.000001"), None)),
        (2.5, (Decimal("2.5"), None)),
        ("2.5", (Decimal("2.5"), None)),
        ("$2.5", (Decimal("2.5"), None)),
        ("10m", (None, "10m")),
        ("1h30m", (None, "1h30m")),
    ],
)
def test_dollars_or_time(given: str | float, found: tuple[Decimal | None, str | None]) -> None:
    assert dollars_or_time(given) == found


@pytest.mark.parametrize("wrong", [-1, 0, "$0", "soon", "5/h", "", "-5m"])
def test_neither_dollars_nor_time(wrong: str | float) -> None:
    with pytest.raises(UsageError):
        dollars_or_time(wrong)
