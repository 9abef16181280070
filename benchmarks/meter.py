"""What the meter costs: a report over a year of a large cluster, opening its ledger, one execution.

    python benchmarks/meter.py [--nodes 1000] [--sessions 10000] [--executions 800000] [--days 365]

The year is entered day by day and settled as a gateway does it; then, in a process that has opened
the database anew, each report is asked for, and what budgets ask every second.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import insert

from benchmarks.report import report
from mlcloud.cluster.offers import Offer
from mlcloud.cost.ledger import Entry, ExecutionSpan, NodeSpan, Placement
from mlcloud.gateway import billing as billing_module
from mlcloud.gateway import costs as costs_module
from mlcloud.gateway import db, entries
from mlcloud.gateway.billing import Billing
from mlcloud.gateway.costs import CostReports
from mlcloud.store import Store

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
PRICES = ("0.0289", "0.1700", "0.3219", "1.0060")


def offer(number: int) -> Offer:
    return Offer(
        cloud="local",
        region="local",
        zone=f"local-{'abc'[number % 3]}",
        instance_type=f"local.cpu{number % 4}",
        cpus=4,
        memory_bytes=2**34,
        accelerator=None,
        accelerator_count=0,
        market="spot",
        usd_per_hour=Decimal(PRICES[number % len(PRICES)]),
        simulated=True,
        source="benchmark",
        as_of=date(2026, 1, 1),
    )


class Year:
    """Its facts, day by day: each node there all the time, sessions that move about on them."""

    def __init__(self, nodes: int, sessions: int, executions: int, days: int) -> None:
        self.random = random.Random(7)
        self.nodes = [f"i-{n}" for n in range(nodes)]
        self.sessions = sessions
        self.days = days
        self.each_day = executions // days
        self.count = 0

    def day(self, number: int) -> list[Entry]:
        begin = START + number * DAY
        found: list[Entry] = []
        if number == 0:
            for index, node in enumerate(self.nodes):
                found.append(NodeSpan(node, offer(index), begin, None, Decimal("1.5")))
        choose = self.random
        for _ in range(max(1, self.each_day // 4)):  # a stay of some hours, with four cells
            session = f"s-{choose.randrange(self.sessions)}"
            node = choose.choice(self.nodes)
            start = begin + timedelta(microseconds=choose.randrange(60_000_000_000))
            end = start + timedelta(hours=4)
            found.append(Placement(session, node, Decimal("0.5"), start))
            found.append(Placement(session, node, Decimal("0.5"), start, end))
            for cell in range(4):
                self.count += 1
                name = f"x-{self.count:08d}"
                first = start + timedelta(minutes=55 * cell, microseconds=choose.randrange(10**8))
                found.append(ExecutionSpan(name, session, first))
                found.append(ExecutionSpan(name, session, first, first + timedelta(minutes=40)))
        return found


def fill(url: str, year: Year) -> tuple[int, float]:
    """Entries, and the longest time in which a day was settled, in seconds."""
    engine = db.open_database(url)
    billing = Billing(engine, [])
    total, longest = 0, 0.0
    with engine.begin() as connection:
        request = '{"name": "%s", "owner": "user-%d", "tags": {"team": "team-%d"}}'
        rows = [
            {
                "id": f"s-{n}",
                "name": f"exp-{n}",
                "state": "closed",
                "request": request % (f"exp-{n}", n % 50, n % 7),
                "created_at": START,
            }
            for n in range(year.sessions)
        ]
        connection.execute(insert(db.sessions), rows)
    for number in range(year.days):
        found = year.day(number)
        total += len(found)
        with engine.begin() as connection:
            for entry in found:
                entries.add(entry, connection)
        for entry in found:
            billing.append(entry)
        began = time.perf_counter()
        billing.settled.settle(_day(number), START + (number + 1) * DAY)
        longest = max(longest, time.perf_counter() - began)
        billing.take(_day(number))
        if number % 30 == 0:
            print(f"day {number}: {total:,} entries", flush=True)
    engine.dispose()
    return total, longest


def _day(number: int) -> int:
    return ((START - datetime(1970, 1, 1, tzinfo=timezone.utc)) // DAY) + number


Times = tuple[float, float]


def timed(call: Callable[[], Any], repeat: int = 3) -> Times:
    """The medians in seconds: on the clock, and of the processor (this machine may be shared)."""
    walls, used = [], []
    for _ in range(repeat):
        began, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
    return sorted(walls)[repeat // 2], sorted(used)[repeat // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--executions", type=int, default=800_000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--folder", help="keep the database here, and use it again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(options.folder or scratch) / "year.db"
        url, made = f"sqlite:///{path}", path.exists()
        year = Year(options.nodes, options.sessions, options.executions, options.days)
        facts: dict[str, Any] = {}
        if not made:
            facts["entries"], facts["settling_a_day_s"] = fill(url, year)
        clock = START + options.days * DAY + timedelta(hours=1)
        with (
            mock.patch.object(billing_module, "now", return_value=clock),
            mock.patch.object(costs_module, "now", return_value=clock),
        ):
            rows = measure(url, year, clock)
    report("meter", rows, **vars(options), **facts)


def measure(url: str, year: Year, clock: datetime) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def row(what: str, times: Times, aim_ms: float, **facts: Any) -> None:
        wall, cpu = (each * 1000 for each in times)
        rows.append({"what": what, "ms": wall, "cpu_ms": cpu, "aim_ms": aim_ms, **facts})

    engine = db.open_database(url)
    row("open the ledger", timed(lambda: Billing(engine, []), 1), 5000)
    billing = Billing(engine, [])
    reports = CostReports(billing, engine, Store("memory://benchmark"))
    for by in ("session", "day", "node", "user", "tag:team", "market", "execution"):
        found = []

        def ask(by: str = by, found: list[Any] = found) -> None:
            reports._kept = None
            found.append(reports.report([by], limit=10_000))

        row(f"a year by {by}", timed(ask), 1000, rows=len(found[-1].rows))

    def week() -> None:
        reports._kept = None
        reports.report(["session"], clock - 7 * DAY, limit=10_000)

    row("a week by session", timed(week), 1000)
    month = clock.replace(day=1, hour=0)
    billing.spent(), billing.spent(since=month), billing.spent("s-7")
    row("spent by the cluster", timed(billing.spent, 100), 1)
    row("spent in this month", timed(lambda: billing.spent(since=month), 100), 1)
    row("spent by a session", timed(lambda: billing.spent("s-7"), 100), 1)
    row("$ an hour now", timed(billing.per_hour, 100), 1)

    billing.add(Placement("s-7", "i-7", Decimal("0.5"), clock))

    def execute() -> None:
        for number in range(1000):
            start = clock + timedelta(milliseconds=number)
            end = start + timedelta(microseconds=900)
            billing.add(ExecutionSpan(f"y-{number}", "s-7", start))
            billing.add(ExecutionSpan(f"y-{number}", "s-7", start, end))

    wall, cpu = timed(execute, 1)
    row("overhead of an execution", (wall / 1000, cpu / 1000), 1)
    row("its footer's bill", timed(lambda: billing.execution("y-500"), 100), 1)
    engine.dispose()
    return rows


if __name__ == "__main__":
    main()
