"""Days that are settled by the gateway cost what the exact meter says, whatever is learnt later."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
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
from mlcloud.errors import UsageError
from mlcloud.gateway import billing as billing_module
from mlcloud.gateway import costs as costs_module
from mlcloud.gateway import db, entries
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
            if bill.exact:  # of what nobody paid for nothing is kept
                assert (bill.seconds, bill.moves) == (expected_bill.seconds, expected_bill.moves)
        for by in ("session", "node", "day", "day,node,session,price"):
            report = self.report(by)
            assert report.usd == whole.usd
            assert report.on_demand_usd == whole.on_demand_usd
        rows = self.report("execution").rows
        found = {row.key["execution"]: row.usd for row in rows}
        costs = {each: execution_cost(plain, each, self.now).usd for each in executions}
        assert {k: v for k, v in found.items() if v} == {k: v for k, v in costs.items() if v}
        idle = sum((c.usd for c in whole.charges if c.execution_id is None), Fraction(0))
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


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
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


# --- what one would meet --------------------------------------------------------------------------


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    with Books(str(tmp_path)).clock() as made:
        yield made


def busy_days(books: Books, days: int = 4) -> None:
    """A node all the time; a session on it by day, with a cell in each hour."""
    books.learn(NodeSpan("n", offer(), at(0), None, Decimal("7.2")))
    for day in range(days):
        books.now = at(24 * day + 9)
        books.learn(Placement("s", "n", Decimal("0.5"), books.now))
        for hour in range(3):
            start = at(24 * day + 9 + hour)
            books.learn(ExecutionSpan(f"x-{day}-{hour}", "s", start))
            books.now = start + timedelta(minutes=30)
            books.learn(ExecutionSpan(f"x-{day}-{hour}", "s", start, books.now))
        books.now = at(24 * day + 18)
        books.learn(Placement("s", "n", Decimal("0.5"), at(24 * day + 9), books.now))


def test_of_days_that_are_over_the_gateway_reads_nothing_back(books: Books) -> None:
    busy_days(books)
    books.settle()
    assert books.billing.settled.horizon == at(72)
    books.restart()
    assert not books.billing.ledger.executions_of("s")[:-3]
    assert len(books.billing.ledger.entries) < 12
    books.check()
    days = books.report("day").rows
    assert [row.key["day"] for row in days] == [f"2026-01-0{n}" for n in (1, 2, 3, 4)]
    assert [row.usd for row in days][:3] == [Decimal("86.4")] * 3


def test_an_end_that_becomes_known_days_later_changes_the_days_it_was_in(books: Books) -> None:
    busy_days(books)
    books.settle()
    books.learn(NodeSpan("n", offer(), at(0), at(30), Decimal("7.2")))
    books.check()
    assert books.billing.spent() == Decimal("108")
    assert books.billing.settled.horizon == at(24)
    books.settle()
    books.restart()
    books.check()


def test_prices_that_move_are_in_the_sums_of_their_days(books: Books) -> None:
    books.learn(NodeSpan("n", offer("1"), at(0)))
    books.now = at(12)
    books.billing.price("n", Decimal(3))
    books.known.append(PriceChange("n", at(12), Decimal(3)))
    assert books.billing.per_hour() == 3
    books.now = at(40)
    books.settle()
    books.restart()
    assert books.billing.per_hour() == 3
    books.check()
    by_price = {row.key["price"]: row.usd for row in books.report("price").rows}
    assert by_price == {"1": Decimal(12), "3": Decimal(84)}


def test_costs_by_user_and_by_tag(books: Books) -> None:
    requests = {
        "s": '{"name": "exp", "owner": "ann", "tags": {"team": "nlp"}}',
        "t": '{"name": "other", "owner": "bob"}',
    }
    with books.engine.begin() as connection:
        for key, text in requests.items():
            row = {"id": key, "name": f"{key}-name#{key}", "state": "closed", "request": text}
            connection.execute(insert(db.sessions).values(**row, created_at=START))
    books.learn(NodeSpan("n", offer(), at(0)))
    books.learn(Placement("s", "n", Decimal("0.5"), at(0)))
    books.learn(Placement("t", "n", Decimal("0.25"), at(0)))
    books.now = at(60)
    books.settle()
    found = {by: {row.key[by]: row.usd for row in books.report(by).rows} for by in (
        "session", "user", "tag:team", "market"
    )}  # fmt: skip
    assert found["session"] == {
        "s-name": Decimal(108),
        "t-name": Decimal(54),
        "(no session)": Decimal(54),
    }
    assert found["user"] == {"ann": Decimal(108), "bob": Decimal(54), "(unknown)": Decimal(54)}
    assert found["tag:team"] == {"nlp": Decimal(108), "(unknown)": Decimal(108)}
    assert found["market"] == {"spot": Decimal(216)}
    assert books.report("session").tags == {"s-name": {"team": "nlp"}}


def test_pages_are_of_one_moment_and_together_everything(books: Books) -> None:
    busy_days(books, days=5)
    books.settle()
    for by in ("execution", "day,session"):
        page = books.report(by, limit=2)
        until, rows = page.until, list(page.rows)
        while page.next is not None:
            books.now += timedelta(minutes=5)
            page = books.report(by, limit=2, after=page.next, until=until)
            assert page.until == until
            rows += page.rows
        whole = books.report(by, until=until).rows
        assert [row.key for row in rows] == [row.key for row in whole]
        assert [row.usd for row in rows] == [row.usd for row in whole]
    with pytest.raises(UsageError, match="did you mean 'session'"):
        books.report("sesion")
    with pytest.raises(UsageError, match="no page"):
        books.report("day", after="x")


async def test_what_is_learnt_while_a_day_is_settled_is_not_lost(books: Books) -> None:
    busy_days(books)
    settle = books.billing.settled.settle
    late = ExecutionSpan("late", "s", at(33), at(33.5))

    def meanwhile(until: int, now: datetime) -> None:
        settle(until, now)
        loop.call_soon_threadsafe(lambda: (books.known.append(late), books.billing.add(late)))
        done.result(5)

    loop = asyncio.get_running_loop()
    done: Future[None] = Future()
    asyncio.get_running_loop().call_later(0.2, done.set_result, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(books.billing.settled, "settle", meanwhile)
        await books.billing.settle()
    books.check()
    assert books.billing.execution("late").usd == Decimal("0.45")  # half: another cell ran


_WORK = """
import sys
from datetime import timedelta
from decimal import Decimal
from mlcloud.cost.ledger import ExecutionSpan, NodeSpan, Placement
from mlcloud.gateway import billing as module, db
from tests.gateway.test_settling import at, offer

clock = [at(0)]
module.now = lambda: clock[0]
billing = module.Billing(db.open_database(sys.argv[1]), [])
# It goes on where the one before it was killed, and says again what may have been lost.
first = max(int(sys.argv[2]) - 3, 0)
print("ready", flush=True)
for n in range(first, 100000):
    clock[0] = at(n)
    if n % 30 == 0:
        billing._enter([NodeSpan(f"n{n // 30}", offer(), at(n))])
        if n:
            billing._enter([NodeSpan(f"n{n // 30 - 1}", offer(), at(n - 30), at(n))])
            billing.close_placements("s", at(n))
        billing.add(Placement("s", f"n{n // 30}", Decimal("0.5"), at(n)))
    begin = ExecutionSpan(f"x{n}", "s", at(n))
    billing.add(begin)
    billing.add(ExecutionSpan(f"x{n}", "s", at(n), at(n + 0.5)))
    billing.mend()
    if billing.due():
        until = billing._until()
        billing.settled.settle(until, clock[0])
        billing.take(until)
    print(n, flush=True)
"""


def test_killed_at_any_moment_and_begun_again(tmp_path: Path) -> None:
    """Whatever is in the table is in the sums, once; and nothing of the time is missing."""
    url, reached = f"sqlite:///{tmp_path}/gateway.db", 0
    chance = random.Random(11)
    for _ in range(5):
        command = [sys.executable, "-c", _WORK, url, str(reached)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            stop = time.monotonic() + chance.uniform(0.2, 0.6)
            for line in worker.stdout:
                reached = int(line)
                if time.monotonic() > stop:
                    break
            worker.kill()
            for line in worker.stdout:
                reached = int(line) if line.strip().isdecimal() else reached
    books = Books(str(tmp_path))
    with books.clock():
        books.now = at(reached + 1)
        books.restart()
        with books.engine.connect() as connection:
            rows = connection.execute(select(db.ledger).order_by(db.ledger.c.id)).all()
        books.known = [entries.from_plain(row.kind, json.loads(row.entry)) for row in rows]
        assert books.billing.settled.day is not None
        # One node at a time, from the beginning on: no gap, nothing twice.
        whole = cluster_cost(books.plain, books.now)
        assert whole.usd == Decimal("3.6") * (reached + 1)
        assert books.billing._exact(None, None) == whole.exact
        parts = {(row.key["node"], row.key["session"]): row.usd for row in _all(books)}
        exact: dict[tuple[str, str], Fraction] = {}
        for each in whole.charges:
            key = each.node_id, each.session_id or "(no session)"
            exact[key] = exact.get(key, Fraction(0)) + each.usd
        assert parts == {key: to_usd(usd) for key, usd in exact.items()}
        cells = books.report("execution", limit=50_000).rows
        assert {row.key["execution"] for row in cells} >= {f"x{n}" for n in range(reached)}
        assert {row.usd for row in cells} <= {Decimal("0.9"), Decimal("1.8")}


def _all(books: Books) -> Any:
    return books.report("node,session", limit=50_000).rows
