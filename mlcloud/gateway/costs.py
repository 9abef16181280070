"""`GET /v1/costs`: what was spent, by day, session, node, user, tag … or execution.

    settled days ─ summed up by the database ─┐
    days that go on ─ cut by the meter ───────┴► Sums, by what was asked ─► rows, page by page

A report is of one moment: `until` is in the answer, and who asks for the next page gives it back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, select

from mlcloud.cluster.records import now
from mlcloud.cost.estimates import DataSeen, estimates
from mlcloud.cost.shares import NO_AMOUNT, Amount, Share, Sums, day_of, midnight, shares
from mlcloud.cost_models import CostEstimate, CostNode, CostRow, Costs, DataMoved
from mlcloud.errors import UsageError
from mlcloud.gateway import db
from mlcloud.gateway.billing import Billing
from mlcloud.gateway.jobs import tables as job_tables
from mlcloud.gateway.payers import job_scope
from mlcloud.gateway.traffic import Moved, Traffic, data_usd, total
from mlcloud.store import Store
from mlcloud.units import suggest

MOST_ROWS = 50_000
MOST_MOVED = 100
OVERHEAD = "(no session)"
NO_ONE = "(unknown)"
_KEPT_S = 60.0  # a report whose next page may be asked for
_STORE_S = 3600.0

OF_NODE = ("cloud", "region", "zone", "instance_type", "market")
_BY = ("day", "session", "node", "user", "price", "execution", *OF_NODE)

_Key = tuple[str, ...]
_Groups = list[tuple[_Key, Amount]]


class CostReports:
    """Of one gateway. Called in threads."""

    def __init__(
        self, billing: Billing, engine: Engine, store: Store, traffic: Traffic | None = None
    ) -> None:
        self._traffic = traffic or Traffic(engine)
        self._billing = billing
        self._engine = engine
        self._store = store
        self._stored: tuple[float, int, int] | None = None
        self._kept: tuple[float, object, _Groups] | None = None
        self._lock = threading.Lock()

    def report(
        self,
        by: list[str],
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        after: str | None = None,
        limit: int = 1000,
    ) -> Costs:
        """Raises `UsageError` for what cannot be grouped by, and a page that there is not."""
        _check(by)
        while True:
            turns = self._billing.turns
            found = self._report(by, since, until, after, limit)
            if turns == self._billing.turns and turns % 2 == 0:
                return found
            self._kept = None  # days were settled meanwhile: it may have them twice

    def _report(
        self,
        by: list[str],
        since: datetime | None,
        until: datetime | None,
        after: str | None,
        limit: int,
    ) -> Costs:
        since, until = self._whole(since, until)
        live = list(self._live(since, until))
        if by == ["execution"]:
            totals = _total(self._groups([], since, until, live))
            found, following = self._executions(since, until, after or "", limit, live)
        else:
            groups = self._paged(by, since, until, live)
            totals = _total(groups)
            first = _number(after)
            found = groups[first : first + limit]
            following = str(first + limit) if first + limit < len(groups) else None
        fields = ["execution", "session"] if by == ["execution"] else by
        rows = [_row(dict(zip(fields, key, strict=True)), amount) for key, amount in found]
        nodes = {row.key["node"] for row in rows if "node" in row.key}
        moved = self._traffic.between(since, until)
        began = min((n.started_at for n in self._billing.ledger.nodes), default=until)
        return Costs(
            by=by,
            since=since,
            until=until,
            **_money(totals),
            usd_per_hour=self._billing.per_hour(),
            simulated=self._billing.simulated(),
            rows=rows,
            next=following,
            nodes={node_id: self._node(node_id) for node_id in nodes},
            tags=self._tags({row.key["session"] for row in rows if "session" in row.key}),
            estimates=self._estimates(max(began, since or began), until, total(moved.values())),
            data=self._moved(moved),
        )

    def _whole(
        self, since: datetime | None, until: datetime | None
    ) -> tuple[datetime | None, datetime]:
        """As they are; but of days that are settled, whole ones."""
        # A clock that was set back leaves ends behind that are still to come.
        last = max(now(), self._billing.ledger.latest)
        horizon = self._billing.settled.horizon
        since = since and since.astimezone(timezone.utc)
        until = last if until is None else min(until.astimezone(timezone.utc), last)
        if horizon is not None and since is not None and since < horizon:
            since = midnight(day_of(since))
        if horizon is not None and until < horizon and until != midnight(day_of(until)):
            until = midnight(day_of(until) + 1)
        return since, until

    # --- groups -----------------------------------------------------------------------------------

    def _paged(
        self, by: list[str], since: datetime | None, until: datetime, live: list[Share]
    ) -> _Groups:
        """In the order of the pages; the last one is kept for a while."""
        asked = tuple(by), since, until
        kept = self._kept
        if kept is not None and kept[1] == asked and time.monotonic() - kept[0] < _KEPT_S:
            return kept[2]
        groups = self._groups(by, since, until, live)
        if by and by[0] == "day":
            groups.sort(key=lambda group: group[0])
        else:
            groups.sort(key=lambda group: (-group[1].n_usd, group[0]))  # all of the same parts
        self._kept = time.monotonic(), asked, groups
        return groups

    def _groups(
        self, by: list[str], since: datetime | None, until: datetime, live: list[Share]
    ) -> _Groups:
        columns, key_of = self._keys(by)
        sums: Sums[_Key] = Sums()
        width = len(columns)
        days = None if since is None else day_of(since), day_of(until)
        if "price" in by:
            for row in self._billing.settled.rows(columns, *days):
                sums.add(key_of(row), *row[width:])
        else:
            parts, totals, odd = self._billing.settled.totals(columns, *days)
            for row in totals:
                sums.add_total(key_of(row), parts, *row[width:])
            for row in odd:
                sums.add(key_of(row), *row[width:])
        for share in live:
            values = tuple(getattr(share, name) for name in columns)
            price = share.usd_per_hour, share.on_demand, share.parts, share.paid, share.needed
            sums.add(key_of((*values, price[0])), *price, bool(share.execution_id))
        return list(sums.amounts().items())

    def _live(self, since: datetime | None, until: datetime) -> Iterator[Share]:
        ledger, horizon = self._billing.ledger, self._billing.settled.horizon
        began = min((n.started_at for n in ledger.nodes_after(horizon)), default=until)
        begin = max(each for each in (since, horizon, began) if each is not None)
        return shares(ledger, begin, until, now())

    def _keys(self, by: list[str]) -> tuple[list[str], Callable[[tuple[Any, ...]], _Key]]:
        """What the database is to group by, and the key of such a row."""
        columns: list[str] = []
        parts: list[tuple[int, Callable[[Any], str]]] = []

        def take(column: str, read: Callable[[Any], str]) -> None:
            if column not in columns:
                columns.append(column)
            parts.append((columns.index(column), read))

        names = self._sessions() if any(_is_of_session(each) for each in by) else {}
        for each in by:
            if each == "day":
                take("day", lambda day: midnight(day).date().isoformat())
            elif _is_of_session(each):
                values = {key: facts(each) for key, facts in names.items()}
                default = OVERHEAD if each == "session" else NO_ONE
                take("session_id", _lookup(values, each == "session", default))
            elif each == "price":
                parts.append((-1, str))
            else:
                take("node_id", str if each == "node" else self._of_node(each))
        places = [(len(columns) if place < 0 else place, read) for place, read in parts]
        known: dict[tuple[Any, ...], _Key] = {}

        def key_of(row: tuple[Any, ...]) -> _Key:
            facts = row[: len(columns) + 1] if "price" in by else row[: len(columns)]
            key = known.get(facts)
            if key is None:
                key = known[facts] = tuple(read(row[place]) for place, read in places)
            return key

        return columns, key_of

    def _sessions(self) -> dict[str, Callable[[str], str]]:
        table = db.sessions.c
        found: dict[str, Callable[[str], str]] = {}
        with self._engine.connect() as connection:
            for row in connection.execute(select(table.id, table.name, table.request)):
                found[row.id] = _facts(row.name.partition("#")[0], row.request)
            jobs = select(job_tables.jobs.c.id, job_tables.jobs.c.request)
            for job_id, request in connection.execute(jobs):
                key = job_scope(job_id)
                found[key] = _facts(key, request)
        return found

    def _tags(self, names: set[str]) -> dict[str, dict[str, str]]:
        table = db.sessions.c
        if not names:
            return {}
        found: dict[str, dict[str, str]] = {}
        with self._engine.connect() as connection:
            tagged = select(table.name, table.request).where(table.request.contains('"tags"'))
            for row in connection.execute(tagged):
                name = row.name.partition("#")[0]
                if name in names and (tags := dict(_said(row.request)[1])):
                    found.setdefault(name, {}).update(tags)
            ids = [name.removeprefix(job_scope("")) for name in names]
            jobs = select(job_tables.jobs.c.id, job_tables.jobs.c.request)
            for job_id, request in connection.execute(jobs.where(job_tables.jobs.c.id.in_(ids))):
                found[job_scope(job_id)] = dict(_said(request)[1])
        return found

    def _of_node(self, field: str) -> Callable[[str], str]:
        ledger = self._billing.ledger

        def read(node_id: str) -> str:
            return str(getattr(ledger.node(node_id).offer, field))

        return read

    def _node(self, node_id: str) -> CostNode:
        offer = self._billing.ledger.node(node_id).offer
        return CostNode.model_validate({f: getattr(offer, f) for f in CostNode.model_fields})

    # --- executions -------------------------------------------------------------------------------

    def _executions(
        self,
        since: datetime | None,
        until: datetime,
        after: str,
        limit: int,
        every: list[Share],
    ) -> tuple[_Groups, str | None]:
        """Those whose ids come after that one."""
        settled = self._billing.settled
        days = None if since is None else day_of(since), day_of(until)
        live = [each for each in every if each.execution_id > after]
        ids = settled.ids(*days, after, limit + 1)
        page = sorted({*ids, *(each.execution_id for each in live)})[: limit + 1]
        if not page:
            return [], None
        last = page[:limit][-1]
        names = self._sessions()
        name_of = _lookup({key: facts("session") for key, facts in names.items()}, True, OVERHEAD)
        sums: Sums[_Key] = Sums()
        columns = ("execution_id", "session_id")
        for row in settled.rows(columns, *days, executions=(after, last)):
            sums.add((row[0], name_of(row[1])), *row[2:])
        for share in live:
            if share.execution_id <= last:
                key = share.execution_id, name_of(share.session_id)
                price = share.usd_per_hour, share.on_demand, share.parts
                sums.add(key, *price, share.paid, share.needed, True)
        groups = sorted(sums.amounts().items())
        return groups, last if len(page) > limit else None

    # --- beside the nodes -------------------------------------------------------------------------

    def _moved(self, moved: dict[str, Moved]) -> list[DataMoved]:
        """Those that moved most first."""
        if not moved:
            return []
        names = self._sessions()
        most = sorted(moved, key=lambda each: (-moved[each].out - moved[each].across, each))
        return [
            DataMoved(
                session=names[each]("session") if each in names else each,
                to_notebook_bytes=moved[each].out,
                between_regions_bytes=moved[each].across,
                store_writes=moved[each].puts,
                store_reads=moved[each].gets,
                usd_estimate=data_usd(self._store.url, moved[each]),
            )
            for each in most[:MOST_MOVED]
        ]

    def _estimates(self, since: datetime, until: datetime, moved: Moved) -> list[CostEstimate]:
        size, count = self._store_size()
        time_ = max(until - since, timedelta(0))
        seen = DataSeen(*astuple(moved))
        found = estimates(self._store.url, size, count, time_, seen)
        return [CostEstimate.model_validate(vars(each)) for each in found]

    def _store_size(self) -> tuple[int, int]:
        """Bytes and objects; listed once an hour."""
        with self._lock:
            if self._stored is None or time.monotonic() - self._stored[0] > _STORE_S:
                self._stored = (time.monotonic(), *self._store.size())
            return self._stored[1:]


def _total(groups: _Groups) -> Amount:
    """Of all of them: they are whole numbers of the same part."""
    if not groups:
        return NO_AMOUNT
    usd, on_demand, idle, hours = (
        sum(column) for column in zip(*(amount[:4] for _, amount in groups), strict=True)
    )
    return Amount(usd, on_demand, idle, hours, groups[0][1].of)


def _check(by: list[str]) -> None:
    for each in by:
        if each not in _BY and not (each.startswith("tag:") and len(each) > 4):
            raise UsageError(
                f"costs cannot be grouped by {each!r}{suggest(each, _BY)}; there are "
                f"{', '.join(_BY)} and tag:KEY"
            )
    if "execution" in by and len(by) > 1:
        raise UsageError("costs by execution are grouped by nothing else: each is of one session")


def _is_of_session(field: str) -> bool:
    return field in ("session", "user") or field.startswith("tag:")


@lru_cache(maxsize=50_000)
def _said(request: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The owner and the tags of a request: what costs are grouped by, of all that is in it."""
    plain = json.loads(request)
    return plain.get("owner"), tuple((plain.get("tags") or {}).items())


def _facts(name: str, request: str) -> Callable[[str], str]:
    def read(field: str) -> str:
        if field == "session":
            return name
        owner, tags = _said(request)
        if field == "user":
            return owner or NO_ONE
        return dict(tags).get(field.removeprefix("tag:")) or NO_ONE

    return read


def _lookup(values: dict[str, str], or_itself: bool, default: str) -> Callable[[Any], str]:
    return lambda key: values.get(key, key if or_itself and key else default)


def _number(after: str | None) -> int:
    if after is None:
        return 0
    if not after.isdecimal() or len(after) > 12:
        raise UsageError(f"there is no page after {after!r}: give what `next` was")
    return int(after)


def _row(key: dict[str, str], amount: Amount) -> CostRow:
    money: dict[str, Any] = _money(amount)
    return CostRow.model_construct(None, key=key, **money)


def _money(amount: Amount) -> dict[str, Decimal]:
    usd, on_demand, idle, hours = amount.rounded()
    return {"usd": usd, "on_demand_usd": on_demand, "idle_usd": idle, "node_hours": hours}
