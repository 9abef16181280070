"""The journal: every event of every session, numbered, kept, and handed to whoever listens.

    append() ─► one transaction (events, how far the host was read) ─► every subscriber, in order

A subscriber names the last number it has (`after`): it first reads what it missed from the table,
then gets the live ones, each exactly once. A subscriber that does not keep up is not waited for: it
reads at its own pace from the table.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Any

import msgpack
from sqlalchemy import Connection, Engine, bindparam, select

from mlcloud.gateway import db

BATCH = 256
BATCH_BYTES = 2**20
RECENT_BYTES = 4 * 2**20
Row = tuple[int, str, str, bytes]

_COLUMNS = ("session_id", "seq", "execution_id", "kind", "blob")
_ADD = db.insert_into(db.events, *_COLUMNS)
_LAST = db.update_of(db.sessions, "last_event")
_LAST_OF_HOST = db.update_of(db.sessions, "last_event", "host_number")
_READ = (
    select(db.events.c.seq, db.events.c.execution_id, db.events.c.kind, db.events.c.blob)
    .where(db.events.c.session_id == bindparam("key"), db.events.c.seq > bindparam("after"))
    .order_by(db.events.c.seq)
    .limit(bindparam("most"))
)


class Journal:
    """The events of one session."""

    def __init__(self, engine: Engine, session_id: str, last: int) -> None:
        self._engine = engine
        self._session_id = session_id
        self.last = last
        self._changed = asyncio.Event()
        self._recent: deque[Row] = deque()
        self._recent_bytes = 0

    def append(
        self, items: Iterable[tuple[str, str, bytes]], *, host_number: int | None = None
    ) -> None:
        """Write `(execution id, kind, blob)` items in one transaction, and tell the subscribers.

        `host_number` is how far the host's own events are now journaled: kept in the same
        transaction, so that an event is written exactly once whenever the gateway is killed.
        """
        with db.writing(self._engine) as connection:
            rows = self.write(connection, items, host_number=host_number)
        self.tell(rows)

    def write(
        self,
        connection: Connection,
        items: Iterable[tuple[str, str, bytes]],
        *,
        host_number: int | None = None,
    ) -> list[Row]:
        """As a part of the caller's transaction; `tell()` the rows when that is committed."""
        rows = [(seq, *item) for seq, item in enumerate(items, self.last + 1)]
        _ADD.run(
            connection,
            *(dict(zip(_COLUMNS, (self._session_id, *row), strict=True)) for row in rows),
        )
        values = {"key": self._session_id, "new_last_event": self.last + len(rows)}
        if host_number is None:
            _LAST.run(connection, values)
        else:
            _LAST_OF_HOST.run(connection, {**values, "new_host_number": host_number})
        return rows

    def tell(self, rows: list[Row]) -> None:
        """These rows are committed: whoever follows gets them."""
        if not rows:
            return
        self.last = rows[-1][0]
        self._recent.extend(rows)
        self._recent_bytes += sum(len(row[3]) for row in rows)
        while len(self._recent) > BATCH or self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[3])
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def emit(
        self,
        execution_id: str,
        kind: str,
        content: dict[str, Any],
    ) -> None:
        """Append one event of the gateway's own."""
        self.append([(execution_id, kind, packed(kind, content))])

    def read(self, after: int, limit: int = BATCH) -> list[Row]:
        """Up to `limit` events after number `after`, about `BATCH_BYTES` at most."""
        if self._recent and self._recent[0][0] <= after + 1:
            return _bounded(islice(self._recent, after + 1 - self._recent[0][0], None), limit)
        with self._engine.connect() as connection:
            values = {"key": self._session_id, "after": after, "most": limit}
            found = connection.execution_options(yield_per=8).execute(_READ, values)
            return _bounded(
                ((row.seq, row.execution_id, row.kind, row.blob) for row in found), limit
            )

    async def follow(self, after: int) -> AsyncIterator[list[Row]]:
        """Batches of events after number `after`, for ever, as they come."""
        while True:
            changed = self._changed
            if rows := self.read(after):
                after = rows[-1][0]
                yield rows
            else:
                await changed.wait()


def packed(kind: str, content: dict[str, Any]) -> bytes:
    """An event of the gateway's own."""
    blob: bytes = msgpack.packb(
        {"type": kind, "content": content, "time": time.time()}, default=str
    )
    return blob


def _bounded(rows: Iterable[Row], limit: int) -> list[Row]:
    found: list[Row] = []
    size = 0
    for row in islice(rows, limit):
        found.append(row)
        size += len(row[3])
        if size > BATCH_BYTES:
            break
    return found
