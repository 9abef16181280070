"""Who a budget is for: the cluster, a session, a user, a job; what each has cost, and what runs.

    "cluster"      all nodes, the head included
    "s-…"          a session's part of its nodes
    "user:NAME"    all sessions of this owner, those that are closed too
    "job:ID"       what its workers hold (`gateway/jobs`), and the sessions and executions that were
                   charged to it: `charge`

A user is who a session was made for (`SessionRequest.owner`): on an embedded cluster the user of
the operating system. An execution is charged to a job by its option `job`, and keeps that when it
runs again; a session that works for one job alone is charged as a whole, with its idle time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import NodeType
from mlcloud.cost.budgets import check_scope
from mlcloud.cost.ledger import Placement
from mlcloud.gateway import db
from mlcloud.gateway.billing import is_worker

if TYPE_CHECKING:
    from mlcloud.gateway.execution import Execution
    from mlcloud.gateway.session import Session
    from mlcloud.gateway.sessions import Sessions

CLUSTER = "cluster"
_USER, _JOB = "user:", "job:"
_NOTHING = Decimal(0)


def scope(session_id: str | None, user: str | None, job: str | None) -> str:
    """As the table `budgets` names it. Raises `UsageError` for two at once."""
    check_scope(None, session_id, user, job)
    if user is not None:
        return _USER + user
    return CLUSTER if session_id is job is None else session_id or f"{_JOB}{job}"


def is_cluster(whose: str) -> bool:
    """Also one of several limits of it: "cluster/1", …"""
    return whose.partition("/")[0] == CLUSTER


def job_scope(job: str) -> str:
    return _JOB + job


class Payers:
    """Of one gateway."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._services = sessions.services
        self._owned: dict[str, frozenset[str]] = {}
        self._charged: dict[str, dict[str, None]] = {}
        self._ended: dict[str, tuple[int, Decimal]] = {}  # executions: runs, dollars
        with self._services.engine.connect() as connection:
            for row in connection.execute(select(db.charged)):
                self._charged.setdefault(row.whose, {})[row.of] = None
            table = db.sessions.c
            for row in connection.execute(select(table.id, table.request)):
                self._own(row.id, json.loads(row.request).get("owner"))

    def _own(self, session_id: str, owner: str | None) -> None:
        ids = self._owned.get(owner or "", frozenset())
        if session_id not in ids:
            self._owned[owner or ""] = ids | {session_id}

    def known(self, session: Session) -> None:
        """A session that may begin to spend."""
        self._own(session.id, session.request.owner)

    def charge(self, whose: str, of: str) -> None:
        """What this execution or session (by its id) costs is that job's from now on."""
        there = self._charged.setdefault(whose, {})
        if of not in there:
            there[of] = None
            with db.writing(self._services.engine) as connection:
                connection.execute(insert(db.charged).values(whose=whose, of=of))

    # --- who --------------------------------------------------------------------------------------

    def scopes(self, session: Session, job: str | None) -> list[str]:
        """Whose budgets cover what this session does, for this job."""
        jobs = [each for each, of in self._charged.items() if session.id in of]
        return [
            session.id,
            *([_USER + session.request.owner] if session.request.owner else []),
            *dict.fromkeys([*jobs, *([job_scope(job)] if job else [])]),
            CLUSTER,
        ]

    def covers(self, whose: str, session: Session) -> bool:
        """Whether all that the session does is of this scope."""
        if is_cluster(whose) or whose == session.id:
            return True
        if whose.startswith(_USER):
            return session.request.owner == whose.removeprefix(_USER)
        return session.id in self._charged.get(whose, ())

    def covered(self, whose: str) -> list[Session]:
        return [each for each in self._sessions if self.covers(whose, each)]

    def executions(self, whose: str) -> Iterator[tuple[Session, Execution]]:
        """Of a job: those that run or wait in sessions which are not its own."""
        charged = self._charged.get(whose, {})
        for session in self._sessions if charged else ():
            if not self.covers(whose, session):
                for each in [session.current, *session.queue]:
                    if each is not None and each.id in charged and not each.ended:
                        yield session, each

    def words(self, whose: str) -> str:
        """As a message names it."""
        kind, _, name = whose.partition(":")
        if is_cluster(whose):
            return "the cluster"
        if name:
            return f"{kind} {name!r}"
        names = [each.request.name for each in self._sessions if each.id == whose]
        return f"session {names[0]!r}" if names else "a session"

    def fields(self, whose: str) -> dict[str, str | None]:
        """As a `BudgetInfo` has it."""
        kind, _, name = whose.partition(":")
        if name:
            return {"session": None, kind: name}
        names = {each.id: each.request.name for each in self._sessions}
        return {"session": None if is_cluster(whose) else names.get(whose, whose)}

    # --- dollars ----------------------------------------------------------------------------------

    def spent(self, whose: str, since: datetime | None) -> Decimal:
        billing = self._services.billing
        if is_cluster(whose):
            return billing.spent(since=since)
        if whose.startswith(_JOB):
            return self._spent_by_job(whose)
        if whose.startswith(_USER):
            for session in self._sessions:
                self.known(session)
            return billing.spent(self._owned.get(whose.removeprefix(_USER), frozenset()), since)
        return billing.spent(whose, since)

    def _spent_by_job(self, whose: str) -> Decimal:
        billing = self._services.billing
        charged = self._charged.get(whose, {})
        sessions = frozenset(each for each in charged if each.startswith("s-"))
        total = billing.spent(sessions | {whose})
        for each in charged:
            if each not in sessions:
                total += self._spent_by_execution(each, sessions)
        return total

    def _spent_by_execution(self, execution_id: str, apart_from: frozenset[str]) -> Decimal:
        billing = self._services.billing
        spans = billing.ledger.spans_of(execution_id)
        if any(span.session_id in apart_from for span in spans):
            return Decimal(0)
        known = self._ended.get(execution_id)
        if known is not None and known[0] >= len(spans):
            return known[1]
        usd = billing.spent_by(execution_id)
        # Without spans it has not begun, or its days are settled.
        if usd and all(span.ended_at is not None for span in spans):
            self._ended[execution_id] = len(spans), usd
        return usd

    def per_hour(self, whose: str) -> Decimal:
        """Dollars an hour, now."""
        billing = self._services.billing
        if is_cluster(whose):
            return billing.per_hour()
        ids = {each.id for each in self.covered(whose)}
        if whose.startswith(_JOB):
            ids.add(whose)
        ids |= {session.id for session, each in self.executions(whose) if session.current is each}
        return sum((billing.per_hour(each) for each in ids), Decimal(0))

    def owed(self, whose: str, stop_s: float) -> Decimal:
        """What is billed after a stop all the same."""
        ends = now() + timedelta(seconds=stop_s)
        if is_cluster(whose):
            return self._services.billing.owed(ends)
        ids = frozenset(each.id for each in self.covered(whose))
        if whose.startswith(_JOB):
            ids |= {whose}
        return self._services.billing.owed(ends, ids) if ids else Decimal(0)

    def to_start(self, session: Session, least_s: float) -> tuple[Decimal, Decimal]:
        """What a node for this session costs at least, for the cluster and for the session; 0 where
        it has one. Of a node that is there and has room it takes over what that still owes."""
        wanted = session.host_request
        kind = wanted.node_type
        if session.host is not None:
            return _NOTHING, _NOTHING
        billing = self._services.billing
        share = Decimal(str(min(1.0, wanted.share)))
        there = [
            billing.owed_by(node.id, now() + timedelta(seconds=least_s))
            for node in self._services.cluster.cloud.instances()
            if node.alive
            and is_worker(node)
            and _fits(node.offer, kind)
            and sum(_held(billing.ledger.placements_on(node.id))) + wanted.share <= 1
        ]
        if there:
            return _NOTHING, max(there) * share
        costs = [
            billing.least_of(offer, least_s)
            for offer in self._services.cluster.cloud.offers()
            if _fits(offer, kind) and (kind.market != "on-demand" or offer.market == "on-demand")
        ]
        whole = min(costs, default=_NOTHING)
        return whole, whole * share


def _fits(offer: Offer, kind: NodeType) -> bool:
    return (
        offer.cpus >= kind.cpus
        and offer.memory_bytes >= kind.memory_bytes
        and offer.accelerator == kind.accelerator
        and offer.accelerator_count >= kind.accelerator_count
    )


def _held(placements: list[Placement]) -> Iterator[float]:
    return (float(each.share) for each in placements if each.ended_at is None)
