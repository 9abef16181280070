"""The gateway's ledger: what the meter needs to know, appended to the database as it happens.

cloud records ─► NodeSpan                     (the cloud keeps these itself)
sessions      ─► Placement, ExecutionSpan ─► table `ledger` ─► the same ledger after a restart
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, select

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.cost.ledger import ExecutionSpan, Ledger, NodeSpan, Placement
from mlcloud.cost.meter import Bill as MeterBill
from mlcloud.cost.meter import cluster_cost, execution_cost, session_cost, usd_per_hour_now
from mlcloud.cost.prices import on_demand_usd_per_hour
from mlcloud.gateway import db

_ADD = db.insert_into(db.ledger, "kind", "entry")


class Billing:
    """Entries in, bills out."""

    def __init__(self, engine: Engine, offers: list[Offer]) -> None:
        self._engine = engine
        self._offers = offers
        self.ledger = Ledger()
        with engine.connect() as connection:
            for row in connection.execute(select(db.ledger).order_by(db.ledger.c.id)):
                self.ledger.append(_from_json(row.kind, json.loads(row.entry)))

    def see(self, instances: list[Instance]) -> None:
        """Bring the nodes up to date with the cloud's records."""
        known = {node.node_id: node for node in self.ledger.nodes}
        for instance in instances:
            node = known.get(instance.id)
            if node is None or node.ended_at != instance.ended_at:
                self.ledger.append(
                    NodeSpan(
                        node_id=instance.id,
                        offer=instance.offer,
                        started_at=instance.launched_at,
                        ended_at=instance.ended_at,
                        on_demand_usd_per_hour=on_demand_usd_per_hour(instance.offer, self._offers),
                    )
                )

    def recall(self, recorded: list[NodeSpan], instances: list[Instance]) -> None:
        """Nodes that the store knows of, and the cloud's own records do not: they are gone."""
        known = {each.id for each in instances}
        for node in recorded:
            if node.node_id not in known:
                self.ledger.append(replace(node, ended_at=node.ended_at or now()))

    def add(self, entry: Placement | ExecutionSpan, connection: Connection | None = None) -> None:
        """Enter it, as a part of the caller's transaction where one is given.

        Entering it again after that has failed is fine: the same span counts once.
        """
        with db.part_of(connection, self._engine) as transaction:
            self.write(entry, transaction)
        self.ledger.append(entry)

    def write(self, entry: Placement | ExecutionSpan, connection: Connection) -> None:
        """Only into the table; `ledger.append` it when that is committed."""
        row = {"kind": type(entry).__name__, "entry": json.dumps(_plain(entry))}
        _ADD.run(connection, row)

    def open_placements(self, session_id: str) -> list[Placement]:
        return [p for p in self.ledger.placements_of(session_id) if p.ended_at is None]

    def close_placements(self, session_id: str, at: datetime | None = None) -> None:
        """The session holds no node any more (`at` the latest when its node ended)."""
        for placement in self.open_placements(session_id):
            ends = at or now()
            node = next((n for n in self.ledger.nodes if n.node_id == placement.node_id), None)
            if node is not None and node.ended_at is not None:
                ends = min(ends, node.ended_at)
            self.add(
                Placement(
                    placement.session_id,
                    placement.node_id,
                    placement.share,
                    placement.started_at,
                    ends,
                    placement.only_on_spot,
                )
            )

    def execution(self, execution_id: str) -> MeterBill:
        return execution_cost(self.ledger, execution_id, now())

    def session(self, session_id: str) -> MeterBill:
        return session_cost(self.ledger, session_id, now())

    def cluster(self) -> MeterBill:
        return cluster_cost(self.ledger, now())

    def per_hour(self, session_id: str | None = None) -> Decimal:
        return usd_per_hour_now(self.ledger, now(), session_id)


def is_worker(instance: Instance) -> bool:
    return instance.node_type != HEAD


def _plain(entry: Placement | ExecutionSpan) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in vars(entry).items():
        if isinstance(value, datetime):
            plain[key] = value.isoformat()
        else:
            plain[key] = str(value) if isinstance(value, Decimal) else value
    return plain


def _from_json(kind: str, plain: dict[str, Any]) -> Placement | ExecutionSpan:
    for key in ("started_at", "ended_at"):
        plain[key] = datetime.fromisoformat(plain[key]) if plain[key] else None
    if kind == "Placement":
        plain["share"] = Decimal(plain["share"])
        return Placement(**plain)
    return ExecutionSpan(**plain)
