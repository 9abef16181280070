"""What sessions move: bytes to their notebooks and between regions, requests to the store.

    channel      frames to the notebook                    ─┐
    snapshots    new chunks and a manifest, when committed ─┼► counters ─ every `FLUSH_S` ─► table
    restoring    the chunks that a kernel reads            ─┘    `traffic`, by day and session
                                                                      └─► estimates, never the meter

Counted where the gateway passes by: what a cell itself reads from or writes to the internet, data
mounts, checkpoints of `resumable` and large values that a notebook fetches as objects are not in
it. A node outside the head's region pays for what it exchanges with the store.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, func, insert, select, update

from mlcloud.cluster.records import now
from mlcloud.cost.estimates import DataSeen, egress_usd, prices_of, requests_usd
from mlcloud.cost.shares import day_of
from mlcloud.gateway import db
from mlcloud.store.manifest import refs_in

FLUSH_S = 10.0


@dataclass(frozen=True)
class Moved:
    """Bytes out to notebooks, bytes between regions, writing and reading requests."""

    out: int = 0
    across: int = 0
    puts: int = 0
    gets: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Traffic:
    """Of one gateway. From any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._new: dict[tuple[int, str], Moved] = {}
        self._written: dict[str, set[str]] = {}  # chunks of each session's last snapshot
        self._flushed = time.monotonic()
        with engine.connect() as connection:
            rows = connection.execute(_sums(None, None)).all()
        self._all: dict[str, Moved] = {row.session_id: Moved(*map(int, row[1:])) for row in rows}

    # --- counting ---------------------------------------------------------------------------------

    def add(self, session_id: str, moved: Moved) -> None:
        with self._lock:
            key = day_of(now()), session_id
            self._new[key] = self._new.get(key, Moved()) + moved
            self._all[session_id] = self._all.get(session_id, Moved()) + moved

    def committed(self, session_id: str, body: dict[str, Any], *, elsewhere: bool) -> None:
        """A snapshot with this body: its manifest, and the chunks that the last one had not."""
        refs = refs_in(json.dumps(body))
        before = self._written.get(session_id, set())
        self._written[session_id] = {ref.hash for ref in refs}
        new = [ref.size for ref in refs if ref.hash not in before]
        self.add(session_id, Moved(across=sum(new) if elsewhere else 0, puts=len(new) + 1))

    def restored(self, session_id: str, body: dict[str, Any], *, elsewhere: bool) -> None:
        """A kernel reads what this body names."""
        sizes = [ref.size for ref in refs_in(json.dumps(body))]
        across = sum(sizes) if elsewhere else 0
        self.add(session_id, Moved(across=across, gets=len(sizes) + 1))

    def flush(self, *, now_: bool = False) -> None:
        """Into the table, every `FLUSH_S`."""
        with self._lock:
            if not self._new or (time.monotonic() - self._flushed < FLUSH_S and not now_):
                return
            new, self._new, self._flushed = self._new, {}, time.monotonic()
        table = db.traffic
        with db.writing(self._engine) as connection:
            for (day, session_id), moved in new.items():
                values = asdict(moved)
                where = (table.c.day == day, table.c.session_id == session_id)
                changes = {name: table.c[name] + value for name, value in values.items()}
                if not connection.execute(update(table).where(*where).values(changes)).rowcount:
                    row = {"day": day, "session_id": session_id, **values}
                    connection.execute(insert(table).values(row))

    # --- asked ------------------------------------------------------------------------------------

    def of(self, session_id: str) -> Moved:
        """From the beginning."""
        return self._all.get(session_id, Moved())

    def between(self, since: datetime | None, until: datetime) -> dict[str, Moved]:
        """By session, of whole days (UTC)."""
        self.flush(now_=True)
        with self._engine.connect() as connection:
            rows = connection.execute(
                _sums(None if since is None else day_of(since), day_of(until))
            )
            return {row.session_id: Moved(*map(int, row[1:])) for row in rows}


def data_usd(store_url: str, moved: Moved) -> Decimal:
    """An estimate of what it costs."""
    prices, seen = prices_of(store_url), DataSeen(*astuple(moved))
    return requests_usd(prices, seen) + egress_usd(prices, seen)


def total(every: Iterable[Moved]) -> Moved:
    return sum(every, Moved())


def _sums(since: int | None, until: int | None) -> Any:
    table = db.traffic.c
    columns = (func.sum(table[name]) for name in (each.name for each in fields(Moved)))
    query = select(table.session_id, *columns).group_by(table.session_id)
    if since is not None:
        query = query.where(table.day >= since)
    return query if until is None else query.where(table.day <= until)
