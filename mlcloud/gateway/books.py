"""What a cluster's books have beside nodes and sessions, for the store's record.

    charged   executions and sessions whose cost is a job's too (`payers`)
    jobs      what jobs' workers held of nodes: entries of the ledger that are no session's
    traffic   what a session moved, by day (`traffic`): with the session's own record

A head made anew reads them back where its own tables are empty, so that budgets of jobs and
estimates go on where they were.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from mlcloud.gateway import db, entries

Books = dict[str, list[Any]]
_JOBS = db.ledger.c.session_id.between("job:", "job;")  # by its index


def read(connection: Connection) -> Books:
    jobs = select(db.ledger.c.kind, db.ledger.c.entry).where(_JOBS).order_by(db.ledger.c.id)
    return {
        name: [list(row) for row in connection.execute(query)]
        for name, query in (("charged", select(db.charged)), ("jobs", jobs))
    }


def fill(connection: Connection, books: Books) -> None:
    """Into tables that are empty; others know better."""
    pairs = [{"whose": whose, "of": of} for whose, of in books.get("charged", ())]
    if pairs and not connection.execute(select(func.count()).select_from(db.charged)).scalar():
        connection.execute(insert(db.charged), pairs)
    rows = [entries.row_of(kind, entry) for kind, entry in books.get("jobs", ())]
    known = select(func.count()).select_from(db.ledger).where(_JOBS)
    if rows and not connection.execute(known).scalar():
        connection.execute(insert(db.ledger), rows)


def traffic(connection: Connection, session_id: str) -> list[list[Any]]:
    """Rows of a session: the day, and what `Moved` has."""
    query = select(db.traffic).where(db.traffic.c.session_id == session_id)
    return [[each.day, *each[2:]] for each in connection.execute(query)]


def take_traffic(connection: Connection, session_id: str, rows: list[list[Any]]) -> None:
    """These instead of what is there of the session."""
    connection.execute(delete(db.traffic).where(db.traffic.c.session_id == session_id))
    names = [each.name for each in db.traffic.columns if each.name != "session_id"]
    plain = [{"session_id": session_id, **dict(zip(names, row, strict=True))} for row in rows]
    if plain:
        connection.execute(insert(db.traffic), plain)
