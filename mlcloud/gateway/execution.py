"""One execution as the gateway keeps it: what was asked, how often it ran, what became of it.

    queued ─► running ─► finished ─► safe
       │         └────► failed           (the cell raised; its state is snapshotted all the same)
       └─ cancelled counts as failed

The row is written before the cell starts and after it ends. The id comes from the client, so a
retried request finds the row and runs nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgpack
from sqlalchemy import Connection, Engine, Row, bindparam, select, update

from mlcloud.cluster.records import now
from mlcloud.cost.ledger import ExecutionSpan
from mlcloud.gateway import db
from mlcloud.gateway.billing import Billing
from mlcloud.models import ExecutionState

LOOKING = ("get", "debug")  # operations that change nothing, and are never run twice


@dataclass
class Execution:
    """`op` is `cell`, or an operation of the kernel (`get`, `load`). `options` as in
    `models.Frame`."""

    id: str
    session_id: str
    op: str
    code: str
    shipment: dict[str, Any] | None
    options: dict[str, Any]
    ordinal: int
    first_event: int = 0
    state: ExecutionState = ExecutionState.QUEUED
    runs: int = 0
    created_at: datetime = field(default_factory=now)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    effects: list[str] = field(default_factory=list)  # what it was seen to do outside
    interrupted: bool = False
    outcome: asyncio.Future[dict[str, Any]] | None = None

    @property
    def label(self) -> str:
        """The cell's number in its notebook; its own where it came from none."""
        cell = self.options.get("cell") or {}
        return str(cell.get("number") or self.ordinal)

    @property
    def brings_names(self) -> bool:
        """Whether values of the notebook's come with it."""
        return bool(self.shipment and self.shipment.get("wire", {}).get("groups"))

    @property
    def objects(self) -> list[str]:
        """The chunks of what comes with it and does not travel along, as `hash:size`."""
        named = ((self.shipment or {}).get("objects") or {}).values()
        return [chunk for chunks in named for chunk in chunks]

    @property
    def ended(self) -> bool:
        return self.state in (
            ExecutionState.FINISHED,
            ExecutionState.SAFE,
            ExecutionState.FAILED,
        )

    def request(
        self, mean_time_to_preemption_s: float, usd_per_hour: Decimal, simulated: bool
    ) -> bytes:
        """What the kernel gets with the code."""
        packed: bytes = msgpack.packb(
            {
                "op": self.op,
                "execution_id": self.id,
                "step": self.ordinal,
                "shipment": self.shipment,
                "snapshot": self.op not in LOOKING,
                "name": self.options.get("name"),
                "binding": self.options.get("binding"),
                "cell": self.options.get("cell"),
                "mean_time_to_preemption_s": mean_time_to_preemption_s,
                "usd_per_hour": str(usd_per_hour),
                "simulated": simulated,
            }
        )
        return packed


_ADD = db.insert_into(
    db.executions,
    *("id", "session_id", "op", "code", "request", "state", "ordinal"),
    *("runs", "first_event", "created_at", "started_at"),
)
_NUMBER = db.update_of(db.sessions, "ordinal")
_SAVE = db.update_of(
    db.executions, "state", "runs", "started_at", "finished_at", "effects", "changed"
)
_GET = select(db.executions).where(db.executions.c.id == bindparam("key"))


class Executions:
    """The table of executions. A `connection` is the transaction that a write is to be part of."""

    def __init__(self, engine: Engine, billing: Billing) -> None:
        self._engine = engine
        self._billing = billing

    def add(self, execution: Execution, span: ExecutionSpan | None = None) -> bool:
        """Whether it is a new one: an id that is there already changes nothing.

        `span`, where it begins to run at once, is written in the same transaction.
        """
        row = {
            "id": execution.id,
            "session_id": execution.session_id,
            "op": execution.op,
            "code": execution.code,
            "request": msgpack.packb([execution.shipment, execution.options]),
            "state": execution.state.value,
            "ordinal": execution.ordinal,
            "runs": execution.runs,
            "first_event": execution.first_event,
            "created_at": execution.created_at,
            "started_at": execution.started_at,
        }
        number = {"key": execution.session_id, "new_ordinal": execution.ordinal}
        try:
            with db.writing(self._engine) as connection:
                _ADD.run(connection, row)
                _NUMBER.run(connection, number)
                if span is not None:
                    self._billing.write(span, connection)
        except self._engine.dialect.loaded_dbapi.IntegrityError:
            return False
        return True

    def save(self, execution: Execution, connection: Connection | None = None) -> None:
        values = {
            "key": execution.id,
            "new_state": execution.state.value,
            "new_runs": execution.runs,
            "new_started_at": execution.started_at,
            "new_finished_at": execution.finished_at,
            "new_changed": 1,
            "new_effects": json.dumps(execution.effects) if execution.effects else "",
        }
        with db.part_of(connection, self._engine) as transaction:
            _SAVE.run(transaction, values)

    def get(self, execution_id: str) -> Execution | None:
        with self._engine.connect() as connection:
            row = connection.execute(_GET, {"key": execution_id}).one_or_none()
        return None if row is None else _from_row(row)

    def latest(self, session_id: str, limit: int = 50) -> list[Execution]:
        """The last cells, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(db.executions)
                .where(db.executions.c.session_id == session_id, db.executions.c.op == "cell")
                .order_by(db.executions.c.ordinal.desc())
                .limit(limit)
            ).all()
        return [_from_row(row) for row in reversed(rows)]

    def all_of(self, session_id: str) -> list[Execution]:
        """Every execution of the session, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(db.executions)
                .where(db.executions.c.session_id == session_id)
                .order_by(db.executions.c.ordinal)
            ).all()
        return [_from_row(row) for row in rows]

    def labels(self, session_id: str, steps: Iterable[int]) -> list[str]:
        """The notebook's numbers of these cells; a step that is not here keeps its own number."""
        wanted = list(steps)
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(db.executions).where(
                    db.executions.c.session_id == session_id,
                    db.executions.c.ordinal.in_(wanted),
                )
            ).all()
        found = {row.ordinal: _from_row(row).label for row in rows}
        return [found.get(step, str(step)) for step in wanted]

    def unfinished(self, session_id: str) -> list[Execution]:
        """What a killed gateway left: running first, then queued, in their order."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(db.executions)
                .where(
                    db.executions.c.session_id == session_id,
                    db.executions.c.state.in_(
                        [ExecutionState.QUEUED.value, ExecutionState.RUNNING.value]
                    ),
                )
                .order_by(db.executions.c.ordinal)
            ).all()
        return [_from_row(row) for row in rows]

    def unsafe(self, session_id: str, *, after: int) -> list[Execution]:
        """What has finished and is not in the store, after the cell numbered `after`."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(db.executions)
                .where(
                    db.executions.c.session_id == session_id,
                    db.executions.c.state == ExecutionState.FINISHED.value,
                    db.executions.c.op.not_in(LOOKING),
                    db.executions.c.ordinal > after,
                )
                .order_by(db.executions.c.ordinal)
            ).all()
        return [_from_row(row) for row in rows]

    def safe_up_to(self, session_id: str, ordinal: int, connection: Connection) -> None:
        """A state that is in the store has in it what all cells before it have done."""
        connection.execute(
            update(db.executions)
            .where(
                db.executions.c.session_id == session_id,
                db.executions.c.state == ExecutionState.FINISHED.value,
                db.executions.c.op.not_in(LOOKING),
                db.executions.c.ordinal < ordinal,
            )
            .values(state=ExecutionState.SAFE.value, changed=1)
        )

    def counts(self, session_id: str) -> tuple[int, int]:
        """Cells that finished without an error, and those of them whose state is in the store."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                select(db.executions.c.state).where(
                    db.executions.c.session_id == session_id, db.executions.c.op == "cell"
                )
            ).scalars()
            states = list(rows)
        safe = states.count(ExecutionState.SAFE.value)
        return safe + states.count(ExecutionState.FINISHED.value), safe


def _from_row(row: Row[Any]) -> Execution:
    shipment, options = msgpack.unpackb(row.request, strict_map_key=False)
    return Execution(
        id=row.id,
        session_id=row.session_id,
        op=row.op,
        code=row.code,
        shipment=shipment,
        options=options,
        ordinal=row.ordinal,
        first_event=row.first_event,
        state=ExecutionState(row.state),
        runs=row.runs,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        effects=json.loads(row.effects or "[]"),
    )
