"""The ledger's table: entries as rows, appended, and read back as far as they still matter.

    live   1  not settled yet          2  settled up to the horizon, and going on then
           3  a node, or its price     0  settled in full      -1  entered again since

Rows are never changed but for `live` (and `ended`, which older databases lack). A row that is
entered twice, as after a crash between writing and knowing of it, has the same identity and counts
once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, bindparam, func, or_, select, update

from mlcloud.cluster.offers import Offer
from mlcloud.cost.ledger import Entry, ExecutionSpan, NodeSpan, Placement, PriceChange
from mlcloud.cost.pieces import microseconds
from mlcloud.gateway import db

NEW, STRADDLES, ALWAYS, SETTLED, SUPERSEDED = 1, 2, 3, 0, -1

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_ADD = db.insert_into(db.ledger, "kind", "entry", "session_id", "ended", "live")
_SET = db.Prepared(
    update(db.ledger)
    .where(db.ledger.c.id == bindparam("key"))
    .values(live=bindparam("new_live"), ended=bindparam("new_ended"))
)


class Row(NamedTuple):
    id: int
    live: int
    entry: Entry


def add(entry: Entry, connection: Connection) -> None:
    _ADD.run(connection, row_of(type(entry).__name__, json.dumps(to_plain(entry))))


def row_of(kind: str, text: str) -> dict[str, Any]:
    """A new row for an entry in this form, as the store's record keeps it too."""
    plain = json.loads(text)
    ended = plain.get("ended_at")
    return {
        "kind": kind,
        "entry": text,
        "session_id": plain.get("session_id", ""),
        "ended": stamp(datetime.fromisoformat(ended)) if ended else None,
        "live": NEW,
    }


def live(connection: Connection) -> list[Row]:
    """What is not settled in full, in the order in which it became known."""
    return _read(connection, select(db.ledger).where(db.ledger.c.live > 0))


def not_over(connection: Connection, moment: datetime) -> list[Row]:
    """As `live`, and what was settled since that moment."""
    return _read(connection, _not_over(moment))


def _not_over(moment: datetime) -> Select[Any]:
    table = db.ledger.c
    return select(db.ledger).where(
        or_(table.live > 0, (table.ended > stamp(moment)) & (table.live == SETTLED))
    )


def count_over(connection: Connection, moment: datetime) -> int:
    """How many rows `not_over` would read."""
    query = select(func.count()).select_from(_not_over(moment).subquery())
    return connection.execute(query).scalar() or 0


def of_session(connection: Connection, session_id: str) -> list[Row]:
    """All of a session, and the nodes."""
    table = db.ledger.c
    query = select(db.ledger).where(or_(table.session_id == session_id, table.live == ALWAYS))
    return _read(connection, query)


def mark(connection: Connection, rows: Iterable[tuple[Row, int]]) -> None:
    """Give each row another `live`."""
    values = [
        {"key": row.id, "new_live": live, "new_ended": _ended(row.entry)}
        for row, live in rows
        if row.live != live
    ]
    _SET.run(connection, *values)


def _ended(entry: Entry) -> int | None:
    at = None if isinstance(entry, PriceChange) else entry.ended_at
    return None if at is None else stamp(at)


def _read(connection: Connection, query: Select[Any]) -> list[Row]:
    rows = connection.execute(query.order_by(db.ledger.c.id))
    return [Row(each.id, each.live, from_plain(each.kind, json.loads(each.entry))) for each in rows]


def stamp(moment: datetime) -> int:
    """Microseconds since 1970."""
    return microseconds(_EPOCH, moment)


# --- as JSON --------------------------------------------------------------------------------------


def to_plain(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in vars(entry).items():
        if isinstance(value, datetime):
            plain[key] = value.isoformat()
        elif isinstance(value, Offer):
            plain[key] = {
                **asdict(value),
                "usd_per_hour": str(value.usd_per_hour),
                "as_of": value.as_of.isoformat(),
            }
        else:
            plain[key] = value if value is None or isinstance(value, (str, bool)) else str(value)
    return plain


def from_plain(kind: str, plain: dict[str, Any]) -> Entry:
    for key in ("started_at", "ended_at", "at"):
        if plain.get(key) is not None:
            plain[key] = datetime.fromisoformat(plain[key])
    for key in ("share", "usd_per_hour", "on_demand_usd_per_hour"):
        if plain.get(key) is not None:
            plain[key] = Decimal(plain[key])
    if kind == "Placement":
        return Placement(**plain)
    if kind == "ExecutionSpan":
        return ExecutionSpan(**plain)
    if kind == "PriceChange":
        return PriceChange(**plain)
    offer = plain["offer"]
    offer["usd_per_hour"] = Decimal(offer["usd_per_hour"])
    offer["as_of"] = date.fromisoformat(offer["as_of"])
    return NodeSpan(**{**plain, "offer": Offer(**offer)})
