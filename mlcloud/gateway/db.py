"""The gateway's tables, through SQLAlchemy Core. SQLite in WAL mode here; PostgreSQL is a URL away.

Writes are small transactions made directly on the event loop (about 0.1 ms in WAL mode, no fsync
per commit): a cell's output is ordered by the order of these calls, without a queue between. What
happens at once is one transaction (`part_of`), and the statements of a cell's way are built once:
to build one takes twice as long as to run it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Update,
    bindparam,
    create_engine,
    event,
    insert,
    inspect,
    text,
    update,
)
from sqlalchemy.schema import CreateColumn
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator


class UTC(TypeDecorator[datetime]):
    """Aware UTC datetimes in and out; SQLite keeps none of the zone itself."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, unique=True, nullable=False),
    Column("state", String, nullable=False),
    Column("detail", Text, nullable=False, default=""),
    Column("request", Text, nullable=False),
    Column("created_at", UTC, nullable=False),
    Column("epoch", Integer, nullable=False, default=0),
    Column("host_number", Integer, nullable=False, default=0),
    Column("ordinal", Integer, nullable=False, default=0),
    Column("last_event", Integer, nullable=False, default=0),
)

executions = Table(
    "executions",
    metadata,
    Column("id", String, primary_key=True),
    Column("session_id", String, nullable=False),
    Column("op", String, nullable=False),
    Column("code", Text, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("state", String, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("runs", Integer, nullable=False, default=0),
    Column("first_event", Integer, nullable=False, default=0, server_default="0"),
    Column("created_at", UTC, nullable=False),
    Column("started_at", UTC),
    Column("finished_at", UTC),
    Column("effects", Text, nullable=False, server_default=""),
    Column("changed", Integer, nullable=False, server_default="1"),  # since it was recorded
    Index("executions_of_session", "session_id", "ordinal"),
)

events = Table(
    "events",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("execution_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("blob", LargeBinary, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", String, nullable=False),
    Column("entry", Text, nullable=False),
    Column("session_id", String, nullable=False, server_default=""),
    Column("ended", BigInteger),  # microseconds since 1970; none: open, or not known
    Column("live", Integer, nullable=False, server_default="1"),  # `entries.py`
    Index("ledger_live", "live", sqlite_where=text("live > 0"), postgresql_where=text("live > 0")),
    Index("ledger_of_session", "session_id"),
    Index("ledger_ended", "ended"),
)

# What nodes cost on days that are over, by who caused it (`settled.py`): a row for each day, with
# all of it packed (`columns.py`); and executions, to be found by their ids: `paid` / `parts`
# microseconds of a node at a price. `odd`: the three as text where they are too large.
settled = Table(
    "settled",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),  # since 1970
    Column("shares", LargeBinary, nullable=False),
)
settled_executions = Table(
    "settled_executions",
    metadata,
    Column("execution_id", String, nullable=False),
    Column("day", Integer, nullable=False),
    Column("node_id", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("usd_per_hour", String, nullable=False),
    Column("on_demand", String, nullable=False),
    Column("parts", BigInteger, nullable=False),
    Column("paid", BigInteger, nullable=False),
    Column("needed", BigInteger, nullable=False),
    Column("odd", String, nullable=False),
    Index("settled_executions_by_day", "day"),
    Index("settled_of_execution", "execution_id"),
)
# One row: days before this one are settled.
horizon = Table("horizon", metadata, Column("day", Integer, primary_key=True, autoincrement=False))

# How far each session is in the store's record (`record.py`).
recorded = Table(
    "recorded",
    metadata,
    Column("id", String, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("event", Integer, nullable=False),
    Column("entry", Integer, nullable=False),
)

# What executions used, as far as it was measured (`usage.py`); `use` is JSON.
usage = Table(
    "usage",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("execution_id", String, nullable=False, index=True),
    Column("session_id", String, nullable=False),
    Column("node_id", String, nullable=False),
    Column("share", String, nullable=False),
    Column("at", UTC, nullable=False),
    Column("use", Text, nullable=False),
    Index("usage_by_time", "at"),
)

# Of the cluster, of sessions by their ids, of `user:NAME` and `job:ID` (`budgets.py`).
budgets = Table(
    "budgets",
    metadata,
    Column("whose", String, primary_key=True),
    Column("limit", String, nullable=False),
    Column("alerts", String, nullable=False),
    # Why work is refused, and in which period: JSON, empty while it is not.
    Column("stopped", Text, nullable=False, server_default=""),
)

# Executions and sessions whose cost is a job's too (`payers.py`).
charged = Table(
    "charged",
    metadata,
    Column("whose", String, primary_key=True),
    Column("of", String, primary_key=True),
)

# What sessions moved (`traffic.py`): bytes and requests.
traffic = Table(
    "traffic",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),  # since 1970
    Column("session_id", String, primary_key=True),
    Column("out", BigInteger, nullable=False),
    Column("across", BigInteger, nullable=False),
    Column("puts", BigInteger, nullable=False),
    Column("gets", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", UTC, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("target", String, nullable=False),
)


def open_database(url: str) -> Engine:
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        if engine.dialect.name == "sqlite":
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.execute("PRAGMA busy_timeout=5000")
            cursor.close()

    metadata.create_all(engine)
    _add_columns(engine)
    return engine


def _add_columns(engine: Engine) -> None:
    """Columns and indexes that came after this database was made; columns have a default."""
    for table in metadata.tables.values():
        there = {column["name"] for column in inspect(engine).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                made = CreateColumn(column).compile(dialect=engine.dialect)
                with engine.begin() as connection:
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {made}")
        for index in table.indexes:
            index.create(engine, checkfirst=True)


@contextmanager
def part_of(connection: Connection | None, engine: Engine) -> Iterator[Connection]:
    """The caller's transaction, or one of its own that ends with the block."""
    if connection is not None:
        yield connection
        return
    with writing(engine) as own:
        yield own


class Prepared:
    """A statement on every cell's way: compiled once, then run on the driver's own cursor.

        connection ─► values by the names of its `bindparam`s ─► the database's types ─► the driver

    All of its values are given; it returns nothing. It is a part of the connection's transaction.
    """

    def __init__(self, statement: Insert | Update) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, *rows: Mapping[str, Any]) -> None:
        """Once for each of `rows`."""
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, dialect)
        cursor = connection.connection.cursor()
        try:
            if len(rows) == 1:
                cursor.execute(compiled.text, compiled.values(rows[0]))
            elif rows:
                cursor.executemany(compiled.text, [compiled.values(row) for row in rows])
        finally:
            cursor.close()


class _Compiled:
    """A statement as one kind of database takes it."""

    def __init__(self, statement: Insert | Update, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        self.text = compiled.string
        self._by_place = compiled.positiontup is not None
        self._fields = [
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup or compiled.binds
        ]

    def values(self, row: Mapping[str, Any]) -> Any:
        found = [
            row[name] if convert is None else convert(row[name]) for name, convert in self._fields
        ]
        if self._by_place:
            return found
        return dict(zip((name for name, _ in self._fields), found, strict=True))


def insert_into(table: Table, *columns: str) -> Prepared:
    """An insert that gives these columns."""
    return Prepared(insert(table).values({name: bindparam(name) for name in columns}))


@cache
def update_of(table: Table, *columns: str) -> Prepared:
    """An update of these columns in the row whose `id` is given as `key`."""
    return Prepared(
        update(table)
        .where(table.c.id == bindparam("key"))
        .values({name: bindparam(f"new_{name}") for name in columns})
    )


class _Kept(threading.local):
    """A thread's connections that are kept: a new one for each transaction takes twice as long."""

    def __init__(self) -> None:
        self.by_engine: dict[Engine, Connection] = {}


_kept = _Kept()


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction of its own, on this thread's connection. Not within another one."""
    connection = _kept.by_engine.get(engine)
    if connection is None or connection.closed or connection.invalidated:
        connection = _kept.by_engine[engine] = engine.connect()
    with connection.begin():
        yield connection
