"""What executions used: a row each in the table `usage`, written with the end of the execution.

host's `finished` event ─► {"use": …} ─► table `usage` ─► advice, `ExecutionInfo.use`

Rows of more than `KEPT` ago are of no use to advice, and go when the gateway starts.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, delete, func, select

from mlcloud.cluster.records import now
from mlcloud.cost.ledger import Ledger
from mlcloud.cost.usage import Usage, gpu_use
from mlcloud.gateway import db
from mlcloud.models import UseInfo

KEPT = timedelta(days=92)
MOST = 10_000  # rows that advice looks at

_ADD = db.insert_into(db.usage, "execution_id", "session_id", "node_id", "share", "at", "use")
_GET = (
    select(db.usage.c.use)
    .where(db.usage.c.execution_id == bindparam("key"))
    .order_by(db.usage.c.id.desc())
    .limit(1)
)


class UsageTable:
    """Of one gateway."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with engine.begin() as connection:
            connection.execute(delete(db.usage).where(db.usage.c.at < now() - KEPT))

    def add(
        self,
        execution_id: str,
        session_id: str,
        node_id: str,
        share: float,
        use: dict[str, Any],
        connection: Connection,
    ) -> None:
        """As a part of the caller's transaction."""
        row = {
            "execution_id": execution_id,
            "session_id": session_id,
            "node_id": node_id,
            "share": str(round(share, 6)),
            "at": now(),
            "use": json.dumps(use),
        }
        _ADD.run(connection, row)

    def info(self, execution_id: str) -> UseInfo | None:
        with self._engine.connect() as connection:
            text = connection.execute(_GET, {"key": execution_id}).scalar()
        return None if text is None else use_info(json.loads(text))

    def first(self) -> datetime | None:
        """Since when there are figures."""
        with self._engine.connect() as connection:
            found: datetime | None = connection.execute(select(func.min(db.usage.c.at))).scalar()
        return found

    def since(self, begin: datetime, ledger: Ledger) -> list[Usage]:
        """Those that ended since then, oldest first, on nodes that the ledger knows."""
        offers = {node.node_id: node.offer for node in ledger.nodes}
        query = select(db.usage).where(db.usage.c.at >= begin).order_by(db.usage.c.at.desc())
        with self._engine.connect() as connection:
            rows = connection.execute(query.limit(MOST)).all()
        found = []
        for row in reversed(rows):
            offer, use = offers.get(row.node_id), json.loads(row.use)
            if offer is not None:
                found.append(
                    Usage(
                        execution_id=row.execution_id,
                        session_id=row.session_id,
                        ended_at=row.at,
                        seconds=use["seconds"],
                        cpu_seconds=use["cpu_seconds"],
                        memory_mean=use["memory_mean"],
                        memory_peak=use["memory_peak"],
                        offer=offer,
                        share=Decimal(row.share),
                        gpu=gpu_use(use.get("gpu")),
                        cpus_peak=use["cpus_peak"],
                    )
                )
        return found


def use_info(use: dict[str, Any]) -> UseInfo:
    gpu = use.get("gpu") or {}
    return UseInfo(
        seconds=use["seconds"],
        cpu_seconds=use["cpu_seconds"],
        memory_mean=use["memory_mean"],
        memory_peak=use["memory_peak"],
        gpu_mean=gpu.get("mean"),
        gpu_max=gpu.get("max"),
        gpu_memory_peak=gpu.get("memory_peak"),
    )
