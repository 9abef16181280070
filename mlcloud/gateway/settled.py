"""Days that are over: what they cost is worked out once, and summed up from columns after that.

    ledger's rows ─► shares of whole days ─► `settled` (a day's columns), `settled_executions`
                                            `horizon`: the first day that is not settled
    a fact of an earlier day turns up ─► `reopen`: its day and all later ones are live again

One transaction moves the horizon, with everything that follows from it. So a gateway that is killed
at any moment finds a day either settled or live, never both and never neither.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from fractions import Fraction
from typing import Any

from sqlalchemy import Column, Connection, Engine, delete, insert, select

from mlcloud.cost.ledger import Entry, Ledger, NodeSpan, PriceChange
from mlcloud.cost.shares import Share, Sums, day_of, midnight, shares
from mlcloud.gateway import db, entries
from mlcloud.gateway.columns import MOST_PARTS, Columns, Row, pack

_COLUMNS = ("day", "node_id", "session_id", "usd_per_hour", "on_demand")
_NUMBERS = ("parts", "paid", "needed", "odd")
_ADD = db.insert_into(db.settled, "day", "shares")
_ADD_EXECUTION = db.insert_into(db.settled_executions, *_COLUMNS, *_NUMBERS, "execution_id")


class Settled:
    """The tables. `day` is the horizon, None where nothing is settled: a day's number."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with engine.connect() as connection:
            self.day: int | None = connection.execute(select(db.horizon.c.day)).scalar()
        self._columns = Columns()
        self._lock = threading.Lock()

    @property
    def horizon(self) -> datetime | None:
        return None if self.day is None else midnight(self.day)

    # --- moving the horizon -----------------------------------------------------------------------

    def settle(self, until: int, now: datetime) -> None:
        """Settle all days before `until`. Blocks; `day` stays, for who reads meanwhile: `take`."""
        with self._engine.connect() as connection:
            rows = entries.live(connection)
        ledger = Ledger(each.entry for each in rows)
        begin = self.horizon or min((n.started_at for n in ledger.nodes), default=midnight(until))
        found = shares(ledger, begin, midnight(until), now)
        by_execution: dict[tuple[Any, ...], tuple[int, int]] = {}
        by_session: dict[tuple[Any, ...], tuple[int, int]] = {}
        for share in found:
            kept = (share.day, share.node_id, share.session_id, *share[4:7])
            _count(by_session, (*kept, int(bool(share.execution_id))), share)
            if share.execution_id:
                _count(by_execution, (*kept, share.execution_id), share)
        with self._engine.begin() as connection:
            _ADD.run(connection, *_days(by_session))
            _ADD_EXECUTION.run(connection, *_rows(by_execution))
            entries.mark(connection, _marks(rows, midnight(until)))
            _move(connection, until)

    def take(self, until: int) -> None:
        """From now on what is asked is answered with the days before `until` settled."""
        self.day = until

    def reopen(self, moment: datetime) -> list[Entry]:
        """Settled days from this moment's on are live again: what the ledger must hold then."""
        day = day_of(moment)
        with db.writing(self._engine) as connection:
            rows = entries.not_over(connection, midnight(day))
            for table in (db.settled, db.settled_executions):
                connection.execute(delete(table).where(table.c.day >= day))
            first = midnight(day)
            marks = [
                (row, entries.STRADDLES if row.entry.started_at < first else entries.NEW)
                for row in rows
                if row.live != entries.ALWAYS and not isinstance(row.entry, PriceChange)
            ]
            entries.mark(connection, marks)
            _move(connection, day)
        self.day = day
        with self._lock:
            self._columns.drop(day)
        return [each.entry for each in rows]

    # --- sums -------------------------------------------------------------------------------------

    def spent(self, since: int | None, session_id: str | None = None) -> Fraction:
        """Dollars, from a day on, by all or by one session."""
        sums: Sums[None] = Sums()
        for row in self.rows((), since, self.day, session_id=session_id):
            sums.add(None, *row)
        amount = sums.amounts().get(None)
        return Fraction(0) if amount is None else amount.usd

    def spent_by_session(self, since: int | None) -> dict[str, Fraction]:
        """Dollars, from a day on, by each session; what is of no session is left out."""
        sums: Sums[str] = Sums()
        for session_id, *row in self.rows(["session_id"], since, self.day):
            if session_id:
                sums.add(session_id, *row)
        return {key: amount.usd for key, amount in sums.amounts().items()}

    def execution(self, execution_id: str) -> dict[str, tuple[Fraction, Fraction]]:
        """By node: dollars, and what they would have been on demand."""
        table = db.settled_executions
        sums: Sums[str] = Sums()
        where = [table.c.execution_id == execution_id, table.c.day < (self.day or 0)]
        for node_id, *row in self._read([table.c.node_id], where):
            sums.add(node_id, *row)
        return {node: (each.usd, each.on_demand) for node, each in sums.amounts().items()}

    def session_of(self, execution_id: str) -> str | None:
        table = db.settled_executions
        query = select(table.c.session_id).where(table.c.execution_id == execution_id).limit(1)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()

    def rows(
        self,
        columns: Iterable[str],
        since: int | None,
        until: int | None,
        *,
        session_id: str | None = None,
        executions: tuple[str, str | None] | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Sums of the days from `since` to before `until`: the `columns`, price, on-demand price,
        parts, paid, needed, busy.

        `executions`: of those whose ids come after the first one, up to the second.
        """
        if self.day is None:
            return
        last = self.day if until is None else min(until, self.day)
        if executions is None:
            with self._lock:
                self._fill()
                yield from list(self._columns.groups(columns, since, last, session_id))
            return
        table = db.settled_executions
        where = [table.c.day < last, table.c.execution_id > executions[0]]
        if since is not None:
            where.append(table.c.day >= since)
        if executions[1] is not None:
            where.append(table.c.execution_id <= executions[1])
        yield from self._read([table.c[name] for name in columns], where)

    def totals(
        self, columns: Iterable[str], since: int | None, until: int
    ) -> tuple[tuple[int, int], list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """As `Columns.totals`, with the rows that it leaves out as `rows` gives them."""
        if self.day is None:
            return (1, 1), [], []
        wanted, last = list(columns), min(until, self.day)
        with self._lock:
            self._fill()
            dollar, hour, found = self._columns.totals(wanted, since, last)
            return (dollar, hour), list(found), list(self._columns.odd(wanted, since, last))

    def _fill(self) -> None:
        """Have every settled day in the columns."""
        table = db.settled.c
        newest = max(self._columns.days, default=None)
        query = select(table.day, table.shares).where(table.day < (self.day or 0))
        if newest is not None:
            query = query.where(table.day > newest)
        with self._engine.connect() as connection:
            for day, packed in connection.execute(query):
                self._columns.add(day, packed)

    def ids(self, since: int | None, until: int | None, after: str, limit: int) -> list[str]:
        """Of executions, in order."""
        table = db.settled_executions.c
        query = select(table.execution_id).where(table.execution_id > after).distinct()
        if since is not None:
            query = query.where(table.day >= since)
        query = query.where(table.day < min(until or self.day or 0, self.day or 0))
        with self._engine.connect() as connection:
            found = connection.execute(query.order_by(table.execution_id).limit(limit))
            return list(found.scalars())

    def _read(self, columns: list[Column[Any]], where: list[Any]) -> Iterator[tuple[Any, ...]]:
        c = db.settled_executions.c
        query = select(*columns, c.usd_per_hour, c.on_demand, c.parts, c.paid, c.needed, c.odd)
        with self._engine.connect() as connection:
            for *row, odd in connection.execute(query.where(*where)):
                numbers = tuple(map(int, odd.split())) if odd else tuple(row[-3:])
                yield (*row[:-3], *numbers, True)


def _count(
    into: dict[tuple[Any, ...], tuple[int, int]], key: tuple[Any, ...], share: Share
) -> None:
    paid, needed = into.get(key, (0, 0))
    into[key] = paid + share.paid, needed + share.needed


def _days(found: dict[tuple[Any, ...], tuple[int, int]]) -> Iterator[dict[str, Any]]:
    days: dict[int, list[Row]] = {}
    for (day, node, session, price, on_demand, parts, busy), amounts in found.items():
        row = Row(node, session, f"{price} {on_demand}", parts, busy, *amounts)
        days.setdefault(day, []).append(row)
    return ({"day": day, "shares": pack(rows)} for day, rows in days.items())


def _rows(found: dict[tuple[Any, ...], tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for (*key, parts, execution_id), (paid, needed) in found.items():
        row = dict(zip(_COLUMNS, key, strict=True), execution_id=execution_id)
        if parts > MOST_PARTS:
            yield {**row, "parts": 1, "paid": 0, "needed": 0, "odd": f"{parts} {paid} {needed}"}
        else:
            yield {**row, "parts": parts, "paid": paid, "needed": needed, "odd": ""}


def _marks(rows: list[entries.Row], horizon: datetime) -> Iterator[tuple[entries.Row, int]]:
    latest = {(type(each.entry), each.entry.identity): each.id for each in rows}
    for row in rows:
        entry = row.entry
        if latest[type(entry), entry.identity] != row.id:
            yield row, entries.SUPERSEDED
        elif isinstance(entry, NodeSpan | PriceChange):
            yield row, entries.ALWAYS
        elif entry.started_at >= horizon:
            yield row, entries.NEW
        elif entry.ended_at is not None and entry.ended_at <= horizon:
            yield row, entries.SETTLED
        else:
            yield row, entries.STRADDLES


def _move(connection: Connection, day: int) -> None:
    connection.execute(delete(db.horizon))
    connection.execute(insert(db.horizon).values(day=day))
