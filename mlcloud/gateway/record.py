"""The record: sessions, executions, journal and spend, appended to the store as they happen.

    tables ─ what is new ─► one chunk ─► manifests/records/<session id>/<n>.json   (signed)
    cloud's records ─────► manifests/records/cluster-<name>/<n>.json               every 30 s
    closed long ago ─► what it cost ─► the only record that stays of it            `upkeep`

The store is the record, the database its cache: a new head with an empty database reads all of it
back (`rebuild`), and another cluster with the same store takes up a session whose own is gone
(`take_over`). The number of a record is a fence: two heads that write the same one cannot both
succeed, and the one that does not has lost the session.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

import msgpack
from sqlalchemy import Connection, Engine, delete, func, insert, select

from mlcloud.cost.ledger import NodeSpan, PriceChange
from mlcloud.errors import Conflict, Damaged, StepExists
from mlcloud.gateway import books, db, entries, lease
from mlcloud.gateway.snapshots import KIND as SNAPSHOTS
from mlcloud.models import ExecutionState, SessionState
from mlcloud.store import ChunkRef, Signer, Store

log = logging.getLogger(__name__)

KIND = "records"
NAMES = "names"
FAR = (
    100  # a session that was taken over counts on from here: its former head may commit a last one
)
CHECK_S = 1.0
MOST_EVENTS = 20_000  # in one record; what is more goes into the next one

_TABLES = {"executions": db.executions, "events": db.events, "usage": db.usage}


class Fenced(Conflict):
    """Another head has this session now."""


class Record:
    """One cluster's part of it. Methods block: call them in a thread."""

    def __init__(self, engine: Engine, store: Store, signer: Signer, cluster: str) -> None:
        self._engine, self._store, self._signer = engine, store, signer
        self.cluster = cluster
        self._lock = threading.Lock()
        self._nodes: tuple[list[Any], list[Any], books.Books] = ([], [], {})
        self._checked: dict[str, float] = {}  # sessions, and when each was found to be ours

    # --- writing ----------------------------------------------------------------------------------

    def write(self, session_id: str) -> None:
        """Append what is new of a session. Raises `Fenced`, `StoreError`."""
        with self._lock:
            while self._write(session_id):
                pass

    def _write(self, session_id: str) -> bool:
        with self._engine.connect() as connection:
            row = connection.execute(
                select(db.sessions).where(db.sessions.c.id == session_id)
            ).one_or_none()
            done = connection.execute(
                select(db.recorded).where(db.recorded.c.id == session_id)
            ).one_or_none()
            if row is None:
                return False
            step, event, entry = (done.step, done.event, done.entry) if done else (0, 0, 0)
            events = connection.execute(
                select(db.events)
                .where(db.events.c.session_id == session_id, db.events.c.seq > event)
                .order_by(db.events.c.seq)
                .limit(MOST_EVENTS)
            ).all()
            executions = connection.execute(
                select(db.executions).where(
                    db.executions.c.session_id == session_id, db.executions.c.changed == 1
                )
            ).all()
            spans = _spans(connection, session_id, entry)
            moved = books.traffic(connection, session_id)
            usage = connection.execute(
                select(db.usage).where(db.usage.c.execution_id.in_([e.id for e in executions]))
            ).all()
        session = _plain(row)
        body: dict[str, Any] = {"cluster": self.cluster, "session": session}
        if events or executions or spans:
            packed = msgpack.packb(
                {
                    "executions": [_plain(each) for each in executions],
                    "events": [_plain(each) for each in events],
                    "usage": [_plain(each) for each in usage],
                    "ledger": [each[1:] for each in spans],
                    "traffic": moved,
                }
            )
            body["chunks"] = [str(ref) for ref in self._store.put_buffers([packed])]
        self._commit(session_id, step + 1, body)
        last = events[-1].seq if events else event
        mark = {
            "id": session_id,
            "step": step + 1,
            "event": last,
            "entry": max((each[0] for each in spans), default=entry),
        }
        with self._engine.begin() as connection:
            connection.execute(delete(db.recorded).where(db.recorded.c.id == session_id))
            connection.execute(insert(db.recorded).values(mark))
            # What has changed meanwhile is written with the next one.
            for each in executions:
                connection.execute(
                    db.executions.update()
                    .where(
                        db.executions.c.id == each.id,
                        db.executions.c.state == each.state,
                        db.executions.c.runs == each.runs,
                    )
                    .values(changed=0)
                )
        return len(events) == MOST_EVENTS

    def _commit(self, name: str, step: int, body: dict[str, Any]) -> None:
        try:
            self._store.commit(KIND, name, step, body, sign=self._signer.sign)
        except StepExists:
            theirs = self._store.read(KIND, name, step, verify=self._signer.verify)
            if theirs != body:
                owner = theirs.get("cluster")
                raise Fenced(_taken(owner)) from None

    def check(self, session_id: str, *, anew: bool = False) -> None:
        """Raises `Fenced` where another head has written a later record than this one's.

        Looks once a second, unless `anew`: what is committed in between, a head that took over
        passes by (`FAR`).
        """
        since = time.monotonic() - self._checked.get(session_id, -CHECK_S)
        if since < CHECK_S and not anew:
            return
        with self._engine.connect() as connection:
            mine = connection.execute(
                select(db.recorded.c.step).where(db.recorded.c.id == session_id)
            ).scalar()
        latest = self._store.latest(KIND, session_id)
        if mine is not None and latest is not None and latest > mine:
            body = self._read(session_id, latest)
            if body.get("cluster") != self.cluster:
                raise Fenced(_taken(body.get("cluster")))
        self._checked[session_id] = time.monotonic()

    def name(self, name: str, session_id: str) -> None:
        """This name stands for this session from now on."""
        step = (self._store.latest(NAMES, name) or 0) + 1
        body = {"session_id": session_id, "cluster": self.cluster}
        self._store.commit(NAMES, name, step, body, sign=self._signer.sign)

    def write_nodes(
        self, nodes: Iterable[NodeSpan | PriceChange], budgets: list[list[Any]]
    ) -> None:
        """What nodes cost, the budgets and the other books, where that has changed."""
        plain = [[type(each).__name__, entries.to_plain(each)] for each in nodes]
        with self._engine.connect() as connection:
            kept = books.read(connection)
        if (plain, budgets, kept) == self._nodes:
            return
        name = f"cluster-{self.cluster}"
        step = (self._store.latest(KIND, name) or 0) + 1
        chunks, more = (
            list(map(str, self._store.put_buffers([msgpack.packb(each)]))) for each in (plain, kept)
        )
        body = {"cluster": self.cluster, "chunks": chunks, "budgets": budgets, "books": more}
        self._commit(name, step, body)
        if step > 2:
            self._store.discard(KIND, name, step - 2)  # each has all of them
        self._nodes = (plain, budgets, kept)

    # --- sessions that are over -------------------------------------------------------------------

    def closed(self, but: Collection[str] = ()) -> dict[str, datetime]:
        """This cluster's closed sessions whose record is there in full; when it was written."""
        found = {}
        for session_id in self._store.names(KIND):
            if session_id.startswith("cluster-") or session_id in but:
                continue
            *older, last = self._store.steps(KIND, session_id)
            try:
                latest = self._store.manifest(KIND, session_id, last, verify=self._signer.verify)
            except Damaged as error:
                log.warning("whether %s is closed cannot be read: %s", session_id, error)
                continue
            if latest.body["cluster"] != self.cluster:
                continue
            if latest.body.get("folded"):
                for step in older:  # it was interrupted here
                    self._store.discard(KIND, session_id, step)
            elif latest.body["session"]["state"] == SessionState.CLOSED.value:
                found[session_id] = latest.created
            elif self._is_over(session_id):  # its end could not be recorded
                with contextlib.suppress(Fenced):
                    self.write(session_id)
        return found

    def _is_over(self, session_id: str) -> bool:
        query = select(db.sessions.c.state).where(db.sessions.c.id == session_id)
        with self._engine.connect() as connection:
            return bool(connection.execute(query).scalar() == SessionState.CLOSED.value)

    def fold(self, session_id: str) -> None:
        """Of a closed session's record only what it cost stays, here and in the store."""
        with self._lock:
            *_, last = steps = self._store.steps(KIND, session_id)
            session = self._read(session_id, last)["session"]
            with self._engine.connect() as connection:
                ledger = [each[1:] for each in _spans(connection, session_id)]
                moved = books.traffic(connection, session_id)
            kept = {"executions": [], "events": [], "ledger": ledger, "traffic": moved}
            packed = msgpack.packb(kept)
            body = {"cluster": self.cluster, "session": session, "folded": True}
            body["chunks"] = [str(ref) for ref in self._store.put_buffers([packed])]
            self._commit(session_id, last + 1, body)
            with self._engine.begin() as connection:
                for table in (db.executions, db.events):
                    connection.execute(delete(table).where(table.c.session_id == session_id))
                recorded = db.recorded
                connection.execute(
                    recorded.update().where(recorded.c.id == session_id).values(step=last + 1)
                )
            for step in steps:
                self._store.discard(KIND, session_id, step)
            name = session["name"].partition("#")[0]
            for step in self._store.steps(NAMES, name):
                body = self._store.read(NAMES, name, step, verify=self._signer.verify)
                if body["session_id"] == session_id:
                    self._store.discard(NAMES, name, step)

    # --- reading ----------------------------------------------------------------------------------

    def nodes(self) -> list[NodeSpan | PriceChange]:
        """What the store knows of this cluster's nodes and their prices."""
        name = f"cluster-{self.cluster}"
        step = self._store.latest(KIND, name)
        if step is None:
            return []
        plain = msgpack.unpackb(self._chunks(self._read(name, step)["chunks"]))
        return [_node_from_plain(each) for each in plain]

    def budgets(self) -> list[list[Any]]:
        """What the store knows of this cluster's budgets, as `Budgets.plain` gave them."""
        name = f"cluster-{self.cluster}"
        step = self._store.latest(KIND, name)
        return [] if step is None else list(self._read(name, step).get("budgets", []))

    def rebuild(self) -> int:
        """Fill an empty database with this cluster's sessions; how many there were."""
        with self._engine.connect() as connection:
            if connection.execute(select(func.count()).select_from(db.sessions)).scalar():
                return 0
        count = 0
        for session_id in self._store.names(KIND):
            if session_id.startswith("cluster-"):
                continue
            step = self._store.latest(KIND, session_id)
            if step is not None and self._read(session_id, step)["cluster"] == self.cluster:
                self._load(session_id, step, taken=False)
                count += 1
        self._fill_books()
        return count

    def _fill_books(self) -> None:
        name = f"cluster-{self.cluster}"
        step = self._store.latest(KIND, name)
        chunks = [] if step is None else self._read(name, step).get("books", [])
        if chunks:
            with self._engine.begin() as connection:
                books.fill(connection, msgpack.unpackb(self._chunks(chunks)))

    def let_go_of_lost(self) -> None:
        """Sessions of this database that another cluster has taken up meanwhile are closed here."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(db.sessions).where(db.sessions.c.state != SessionState.CLOSED.value)
            ).all()
        for row in rows:
            try:
                self.check(row.id)
            except Fenced as error:
                log.warning("session %s: %s", row.name, error)
                self.let_go(row.id, str(error))

    def let_go(self, session_id: str, why: str) -> None:
        """A session that is another cluster's is closed in this database; its name is free here."""
        sessions = db.sessions
        with self._engine.begin() as connection:
            connection.execute(
                sessions.update()
                .where(sessions.c.id == session_id, sessions.c.state != SessionState.CLOSED.value)
                .values(
                    state=SessionState.CLOSED.value,
                    detail=why,
                    name=sessions.c.name + f"#{session_id}",
                )
            )

    def take_over(self, name: str) -> str | None:
        """Take up a session of this name whose own cluster is gone: its id, None if there is none.

        Raises `Conflict` where its cluster is alive, or another one was faster.
        """
        at = self._store.latest(NAMES, name)
        if at is None:
            return None
        found = self._store.read(NAMES, name, at, verify=self._signer.verify)
        session_id, owner = found["session_id"], found["cluster"]
        step = self._store.latest(KIND, session_id)
        if step is None:
            return None
        body = self._read(session_id, step)
        if body["session"]["state"] == SessionState.CLOSED.value:
            return None
        life = lease.sign_of_life(self._store, owner)
        if owner != self.cluster and life is not None and life[1] < lease.LEASE_S:
            raise Conflict(
                f"session {name!r} is held by the cluster {owner}, which is alive: work with it "
                "there, or take that cluster down first"
            )
        try:
            self._commit(session_id, step + 1, {**body, "cluster": self.cluster, "chunks": []})
        except Fenced:
            raise Conflict(
                f"session {name!r} was written by another cluster just now: try again to be told "
                "which one has it"
            ) from None
        self._load(session_id, step + 1, taken=owner != self.cluster)
        self.name(name, session_id)
        return str(session_id)

    def _read(self, name: str, step: int) -> dict[str, Any]:
        return self._store.read(KIND, name, step, verify=self._signer.verify)

    def _chunks(self, refs: list[str]) -> bytes:
        return bytes(self._store.get_buffer([ChunkRef.parse(text) for text in refs]))

    def _load(self, session_id: str, last: int, *, taken: bool) -> None:
        executions: dict[str, dict[str, Any]] = {}
        events: list[dict[str, Any]] = []
        ledger: list[list[str]] = []
        moved: dict[int, list[Any]] = {}
        usage: dict[str, dict[str, Any]] = {}
        session: dict[str, Any] = {}
        for step in self._store.steps(KIND, session_id):
            body = self._read(session_id, step)
            session = body["session"]
            if body.get("chunks"):
                try:
                    packed = msgpack.unpackb(self._chunks(body["chunks"]))
                except Damaged as error:
                    log.error("a part of the record of %s is lost: %s", session_id, error)
                    continue
                executions.update({each["id"]: each for each in packed["executions"]})
                events += packed["events"]
                usage.update({each["execution_id"]: each for each in packed.get("usage", [])})
                ledger += packed["ledger"]
                moved.update({each[0]: each for each in packed.get("traffic", [])})
        safe = set(self._store.steps(SNAPSHOTS, session_id))
        for each in executions.values():
            # Its end was on its way to the record when the head died; its state is there.
            running = each["state"] in (ExecutionState.RUNNING.value, ExecutionState.FINISHED.value)
            if running and each["ordinal"] in safe:
                each["state"] = ExecutionState.SAFE.value
                each["finished_at"] = each["finished_at"] or each["started_at"]
        session["ordinal"] = max(
            [session["ordinal"], *safe, *(each["ordinal"] for each in executions.values())]
        )
        if taken:
            session["ordinal"] += FAR
            session["host_number"] = 0
            known = SessionState.PARKED if session["epoch"] else SessionState.STARTING
            session["state"], session["detail"] = known.value, ""
        mark = {"id": session_id, "step": last, "entry": 0}
        mark["event"] = max((each["seq"] for each in events), default=0)
        session["last_event"] = max(session["last_event"], mark["event"])
        with self._engine.begin() as connection:
            # It may have been here before, and come back: what was here is older.
            connection.execute(delete(db.sessions).where(db.sessions.c.id == session_id))
            connection.execute(delete(db.recorded).where(db.recorded.c.id == session_id))
            for table in _TABLES.values():
                connection.execute(delete(table).where(table.c.session_id == session_id))
            connection.execute(insert(db.sessions).values(_from_plain(db.sessions, session)))
            for row in usage.values():
                row.pop("id")  # of the table that it was in
            for name, rows in (
                ("executions", executions.values()),
                ("events", events),
                ("usage", usage.values()),
            ):
                table = _TABLES[name]
                for row in rows:
                    connection.execute(insert(table).values(_from_plain(table, row)))
            books.take_traffic(connection, session_id, list(moved.values()))
            here = {(kind, entry) for _, kind, entry in _spans(connection, session_id)}
            rows = [entries.row_of(*each) for each in ledger if tuple(each) not in here]
            if rows:
                connection.execute(insert(db.ledger), rows)
            highest = connection.execute(select(func.max(db.ledger.c.id))).scalar()
            mark["entry"] = highest or 0
            connection.execute(insert(db.recorded).values(mark))


def _taken(cluster: Any) -> str:
    return (
        f"the cluster {cluster} has this session now: it went on there when this one gave no sign "
        "of life; nothing of what runs here is kept. Work with it there, or take that cluster down "
        "and attach the session here again"
    )


def _spans(connection: Connection, session_id: str, after: int = 0) -> list[list[Any]]:
    """The ledger's entries of a session: id, kind, entry."""
    return [
        [each.id, each.kind, each.entry]
        for each in connection.execute(
            select(db.ledger)
            .where(db.ledger.c.id > after, db.ledger.c.session_id.in_([session_id, ""]))
            .order_by(db.ledger.c.id)
        )
        # Older rows do not say whose they are; those of nodes are nobody's.
        if each.session_id or json.loads(each.entry).get("session_id") == session_id
    ]


def _plain(row: Any) -> dict[str, Any]:
    return {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in row._mapping.items()
    }


def _from_plain(table: Any, plain: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for column in table.columns:
        if column.name in plain:
            value = plain[column.name]
            is_time = isinstance(column.type, db.UTC) and value is not None
            found[column.name] = datetime.fromisoformat(value) if is_time else value
    return found


def _node_from_plain(plain: list[Any]) -> Any:
    if len(plain) == 2:
        return entries.from_plain(*plain)
    node_id, offer, started, ended, on_demand = plain  # as it was recorded before 0.2
    fields = {"node_id": node_id, "offer": offer, "started_at": started, "ended_at": ended}
    return entries.from_plain("NodeSpan", {**fields, "on_demand_usd_per_hour": on_demand})
