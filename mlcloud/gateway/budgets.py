"""Budgets in force: looked at every second, on the head, whether or not a notebook is there.

    every `LOOK_S`, for each budget: spent, rate, seconds that a stop takes, minimum billing
                                                                            ─► cost.budgets.look
        alert ─► a line under the running cells, once a period
        stop  ─► cell, or a job's cells: interrupted, BudgetExceeded · session, user, a job's own
                 sessions: checkpointed, parked · cluster: all of its sessions parked and its nodes
                 given back, those that start up too
    a new cell ─► refused while a budget that covers it is spent, or too little for its node
    a new node ─► not bought for more than budgets leave, the cluster's and those of who asks for
                  it (`buying`)

`--max-cost` is a budget of one execution, and lives with it; the others are in the table `budgets`,
and with the nodes in the store's record, so that a new head goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from mlcloud.cluster.records import now
from mlcloud.cost.budgets import ALERTS, Limit, Look, check_scope
from mlcloud.cost.budgets import look as look_at
from mlcloud.cost_models import BudgetInfo
from mlcloud.errors import BudgetExceeded, MLCloudError, UsageError
from mlcloud.gateway import db, hosting
from mlcloud.gateway.billing import is_worker
from mlcloud.gateway.buying import Buying
from mlcloud.gateway.payers import CLUSTER, Payers, job_scope
from mlcloud.models import SessionState
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
_TOLD = "specification"  # whose, in the record, what is not in force but was told


@dataclass
class InForce:
    """A budget. `whose` as `payers` has it; "cluster/1" … where a specification has several."""

    whose: str
    limit: Limit
    alerts: tuple[float, ...]
    text: str
    told: set[tuple[str, float]] = field(default_factory=set)  # (period's start, alert)
    stopped: str = ""  # why work is refused now
    stopped_in: str = ""  # the period in which it is
    stopping: bool = False

    @property
    def of_all(self) -> bool:
        """Whether it is the cluster's."""
        return self.whose.partition("/")[0] == CLUSTER


class Budgets:
    """Of one gateway."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._services = sessions.services
        self.payers = Payers(sessions)
        self._all: dict[str, InForce] = {}
        self.to_record = False  # one was set, and the store does not know
        self.told: list[str] = []  # by the specification, which a user may have changed since
        self._tasks: set[asyncio.Task[None]] = set()
        self.buying = Buying(self, self._services, LOOK_S + STOP_S)
        with self._services.engine.connect() as connection:
            for row in connection.execute(select(db.budgets)):
                kept = self._keep(row.whose, row.limit, tuple(json.loads(row.alerts)))
                if row.stopped:
                    kept.stopped, kept.stopped_in = json.loads(row.stopped)

    def __iter__(self) -> Iterator[InForce]:
        return iter(list(self._all.values()))

    # --- setting ----------------------------------------------------------------------------------

    def put(self, whose: str, limit: str, alerts: tuple[float, ...] = ALERTS) -> None:
        """Raises `UsageError`."""
        if whose.startswith(job_scope("")):
            check_scope(Limit.parse(limit), None, None, whose)
        self._keep(whose, limit, alerts)
        self.to_record = True
        with self._services.engine.begin() as connection:
            connection.execute(delete(db.budgets).where(db.budgets.c.whose == whose))
            row = {"whose": whose, "limit": limit, "alerts": json.dumps(alerts)}
            connection.execute(insert(db.budgets).values(row))

    def remove(self, whose: str) -> None:
        self._all.pop(whose, None)
        self.to_record = True
        with self._services.engine.begin() as connection:
            connection.execute(delete(db.budgets).where(db.budgets.c.whose == whose))

    def _keep(self, whose: str, limit: str, alerts: tuple[float, ...]) -> InForce:
        kept = self._all[whose] = InForce(whose, Limit.parse(limit), alerts, limit)
        return kept

    def _refuse_from_now(self, budget: InForce, why: str) -> None:
        """Until it is raised, or its next period begins: what was kept back for stopping would
        else be spent on starting again."""
        log.warning("budget: %s", why)
        self._shut(budget, why, _period(budget.limit))
        self.to_record = True

    def _shut(self, budget: InForce, why: str, period: str) -> None:
        budget.stopped, budget.stopped_in = why, period
        with self._services.engine.begin() as connection:
            stopped = json.dumps([budget.stopped, budget.stopped_in])
            changed = db.budgets.update().where(db.budgets.c.whose == budget.whose)
            connection.execute(changed.values(stopped=stopped))

    def plain(self) -> list[list[Any]]:
        """For the store's record."""
        kept: list[list[Any]] = [
            [each.whose, each.text, list(each.alerts), each.stopped, each.stopped_in]
            for each in self._all.values()
        ]
        return [*kept, *([_TOLD, text, []] for text in self.told)]

    def recall(self, recorded: list[list[Any]]) -> None:
        """Those of the record, where the table has none: it was lost with its disk."""
        self.told = [limit for whose, limit, *_ in recorded if whose == _TOLD]
        if self._all:
            return
        for whose, limit, alerts, *stopped in recorded:
            if whose != _TOLD:
                self.put(whose, limit, tuple(alerts))
                if any(stopped):
                    self._shut(self._all[whose], *stopped)

    def infos(self) -> list[BudgetInfo]:
        found = []
        for each in self._all.values():
            seen = self.look(each)
            found.append(
                BudgetInfo(
                    **self.payers.fields(each.whose),
                    limit=each.text,
                    limit_usd=each.limit.usd,
                    spent_usd=seen.spent,
                    period=each.limit.period or "all",
                    ends_at=each.limit.ends(now()),
                    alerts=list(each.alerts),
                    refuses=each.stopped if self.is_stopped(each) else "",
                    reserve_usd=seen.reserve,
                )
            )
        return found

    # --- before a cell ----------------------------------------------------------------------------

    def refuse(self, session: Session, options: dict[str, Any], execution_id: str = "") -> None:
        """Raises `BudgetExceeded` where the work would certainly lead beyond a budget, and
        `UsageError` for a `max_cost` that cannot be read. Else it is charged to its job."""
        limit = max_cost(options)
        job: str | None = options.get("job")
        if job is not None and not isinstance(job, str):
            raise UsageError(f"a job is named by its id, not by {job!r}")
        self.payers.known(session)
        scopes = self.payers.scopes(session, job)
        for budget in self._all.values():
            whose = budget.whose
            if not (budget.of_all or whose in scopes):
                continue
            if self.is_stopped(budget):
                raise BudgetExceeded(budget.stopped)
            seen = self.look(budget)
            if seen.stop:
                raise BudgetExceeded(self._why(budget, seen))
            whole, part = self.payers.to_start(session, LOOK_S + STOP_S)
            start = whole if budget.of_all else part
            if seen.spent + seen.reserve + start >= budget.limit.usd:
                raise BudgetExceeded(
                    f"{self._whom(budget)} has spent {format_usd(seen.spent)} of its budget of "
                    f"{budget.limit}, and to start a node costs {format_usd(start)} at least: "
                    "raise the budget (`%mlcloud budget`), or take a smaller node"
                )
        if limit is not None:
            self._refuse_limit(session, limit)
        if job is not None and execution_id:
            self.payers.charge(job_scope(job), execution_id)

    def _refuse_limit(self, session: Session, limit: Decimal) -> None:
        rate = self._services.billing.per_hour(session.id)
        least = rate * Decimal(str(LEAST_RUN_S)) / 3600
        if limit <= least:
            raise BudgetExceeded(
                f"a limit of {format_usd(limit)} is spent in less than a second on "
                f"{format_usd_per_hour(rate)}: raise --max-cost, or take a smaller node"
            )

    def refusal(self, whose: str) -> str:
        """Why a job, `job:<id>`, or all of the cluster may spend no more; empty while it may."""
        budget = self._all.get(whose)
        if budget is None:
            return ""
        if self.is_stopped(budget):
            return budget.stopped
        seen = self.look(budget)
        return self._why(budget, seen) if seen.stop else ""

    # --- watching ---------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                instances = await asyncio.to_thread(self._services.cluster.cloud.instances)
                self._services.billing.see(instances)
                bought = any(each.alive and is_worker(each) for each in instances)
                for session in list(self._sessions):
                    self._look_at_cell(session)
                for budget in list(self._all.values()):
                    self._look_at(budget, bought)
                self.buying.limit()
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
        seen = look_at(Limit(limit), ALERTS, spent, rate, LOOK_S + 1)
        if not seen.stop:
            return
        why = (
            f"the cell has cost {format_usd(spent)} of its limit of {format_usd(limit)} "
            "(--max-cost) and was interrupted; raise the limit and run it again"
        )
        execution.options["over_budget"] = why
        session.spawn(_interrupt(session, execution))

    def _look_at(self, budget: InForce, bought: bool) -> None:
        seen = self.look(budget)
        period = _period(budget.limit)
        for alert in seen.passed:
            if (period, alert) not in budget.told:
                budget.told.add((period, alert))
                self._alert(budget, seen, alert)
        if (seen.stop or self.is_stopped(budget)) and not budget.stopping:
            spending = [each for each in self.payers.covered(budget.whose) if _spends(each)]
            cells = list(self.payers.executions(budget.whose))
            if spending or cells or (bought and budget.of_all):
                budget.stopping = True
                if not self.is_stopped(budget):
                    self._refuse_from_now(budget, self._why(budget, seen))
                task = asyncio.create_task(self._stop(budget, spending, cells))
                task.add_done_callback(lambda _: setattr(budget, "stopping", False))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def is_stopped(self, budget: InForce) -> bool:
        if budget.stopped and budget.stopped_in != _period(budget.limit):
            budget.stopped = ""
        return bool(budget.stopped)

    def look(self, budget: InForce) -> Look:
        whose, payers = budget.whose, self.payers
        spent = payers.spent(whose, budget.limit.starts(now()))
        rate = payers.per_hour(whose)
        covered = payers.covered(whose)
        pending = max((sum(each.pending.values()) for each in covered), default=0)
        stop_s = LOOK_S + STOP_S + pending / BYTES_A_SECOND
        owed = payers.owed(whose, stop_s)
        return look_at(budget.limit, budget.alerts, spent, rate, stop_s, owed)

    # --- what follows -----------------------------------------------------------------------------

    def _whom(self, budget: InForce) -> str:
        return self.payers.words(budget.whose)

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
        running = [session for session, _ in self.payers.executions(budget.whose)]
        for session in [*self.payers.covered(budget.whose), *dict.fromkeys(running)]:
            if session.host is not None:
                session.story("budget", text)

    async def _stop(
        self, budget: InForce, sessions: list[Session], cells: list[tuple[Session, Execution]]
    ) -> None:
        if budget.of_all:
            self.buying.limit()  # before anybody asks for a node in place of those that go
        stops = [self._stop_session(each, budget.stopped) for each in sessions]
        stops += [self._stop_cell(session, each, budget.stopped) for session, each in cells]
        await asyncio.gather(*stops)
        if budget.of_all:
            await asyncio.to_thread(self._give_back)

    async def _stop_cell(self, session: Session, execution: Execution, why: str) -> None:
        """One of a job, in a session that works for others too."""
        if execution in session.queue:
            session.queue.remove(execution)
            session.outcomes.finish_with(execution, BudgetExceeded(why))
            return
        session.story("budget", why)
        await self._end_cell(session, execution, why)

    async def _end_cell(self, session: Session, execution: Execution, why: str) -> None:
        execution.options["over_budget"] = why
        host = session.host
        if host is not None and host.alive:  # a training loop saves its step
            await hosting.tell_notice(session, host, now() + timedelta(seconds=CHECKPOINT_S))
            await _ends(execution, CHECKPOINT_S)
        await _interrupt(session, execution)

    async def _stop_session(self, session: Session, why: str) -> None:
        session.story("budget", why)
        for waiting in [*session.queue]:
            session.queue.remove(waiting)
            session.outcomes.finish_with(waiting, BudgetExceeded(why))
        execution = session.current
        if execution is not None and not execution.ended:
            await self._end_cell(session, execution, why)
        until = now() + timedelta(seconds=YIELD_S)
        while session.current is not None and now() < until:
            await asyncio.sleep(0.05)  # it has ended; its session knows in a moment
        try:
            await session.park(force=True)
        except MLCloudError as error:
            log.warning("session %s was not parked in good order: %s", session.id, error)
            if session.host is not None:
                await hosting.release(session, session.host)
                session.set_state(SessionState.PARKED)

    def _give_back(self) -> None:
        """What holds no session bills for nothing. Blocks."""
        hosts = [each.host for each in self._sessions if each.host is not None]
        held = {instance for host in hosts for instance in host.instances}
        cloud = self._services.cluster.cloud
        for instance in cloud.instances():
            if instance.alive and is_worker(instance) and instance.id not in held:
                cloud.terminate(instance.id, "budget")


def _spends(session: Session) -> bool:
    """It has a node, or waits for one."""
    return session.host is not None or bool(session.queue) or session.current is not None


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
