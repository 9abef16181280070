"""Days that are settled by the gateway cost what the exact meter says, whatever is learnt later."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from mlcloud.cluster.offers import Offer
from mlcloud.cost.ledger import Entry, ExecutionSpan, Ledger, NodeSpan, Placement, PriceChange
from mlcloud.cost.meter import cluster_cost, execution_cost, session_cost, to_usd
from mlcloud.gateway import billing as billing_module
from mlcloud.gateway import costs as costs_module
from mlcloud.gateway import db
from mlcloud.gateway.billing import Billing
from mlcloud.gateway.costs import CostReports
from mlcloud.store import Store

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def offer(price: str = "3.6", **changed: Any) -> Offer:
    facts: dict[str, Any] = {
        "cloud": "local",
        "region": "local",
        "zone": "local-a",
        "instance_type": "local.cpu2",
        "cpus": 2,
        "memory_bytes": 2**32,
        "accelerator": None,
        "accelerator_count": 0,
        "market": "spot",
        "usd_per_hour": Decimal(price),
        "simulated": True,
        "source": "test",
        "as_of": date(2026, 1, 1),
    }
    return Offer(**{**facts, **changed})


class Books:
    """A gateway's billing at a time that the test sets, and the same facts without settling."""

    def __init__(self, folder: str) -> None:
        self.engine = db.open_database(f"sqlite:///{folder}/gateway.db")
        self.now = START
        self.known: list[Entry] = []
        self.billing = Billing(self.engine, [])

    @contextmanager
    def clock(self) -> Iterator[Books]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(billing_module, "now", lambda: self.now)
            patch.setattr(costs_module, "now", lambda: self.now)
            yield self
        self.engine.dispose()

    def learn(self, entry: Entry) -> None:
        self.known.append(entry)
        if isinstance(entry, NodeSpan | PriceChange):
            self.billing._enter([entry])
        else:
            self.billing.add(entry)
        self.billing.mend()

    def settle(self) -> None:
        if self.billing.due():
            until = self.billing._until()
            self.billing.settled.settle(until, self.now)
            self.billing.take(until)

    def restart(self) -> None:
        self.billing = Billing(self.engine, [])

    @property
    def plain(self) -> Ledger:
        return Ledger(self.known)

    def report(self, by: str, *, store: Store | None = None, **options: Any) -> Any:
        reports = CostReports(self.billing, self.engine, store or Store("memory://costs"))
        return reports.report(by.split(","), **options)

    def check(self) -> None:
        """Everything that is asked is answered as by the exact meter."""
        plain = self.plain
        sessions = {e.session_id for e in self.known if isinstance(e, Placement | ExecutionSpan)}
        executions = {e.execution_id for e in self.known if isinstance(e, ExecutionSpan)}
        whole = cluster_cost(plain, self.now)
        assert self.billing._exact(None, None) == whole.exact
        for session in sessions:
            expected = session_cost(plain, session, self.now).exact
            assert self.billing._exact(session, None) == expected
        for execution in executions:
            expected_bill = execution_cost(plain, execution, self.now)
            assert self.billing.spent_by(execution) == expected_bill.usd
            bill = self.billing.execution(execution)
            assert (bill.exact, bill.exact_on_demand) == (
                expected_bill.exact,
                expected_bill.exact_on_demand,
            )
            assert (bill.seconds, bill.moves) == (expected_bill.seconds, expected_bill.moves)
        for by in ("session", "node", "day", "day,node,session,price"):
            report = self.report(by)
            assert report.usd == whole.usd
            assert report.on_demand_usd == whole.on_demand_usd
        rows = self.report("execution").rows
        found = {row.key["execution"]: row.usd for row in rows}
        costs = {each: execution_cost(plain, each, self.now).usd for each in executions}
        assert {k: v for k, v in found.items() if v} == {k: v for k, v in costs.items() if v}
        idle = sum(
            (c.usd for c in whole.charges if c.execution_id is None), Fraction(0)
        )
        assert self.report("day").idle_usd == to_usd(idle)
        midnight = self.now.replace(hour=0, minute=0, second=0, microsecond=0)
        today = cluster_cost(plain, self.now, since=midnight)
        assert self.billing.spent(since=midnight) == today.usd


# --- the same, whatever happened when -------------------------------------------------------------

hours = st.integers(min_value=0, max_value=24 * 5 * 4).map(lambda n: n / 4)
moments = st.tuples(hours, st.integers(0, 3)).map(lambda t: at(t[0]) + timedelta(microseconds=t[1]))
spans = st.tuples(moments, st.none() | moments)
prices = st.decimals(min_value="0.0001", max_value="98.3200", places=4)
shares = st.sampled_from([Decimal(1), Decimal("0.5"), Decimal("0.333333"), Decimal("0.000001")])
names = st.sampled_from("ab")

node_spans = st.builds(
    lambda name, price, span, on_demand: NodeSpan(name, offer(str(price)), *span, on_demand),
    names,
    prices,
    spans,
    st.none() | prices,
)
changes = st.builds(PriceChange, names, moments, prices)
placements = st.builds(
    lambda s, n, share, span, spot: Placement(s, n, share, *span, spot),
    names,
    names,
    shares,
    spans,
    st.booleans(),
)
executions = st.builds(
    lambda number, s, span, spot: ExecutionSpan(f"{s}{number}", s, *span, spot),
    st.integers(0, 2),
    names,
    spans,
    st.booleans(),
)
facts = st.one_of(node_spans, changes, placements, executions)
clock_moves = st.integers(min_value=-40, max_value=60).map(lambda n: timedelta(hours=n))
steps = st.lists(
    st.one_of(
        facts,
        facts,
        facts,
        clock_moves,
        st.sampled_from(["settle", "settle", "restart", "again"]),
    ),
    min_size=4,
    max_size=24,
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
@given(steps)
def test_settled_days_cost_what_the_meter_says(steps: list[Any]) -> None:
    """Facts in any order and of any time, clocks that jump, restarts, days that are settled."""
    with tempfile.TemporaryDirectory() as folder, Books(folder).clock() as books:
        for step in steps:
            if isinstance(step, timedelta):
                books.now += step
                books.billing.mend()
            elif step == "settle":
                books.settle()
            elif step == "restart":
                books.restart()
            elif step == "again":
                if books.known:
                    books.learn(books.known[-1])
            else:
                books.learn(step)
        books.billing.mend()
        books.check()
        books.now += timedelta(days=3)
        books.settle()
        books.restart()
        books.check()
