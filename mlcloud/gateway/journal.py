"""The journal: every event of every session, numbered, kept, and handed to whoever listens.

    append() ─► one transaction (events, how far the host was read) ─► every subscriber, in order

A subscriber names the last number it has (`after`): it first reads what it missed from the table,
then gets the live ones, each exactly once. A subscriber that does not keep up is not waited for: it
reads at its own pace from the table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgpack
from sqlalchemy import Engine, insert, select, update

from mlcloud.gateway import db

BATCH = 256
Row = tuple[int, str, str, bytes]


class Journal:
    """The events of one session."""

    def __init__(self, engine: Engine, session_id: str, last: int) -> None:
        self._engine = engine
        self._session_id = session_id
        self.last = last
        self._changed = asyncio.Event()
        self._recent: list[Row] = []

    def append(
        self, items: Iterable[tuple[str, str, bytes]], *, host_number: int | None = None
    ) -> None:
        """Write `(execution id, kind, blob)` items in one transaction.

        `host_number` is how far the host's own events are now journaled: kept in the same
        transaction, so that an event is written exactly once whenever the gateway is killed.
        """
        rows: list[Row] = []
        number = self.last
        for execution_id, kind, blob in items:
            number += 1
            rows.append((number, execution_id, kind, blob))
        values: dict[str, Any] = {"last_event": number}
        if host_number is not None:
            values["host_number"] = host_number
        with self._engine.begin() as connection:
            if rows:
                connection.execute(
                    insert(db.events),
                    [
                        {
                            "session_id": self._session_id,
                            "seq": seq,
                            "execution_id": execution_id,
                            "kind": kind,
                            "blob": blob,
                        }
                        for seq, execution_id, kind, blob in rows
                    ],
                )
            connection.execute(
                update(db.sessions).where(db.sessions.c.id == self._session_id).values(values)
            )
        self.last = number
        self._recent = (self._recent + rows)[-BATCH:]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def emit(self, execution_id: str, kind: str, content: dict[str, Any]) -> None:
        """Append one event of the gateway's own."""
        blob = msgpack.packb({"type": kind, "content": content, "time": time.time()}, default=str)
        self.append([(execution_id, kind, blob)])

    def read(self, after: int, limit: int = BATCH) -> list[Row]:
        """Up to `limit` events after number `after`, from memory where they are recent."""
        if self._recent and self._recent[0][0] <= after + 1:
            return self._recent[after + 1 - self._recent[0][0] :][:limit]
        with self._engine.connect() as connection:
            found = connection.execute(
                select(
                    db.events.c.seq, db.events.c.execution_id, db.events.c.kind, db.events.c.blob
                )
                .where(db.events.c.session_id == self._session_id, db.events.c.seq > after)
                .order_by(db.events.c.seq)
                .limit(limit)
            )
            return [(row.seq, row.execution_id, row.kind, row.blob) for row in found]

    async def follow(self, after: int) -> AsyncIterator[list[Row]]:
        """Batches of events after number `after`, for ever, as they come."""
        while True:
            changed = self._changed
            if rows := self.read(after):
                after = rows[-1][0]
                yield rows
            else:
                await changed.wait()
