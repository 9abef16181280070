"""Spend over time: each step's dollars are the meter's, and what is settled is worked out once."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest

from mlcloud.cluster.offers import Offer
from mlcloud.cost import meter
from mlcloud.cost.ledger import ExecutionSpan, Ledger, NodeSpan, Placement
from mlcloud.cost_models import Spend
from mlcloud.errors import UsageError
from mlcloud.gateway import spend as module
from mlcloud.gateway.spend import Spending, floor

NOON = datetime(2026, 3, 5, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
OFFER = Offer(
    cloud="local",
    region="local",
    zone="local-a",
    instance_type="local.cpu2",
    cpus=2,
    memory_bytes=2**32,
    accelerator=None,
    accelerator_count=0,
    market="spot",
    usd_per_hour=Decimal("0.6"),  # a cent a minute
    simulated=True,
    source="test",
    as_of=NOON.date(),
)


def ledger() -> Ledger:
    """A node from 12:00 on; `a` has half of it from 12:02 to 12:05, `b` all of it from 12:10."""
    half = Decimal("0.5")
    return Ledger(
        [
            NodeSpan("n", OFFER, NOON),
            Placement("a", "n", half, NOON + 2 * MINUTE, NOON + 5 * MINUTE),
            Placement("b", "n", Decimal(1), NOON + 10 * MINUTE),
            ExecutionSpan("x", "b", NOON + 11 * MINUTE),
        ]
    )


def series(spending: Spending, since: datetime, step_s: int, now: datetime) -> Spend:
    return asyncio.run(spending.series(since, step_s, now, str.upper))


def by(found: Spend) -> dict[str | None, list[Decimal]]:
    return {each.session: each.usd for each in found.of}


def test_dollars_by_session_and_step() -> None:
    found = series(Spending(ledger), NOON, 60, NOON + 12 * MINUTE + timedelta(seconds=30))
    cents = {name: [each * 100 for each in usd] for name, usd in by(found).items()}
    assert cents["A"] == [0, 0, half, half, half, *[0] * 8]
    assert cents["B"] == [*[0] * 10, 1, 1, half]
    assert cents[None] == [1, 1, half, half, half, 1, 1, 1, 1, 1, 0, 0, 0]


half = Decimal("0.5")


def test_the_sum_is_the_bill() -> None:
    now = NOON + timedelta(hours=5, seconds=17.123457)
    for step_s in (60, 900, 7200):
        found = series(Spending(ledger), NOON, step_s, now)
        total = sum(sum(usd) for usd in by(found).values())
        bill = meter.cluster_cost(ledger(), now).usd
        assert abs(total - bill) < Decimal("1E-6"), step_s


def test_settled_steps_are_kept_and_late_facts_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def charges(*args: object, since: datetime, **options: object) -> object:
        asked.append(since)
        return meter.charges(*args, since=since, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "charges", charges)
    book = ledger()
    spending = Spending(lambda: book)
    now = NOON + 60 * MINUTE
    series(spending, NOON, 60, now)
    assert len(asked) == 60
    asked.clear()
    # The node ended two minutes ago, which is known only now.
    book.append(NodeSpan("n", OFFER, NOON, now - 2 * MINUTE))
    found = series(spending, NOON, 60, now)
    assert len(asked) <= 7
    assert by(found)["B"][-3:] == [Decimal("0.01"), 0, 0]


def test_what_was_before_today() -> None:
    book = Ledger([NodeSpan("n", OFFER, NOON - timedelta(days=1))])
    spending = Spending(lambda: book)
    assert series(spending, NOON, 60, NOON).usd_before_today == Decimal("7.2")
    later = NOON + timedelta(days=1)
    assert series(spending, later, 60, later).usd_before_today == Decimal("21.6")


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="ask for longer ones"):
        series(Spending(ledger), NOON, 10, NOON + timedelta(days=1))


def test_floor_is_at_whole_steps() -> None:
    assert floor(NOON + timedelta(seconds=61), MINUTE) == NOON + MINUTE


class Settled:
    """Two sessions' day before the horizon, of which no entries are left."""

    horizon = NOON.replace(hour=0)

    def spent_on(self, day: datetime) -> dict[str | None, Fraction]:
        assert day == self.horizon - timedelta(days=1)
        return {"a": Fraction(24), None: Fraction(12)}

    def spent_before(self, horizon: datetime) -> Fraction:
        return Fraction(36)


def test_days_that_are_settled_are_spread_over_their_steps() -> None:
    spending = Spending(Ledger, Settled())
    hour = 3600
    found = series(spending, Settled.horizon - timedelta(hours=3), hour, Settled.horizon + MINUTE)
    spent = {each: [float(usd) for usd in steps] for each, steps in by(found).items()}
    assert spent == {"A": [1.0, 1.0, 1.0, 0.0], None: [0.5, 0.5, 0.5, 0.0]}
    assert found.usd_before_today == 36
