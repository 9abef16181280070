"""Budgets in force: looked at every second, on the head, whether or not a notebook is there.

    every `LOOK_S`, for each budget: spent, rate, seconds that a stop takes ─► cost.budgets.look
        alert ─► a line under the running cells, once a period
        stop  ─► cell: interrupted, BudgetExceeded · session: checkpointed, parked · cluster: all
                 of its sessions parked and its nodes given back
    a new cell ─► refused while a budget that covers it is spent

`--max-cost` is a budget of one execution, and lives with it; the others are in the table `budgets`,
and with the nodes in the store's record, so that a new head goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from mlcloud.cluster.records import now
from mlcloud.cost.budgets import ALERTS, Limit, Look, look
from mlcloud.errors import BudgetExceeded, MLCloudError, UsageError
from mlcloud.gateway import db, hosting
from mlcloud.models import BudgetInfo
from mlcloud.units import format_usd, format_usd_per_hour

if TYPE_CHECKING:
    from mlcloud.gateway.execution import Execution
    from mlcloud.gateway.session import Session
    from mlcloud.gateway.sessions import Sessions

log = logging.getLogger(__name__)

LOOK_S = 1.0
STOP_S = 3.0  # an interrupt, a last small state, the host's end
BYTES_A_SECOND = 50e6  # at which what is not in the store yet gets there, for the reserve
LEAST_RUN_S = 1.0  # no cell costs less than so much of its node
YIELD_S = 5.0  # for a cell to end when it is interrupted
CHECKPOINT_S = 2.0  # for a training loop to save, before it is interrupted
CLUSTER = "cluster"


@dataclass
class InForce:
    """A budget. `whose` is a session's id, or "cluster"."""

    whose: str
    limit: Limit
    alerts: tuple[float, ...]
    text: str
    told: set[tuple[str, float]] = field(default_factory=set)  # (period's start, alert)
    stopped: str = ""  # why work is refused now
    stopped_in: str = ""  # the period in which it is
    stopping: bool = False


class Budgets:
    """Of one gateway."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._services = sessions.services
        self._all: dict[str, InForce] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        with self._services.engine.connect() as connection:
            for row in connection.execute(select(db.budgets)):
                kept = self._keep(row.whose, row.limit, tuple(json.loads(row.alerts)))
                if row.stopped:
                    kept.stopped, kept.stopped_in = json.loads(row.stopped)

    # --- setting ----------------------------------------------------------------------------------

    def put(self, whose: str, limit: str, alerts: tuple[float, ...] = ALERTS) -> None:
        """Raises `UsageError`."""
        self._keep(whose, limit, alerts)
        with self._services.engine.begin() as connection:
            connection.execute(delete(db.budgets).where(db.budgets.c.whose == whose))
            row = {"whose": whose, "limit": limit, "alerts": json.dumps(alerts)}
            connection.execute(insert(db.budgets).values(row))

    def remove(self, whose: str) -> None:
        self._all.pop(whose, None)
        with self._services.engine.begin() as connection:
            connection.execute(delete(db.budgets).where(db.budgets.c.whose == whose))

    def _keep(self, whose: str, limit: str, alerts: tuple[float, ...]) -> InForce:
        kept = self._all[whose] = InForce(whose, Limit.parse(limit), alerts, limit)
        return kept

    def _refuse_from_now(self, budget: InForce, why: str) -> None:
        """Until it is raised, or its next period begins: what was kept back for stopping would
        else be spent on starting again."""
        budget.stopped, budget.stopped_in = why, _period(budget.limit)
        log.warning("budget: %s", why)
        with self._services.engine.begin() as connection:
            stopped = json.dumps([budget.stopped, budget.stopped_in])
            changed = db.budgets.update().where(db.budgets.c.whose == budget.whose)
            connection.execute(changed.values(stopped=stopped))

    def plain(self) -> list[list[Any]]:
        """For the store's record."""
        return [[each.whose, each.text, list(each.alerts)] for each in self._all.values()]

    def recall(self, recorded: list[list[Any]]) -> None:
        """Those of the record, where the table has none: it was lost with its disk."""
        if not self._all:
            for whose, limit, alerts in recorded:
                self.put(whose, limit, tuple(alerts))

    def infos(self) -> list[BudgetInfo]:
        names = {each.id: each.request.name for each in self._sessions}
        found = []
        for each in self._all.values():
            seen = self._look(each)
            found.append(
                BudgetInfo(
                    session=None if each.whose == CLUSTER else names.get(each.whose, each.whose),
                    limit=each.text,
                    limit_usd=each.limit.usd,
                    spent_usd=seen.spent,
                    period=each.limit.period or "all",
                    ends_at=each.limit.ends(now()),
                    alerts=list(each.alerts),
                    refuses=each.stopped if self._is_stopped(each) else "",
                )
            )
        return found

    # --- before a cell ----------------------------------------------------------------------------

    def refuse(self, session: Session, options: dict[str, Any]) -> None:
        """Raises `BudgetExceeded` where the work would certainly lead beyond a budget, and
        `UsageError` for a `max_cost` that cannot be read."""
        rate = self._services.billing.per_hour(session.id)
        for whose in (session.id, CLUSTER):
            budget = self._all.get(whose)
            if budget is None:
                continue
            if self._is_stopped(budget):
                raise BudgetExceeded(budget.stopped)
            seen = self._look(budget)
            if seen.stop:
                raise BudgetExceeded(self._why(budget, seen))
        limit = max_cost(options)
        if limit is None:
            return
        least = rate * Decimal(str(LEAST_RUN_S)) / 3600
        if limit <= least:
            raise BudgetExceeded(
                f"a limit of {format_usd(limit)} is spent in less than a second on "
                f"{format_usd_per_hour(rate)}: raise --max-cost, or take a smaller node"
            )

    # --- watching ---------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._services.billing.see(
                    await asyncio.to_thread(self._services.cluster.cloud.instances)
                )
                for session in list(self._sessions):
                    self._look_at_cell(session)
                for budget in list(self._all.values()):
                    self._look_at(budget)
            except MLCloudError as error:
                log.warning("budgets could not be looked at: %s", error)

    def _look_at_cell(self, session: Session) -> None:
        execution = session.current
        if execution is None or execution.ended or execution.options.get("over_budget"):
            return
        limit = max_cost(execution.options)
        if limit is None:
            return
        spent = self._services.billing.spent_by(execution.id)
        rate = self._services.billing.per_hour(session.id)
        seen = look(Limit(limit), ALERTS, spent, rate, LOOK_S + 1)
        if not seen.stop:
            return
        why = (
            f"the cell has cost {format_usd(spent)} of its limit of {format_usd(limit)} "
            "(--max-cost) and was interrupted; raise the limit and run it again"
        )
        execution.options["over_budget"] = why
        session.spawn(_interrupt(session, execution))

    def _look_at(self, budget: InForce) -> None:
        seen = self._look(budget)
        period = _period(budget.limit)
        for alert in seen.passed:
            if (period, alert) not in budget.told:
                budget.told.add((period, alert))
                self._alert(budget, seen, alert)
        if (seen.stop or self._is_stopped(budget)) and not budget.stopping:
            spending = [each for each in self._covered(budget) if each.host is not None]
            if spending:
                budget.stopping = True
                if not self._is_stopped(budget):
                    self._refuse_from_now(budget, self._why(budget, seen))
                task = asyncio.create_task(self._stop(budget, spending))
                task.add_done_callback(lambda _: setattr(budget, "stopping", False))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _is_stopped(self, budget: InForce) -> bool:
        if budget.stopped and budget.stopped_in != _period(budget.limit):
            budget.stopped = ""
        return bool(budget.stopped)

    def _look(self, budget: InForce) -> Look:
        billing = self._services.billing
        since = budget.limit.starts(now())
        if budget.whose == CLUSTER:
            spent = billing.spent(since=since)
            rate = billing.per_hour()
        else:
            spent = billing.spent(budget.whose, since)
            rate = billing.per_hour(budget.whose)
        pending = max((sum(e.pending.values()) for e in self._covered(budget)), default=0)
        stop_s = LOOK_S + STOP_S + pending / BYTES_A_SECOND
        return look(budget.limit, budget.alerts, spent, rate, stop_s)

    def _covered(self, budget: InForce) -> list[Session]:
        return [each for each in self._sessions if budget.whose in (each.id, CLUSTER)]

    # --- what follows -----------------------------------------------------------------------------

    def _whom(self, budget: InForce) -> str:
        if budget.whose == CLUSTER:
            return "the cluster"
        names = [each.request.name for each in self._sessions if each.id == budget.whose]
        return f"session {names[0]!r}" if names else "a session"

    def _why(self, budget: InForce, seen: Look) -> str:
        ends = budget.limit.ends(now())
        again = (
            f"; the next {budget.limit.period} begins at {ends:%Y-%m-%d %H:%M} UTC" if ends else ""
        )
        return (
            f"{self._whom(budget)} has spent {format_usd(seen.spent)} of its budget of "
            f"{budget.limit}: work is checkpointed and parked, and new work refused until the "
            f"budget is raised (`%mlcloud budget`){again}"
        )

    def _alert(self, budget: InForce, seen: Look, alert: float) -> None:
        text = (
            f"{alert:.0%} of the budget of {self._whom(budget)} is spent: "
            f"{format_usd(seen.spent)} of {budget.limit}"
        )
        log.info("budget: %s", text)
        for session in self._covered(budget):
            if session.host is not None:
                session.story("budget", text)

    async def _stop(self, budget: InForce, sessions: list[Session]) -> None:
        await asyncio.gather(*(self._stop_session(each, budget.stopped) for each in sessions))
        if budget.whose == CLUSTER:
            await asyncio.to_thread(self._give_back)

    async def _stop_session(self, session: Session, why: str) -> None:
        session.story("budget", why)
        for waiting in [*session.queue]:
            session.queue.remove(waiting)
            session.outcomes.finish_with(waiting, BudgetExceeded(why))
        execution, host = session.current, session.host
        if execution is not None and not execution.ended:
            execution.options["over_budget"] = why
            if host is not None and host.alive:  # a training loop saves its step
                await hosting.tell_notice(session, host, now() + timedelta(seconds=CHECKPOINT_S))
                await _ends(execution, CHECKPOINT_S)
            await _interrupt(session, execution)
        try:
            await session.park(force=True)
        except MLCloudError as error:
            log.warning("session %s was not parked in good order: %s", session.id, error)
            if session.host is not None:
                await hosting.release(session, session.host)

    def _give_back(self) -> None:
        """What holds no session bills for nothing. Blocks."""
        from mlcloud.gateway.billing import is_worker

        hosts = [each.host for each in self._sessions if each.host is not None]
        held = {instance for host in hosts for instance in host.instances}
        cloud = self._services.cluster.cloud
        for instance in cloud.instances():
            if instance.alive and is_worker(instance) and instance.id not in held:
                cloud.terminate(instance.id, "budget")


def _period(limit: Limit) -> str:
    return str(limit.starts(now()) or "")


def max_cost(options: dict[str, Any]) -> Decimal | None:
    """The limit of one execution in dollars. Raises `UsageError`."""
    given = options.get("max_cost")
    if given is None:
        return None
    limit = Limit.parse(given)
    if limit.period:
        raise UsageError(f"--max-cost is for one cell, in dollars: 5, not {given}")
    return limit.usd


async def _interrupt(session: Session, execution: Execution) -> None:
    """End the cell: by an interrupt, or with its kernel where it does not yield."""
    await session.interrupt(execution.id)
    if not await _ends(execution, YIELD_S):
        with contextlib.suppress(Exception):  # a host that dies now ends the cell anyway
            await session.kill_kernel()
        await _ends(execution, YIELD_S)


async def _ends(execution: Execution, within_s: float) -> bool:
    until: datetime = now() + timedelta(seconds=within_s)
    while not execution.ended and now() < until:
        await asyncio.sleep(0.05)
    return execution.ended
