"""All jobs of a gateway: taken in, given workers, found again, scheduled, kept in the store.

every `LOOK_S` and whenever something happens: who wants how many workers ─► idle ones assigned,
others asked for; budgets, deadlines, notices, schedules, items that take too long
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgpack
from sqlalchemy import insert, select

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.records import now
from mlcloud.cost.budgets import Limit
from mlcloud.errors import (
    BudgetExceeded,
    Conflict,
    JobFailed,
    MLCloudError,
    NotFound,
    UsageError,
)
from mlcloud.gateway import environments, mounting, vault
from mlcloud.gateway.jobs import schedule, sweeping, tables
from mlcloud.gateway.jobs.crew import Crews, Gone, Shape, Worker
from mlcloud.gateway.jobs.items import FAILED, Items
from mlcloud.gateway.jobs.job import Job, own_error
from mlcloud.gateway.jobs.keeping import Keeping
from mlcloud.gateway.jobs.kept import KEEP, kept_in
from mlcloud.gateway.jobs.pins import Pins
from mlcloud.gateway.jobs.remembered import PACKAGES, local, noted, then
from mlcloud.gateway.jobs.removal import REMOVED, Removal
from mlcloud.gateway.payers import CLUSTER
from mlcloud.job_models import JobInfo, JobRequest, JobState, Rerun
from mlcloud.units import format_usd, parse_duration, parse_size
from mlcloud.values import refs

if TYPE_CHECKING:
    from mlcloud.gateway.budgets import Budgets
    from mlcloud.gateway.session import Services
    from mlcloud.store import Signer, Store

log = logging.getLogger(__name__)

LOOK_S = 0.25
OUTSIDE_S = 1.0  # for money and the clock
ABANDONED_S = 300.0  # without a word from who sends its items


class Jobs:
    """By id."""

    def __init__(
        self,
        services: Services,
        budgets: Budgets,
        store: Store,
        signer: Signer,
        cluster: str,
        *,
        keep: timedelta = timedelta(0),
        keep_runs: int = 100,
        remove_every_s: float = 0.0,
    ) -> None:
        self._services, self._budgets = services, budgets
        self._all: dict[str, Job] = {}
        self.crews = Crews(
            services,
            told=self._told,
            gone=self._gone,
            failed=self._not_started,
            ready=self._wake,
        )
        self.keeping = Keeping(services.engine, store, signer, cluster)
        self._pins = Pins(self.crews, self.result_wire)
        self.removal = Removal(self, keep, keep_runs, remove_every_s)
        self._due = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._all.values()))

    def start(self) -> None:
        """Begin: jobs of an earlier gateway go on."""
        self._load()
        self._tasks = [
            asyncio.create_task(asyncio.to_thread(local)),  # it takes some tenths of a second
            asyncio.create_task(self._adopt()),
            asyncio.create_task(self._serve()),
            asyncio.create_task(self._look_outside()),
            asyncio.create_task(self.keeping.run(self)),
            asyncio.create_task(self.removal.run()),
        ]

    async def close(self, *, keep: bool) -> None:
        for job in self:
            if job.sweep is not None:
                job.sweep.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.crews.close(keep=keep)
        await self.keeping.write_all(self)

    #: Nobody is to wait for news any more: the server takes no further requests.
    ending = False

    def let_go(self) -> None:
        """Answer whoever waits, with what there is."""
        self.ending = True
        for job in self:
            job.changed()

    def busy(self) -> bool:
        """Whether something is to be done that nobody else would do."""
        return any(not job.over for job in self) or bool(self.crews.kept)

    # --- found again ------------------------------------------------------------------------------

    def _load(self) -> None:
        self.keeping.rebuild()
        with self._services.engine.connect() as connection:
            there = select(tables.jobs).where(tables.jobs.c.state != REMOVED)
            rows = connection.execute(there.order_by(tables.jobs.c.created_at)).all()
        for row in rows:
            self._all[row.id] = self._from_row(row)

    def _from_row(self, row: Any) -> Job:
        job = Job(
            self._services,
            JobRequest.model_validate_json(row.request),
            msgpack.unpackb(row.code, strict_map_key=False) if row.code else None,
            created_at=row.created_at,
            state=JobState(row.state),
            detail=row.detail,
            complete=bool(row.complete),
            started_at=row.started_at,
            finished_at=row.finished_at,
            next_run=row.next_run,
            places=json.loads(row.places),
            remembered=json.loads(row.remembered),
        )
        job.items.load()
        job.to_keep = False
        if job.over:
            job.needs.clear()
        return job

    async def _adopt(self) -> None:
        """Workers first: what they have is not handed out again."""
        self._adopting = True
        try:
            await self.crews.adopt(self._going_on, self._keep_s)
        except MLCloudError as error:
            log.warning("workers of an earlier gateway could not be looked for: %s", error)
        finally:
            self._adopting = False
            for job in self:
                job._end_if_all()
            self._wake()

    _adopting = True

    def _going_on(self, job_id: str) -> Job | None:
        job = self._all.get(job_id)
        return None if job is None or job.over else job

    def _keep_s(self, job_id: str) -> float:
        job = self._all.get(job_id)
        return parse_duration(KEEP).total_seconds() if job is None else job.keep_s

    # --- what clients ask -------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        job = self._all.get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id!r}; `mlcloud jobs` lists them")
        return job

    def on_nodes(self) -> dict[str, list[str]]:
        """The names of the jobs whose workers are on a node, by the node."""
        found: dict[str, list[str]] = {}
        for job in self._all.values():
            for node in {p.node_id for p in self._services.billing.open_placements(job.key)}:
                found.setdefault(node, []).append(job.request.name)
        return found

    def find(self, job_id: str) -> Job:
        """As `get`; also one that only the store has. Blocks."""
        if job_id not in self._all and self.keeping.load(job_id):
            with self._services.engine.connect() as connection:
                query = select(tables.jobs).where(tables.jobs.c.id == job_id)
                self._all[job_id] = self._from_row(connection.execute(query).one())
        return self.get(job_id)

    def create(
        self, request: JobRequest, code: dict[str, Any], secrets: Mapping[str, str] | None = None
    ) -> Job:
        """The job of this id; made if there is none.

        Raises `NoSuchResources` at once where no node could hold a worker, `BudgetExceeded` where
        the cluster's budget is spent, and `UsageError` for what cannot be read.
        """
        known = self._all.get(request.id)
        if known is not None:
            return known
        if why := self._budgets.refusal(CLUSTER):
            raise BudgetExceeded(why)
        request = self._services.given().to(request)
        environments.check_spec(request.environment)
        vault.check(request.secrets)
        mounting.check(request)
        if request.memory:
            parse_size(request.memory)
        for text in (request.deadline, request.expect, request.timeout, request.keep):
            if text is not None:
                parse_duration(text)
        if request.max_cost is not None and Limit.parse(request.max_cost).period:
            raise UsageError(f"max_cost is of one job, in dollars: 5, not {request.max_cost}")
        if request.sweep is not None:
            sweeping.check(request)
        next_run = schedule.first(request)
        job = Job(
            self._services,
            request,
            code,
            created_at=now(),
            state=JobState.QUEUED if next_run is None else JobState.SCHEDULED,
            next_run=next_run,
            remembered=noted(self._services, request),
        )
        job.shape.request(self._services)  # raises where there is no such node
        for needed in job.needs:
            self.get(needed)
        self.give(job, secrets or {})
        row = {
            "id": job.id,
            "request": request.model_dump_json(),
            "code": msgpack.packb(code),
            "state": job.state.value,
            "created_at": job.created_at,
            "next_run": next_run,
            "remembered": json.dumps(job.remembered),
        }
        with self._services.engine.begin() as connection:
            connection.execute(insert(tables.jobs).values(row))
        self._all[job.id] = job
        if request.max_cost is not None:
            self._budgets.put(job.key, request.max_cost)
        return job

    def add(
        self, job: Job, first: int, items: list[Any], needs: dict[int, list[str]], *, last: bool
    ) -> None:
        """Raises `Conflict` where items before these are missing, or it takes none any more."""
        if job.sweep is not None:
            raise UsageError(f"job {job.id} is a sweep: it makes its items itself")
        if (job.over or job.complete) and first + len(items) > job.items.total:
            raise Conflict(f"job {job.id} is {job.state.value}: it takes no more items")
        if job.request.single and first + len(items) > 1:
            raise UsageError("a submit has one item")
        for needed in {each for jobs in needs.values() for each in jobs}:
            self.get(needed)
        try:
            job.add(first, items, needs, last=last)
        except ValueError as error:
            raise Conflict(str(error)) from None
        self._settle_needs(job)
        self._wake()

    def cancel(self, job: Job) -> None:
        """Nothing more of it is run; results that there are stay."""
        if job.sweep is not None:
            job.sweep.end("it was cancelled")
        job.finish(JobState.CANCELLED, "it was cancelled")
        self._wake()

    def rerun(self, old: Job, wanted: Rerun, *, of_schedule: bool = False) -> Job:
        """A new job with the code, items and environment of another one."""
        changed: dict[str, Any] = {"id": wanted.id, "rerun_of": old.id, "every": None, "cron": None}
        if wanted.packages == "then" and not of_schedule:
            changed["environment"] = then(old)
        if of_schedule:
            changed |= {"rerun_of": None, "schedule": old.id}
        request = old.request.model_copy(update=changed)
        job = self.create(request, old.code, self._services.vault.held(old.id))
        if job.items.total:
            return job  # asked for twice
        if job.request.environment is not None and "packages" in old.remembered:
            job.remembered |= {key: old.remembered[key] for key in PACKAGES & old.remembered.keys()}
            job.save()
        if job.sweep is not None:
            self._wake()
            return job
        chosen = range(old.items.total)
        if wanted.failed_only:
            chosen = [i for i in chosen if old.items.states[i] == FAILED]  # type: ignore[assignment]
        batch: list[Any] = []
        for number, item in enumerate(chosen):
            batch.append(old.items.wire(item))
            if len(batch) == 500 or number == len(chosen) - 1:
                job.add(number + 1 - len(batch), batch, _needs_of(batch, number), last=False)
                batch = []
        job.add(job.items.total, [], {}, last=True)
        self._settle_needs(job)
        self._wake()
        return job

    def forget(self, job: Job) -> None:
        """It was removed."""
        self._all.pop(job.id, None)
        self.crews.kept.forget(self.crews.kept.of_job(job.id), "its job was removed")
        job.changed()

    def infos(self) -> list[JobInfo]:
        return [job.info(self.crews) for job in self]

    def result_wire(self, job_id: str, item: int) -> Any:
        """What an item returned, as it travels. Raises `NotFound`."""
        if refs.is_part(job_id):  # such are only referred to where a worker keeps them
            return {"kept": [job_id, item]}
        entry = self.get(job_id).items.result(item)
        if entry is None or entry[1] != "ok":
            raise NotFound(f"item {item} of job {job_id} has no result")
        return entry[2]

    # --- results that others wait for -------------------------------------------------------------

    def _settle_needs(self, job: Job) -> None:
        """Jobs that it waits for and that have ended are waited for no more."""
        if job.over or self._adopting:  # where results are kept is not known yet
            return
        for needed in [*job.needs]:
            other = self._all.get(needed)
            if other is not None and other.state is JobState.DONE:
                job.needs.discard(needed)
            elif other is None or other.over:
                job.fail(_lost_result(needed, other))
                return
        if not job.needs and not job.placed:
            job.placed = True
            self._pins.function(job)
        for item, jobs in [*job.items.needs.items()]:
            for needed in [*jobs]:
                other = self._all.get(needed)
                if other is not None and other.state is JobState.DONE:
                    jobs.discard(needed)
                elif other is None or other.over:
                    error = _lost_result(needed, other)
                    told = own_error("JobFailed", str(error))
                    jobs.clear()
                    if not job.items.is_ended(item):
                        job.items.commit([[item, "error", told, [0.0]]], [])
                        job._end_if_all()
            if not jobs:
                job.items.needs.pop(item, None)
                self._pins.item(job, item)

    # --- workers ----------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._due.set()

    async def _serve(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._due.wait(), LOOK_S)
            self._due.clear()
            if self._adopting:
                continue
            try:
                self._share_out()
            except Exception:
                log.exception("jobs could not be looked at; tried again")
                await asyncio.sleep(1.0)

    def _share_out(self) -> None:
        wanted: dict[Shape, int] = {}
        asking: dict[Shape, list[str]] = {}
        for job in self:
            if job.over or job.state is JobState.SCHEDULED:
                continue
            self._settle_needs(job)
        self._pins.look(self)
        self.crews.look()
        for job in self:
            if job.over or job.state is JobState.SCHEDULED:
                continue
            job.look(self.crews)
            job.market.look(at_once=job.started_at is None)
            if job.market.waits:
                continue
            missing = job.wants(self.crews) - len(self.crews.of(job))
            shape = job.shape
            while missing > 0 and (worker := self.crews.idle(shape)) is not None:
                self.crews.assign(worker, job)
                job.feed(self.crews, worker, self.result_wire)
                missing -= 1
            if missing > 0:
                wanted[shape] = wanted.get(shape, 0) + missing
                asking.setdefault(shape, []).append(job.key)
                if job.state is JobState.QUEUED:
                    job.detail = "waits for a worker"
            for worker in self.crews.of(job):
                job.feed(self.crews, worker, self.result_wire)
        for shape, count in wanted.items():
            self.crews.demand(shape, count, asking[shape])

    def give(self, job: Job, values: Mapping[str, str]) -> None:
        """Values of its secrets. Raises `NotFound` for one that it does not have."""
        unknown = sorted(values.keys() - job.request.secrets.keys())
        if unknown:
            raise NotFound(f"job {job.id} has no secret {', '.join(unknown)}")
        if not job.over:
            self._services.vault.put(job.id, values)
            self._wake()
            job.changed()

    def hold(self, job_id: str, holder: str, *, held: bool) -> None:
        """A notebook has handles of results that are kept in workers, or none any more."""
        self.crews.kept.hold(job_id, holder, held=held)

    def _told(self, worker: Worker, events: list[bytes]) -> None:
        for body in events:
            told = msgpack.unpackb(body, strict_map_key=False)
            job = self._all.get(told["job"])
            if job is None:
                continue
            for key in kept_in(job.id, told["results"]):
                if key[1] < job.items.total and not job.items.is_ended(key[1]):
                    self.crews.kept.note(key, worker, job.keep_s)
            job.told(worker, told["results"], told["logs"])
            if job.over:
                self._wake()
        # While workers are found again, others have items that are not known yet.
        if worker.job is not None and not self._adopting:
            worker.job.feed(self.crews, worker, self.result_wire)
        if worker.job is None:
            self._wake()

    def _gone(self, worker: Worker, gone: Gone) -> None:
        if worker.job is not None:
            worker.job.lost(worker, gone)
            worker.job = None
        self._wake()

    def on_node_end(self, instance: Instance) -> None:
        self.crews.on_node_end(instance.id, instance.reason)

    def _not_started(self, shape: Shape, error: Exception) -> None:
        for job in self:
            waits = not job.over and job.state is not JobState.SCHEDULED
            if waits and job.shape == shape and not self.crews.of(job):
                own = error if isinstance(error, MLCloudError) else None
                job.fail(own or JobFailed(f"no worker could be started: {error}"))

    # --- money and the clock ----------------------------------------------------------------------

    async def _look_outside(self) -> None:
        while True:
            await asyncio.sleep(OUTSIDE_S)
            try:
                self._look_at_money()
                self._look_at_schedules()
                for job in self:
                    silent_s = time.monotonic() - job.heard
                    fed = job.over or job.complete or job.sweep is not None
                    if not fed and silent_s > ABANDONED_S:
                        job.abandoned()
            except Exception:
                log.exception("what jobs cost, or when they are due, could not be looked at")

    def _look_at_money(self) -> None:
        going_on = [job for job in self if not job.over and job.state is not JobState.SCHEDULED]
        if not going_on and not self.crews.kept:
            return
        cluster = self._budgets.refusal(CLUSTER)
        for job in self:
            limited = job.request.max_cost is not None and self.crews.kept.of_job(job.id)
            if limited and self._budgets.refusal(job.key):
                self.crews.kept.forget(self.crews.kept.of_job(job.id), "its budget was spent")
        if cluster:
            everything = [key for job in self for key in self.crews.kept.of_job(job.id)]
            self.crews.kept.forget(everything, "the cluster's budget was spent")
        for job in going_on:
            if cluster:
                job.fail(BudgetExceeded(cluster))
            elif job.request.max_cost is not None and self._budgets.refusal(job.key):
                spent = format_usd(self._services.billing.spent(job.key))
                if job.sweep is not None:
                    job.sweep.end(f"its budget of ${job.request.max_cost} is spent ({spent})")
                    continue
                job.fail(
                    BudgetExceeded(
                        f"job {job.id} has cost {spent} of its limit of ${job.request.max_cost} "
                        "(max_cost) and was stopped; what it has finished is kept. Raise the "
                        "limit, and run what is left again"
                    )
                )

    def _look_at_schedules(self) -> None:
        for job in self:
            if job.state is not JobState.SCHEDULED or job.next_run is None:
                continue
            if now() < job.next_run or not job.complete:
                continue
            runs = [each for each in self if each.request.schedule == job.id and not each.over]
            missed = now() - job.next_run > timedelta(minutes=1)
            job.next_run = schedule.following(job.request, job.next_run)
            if runs:
                job.detail = f"passed over: {runs[0].id} was not over yet"
                log.info("schedule %s: %s", job.id, job.detail)
            else:
                try:
                    made = self.rerun(job, Rerun(id=schedule.new_id()), of_schedule=True)
                    job.detail = f"last run {made.id}" + (" (late)" if missed else "")
                except MLCloudError as error:
                    job.detail = f"could not be run: {error}"
            job.save()


def _needs_of(batch: list[Any], last: int) -> dict[int, list[str]]:
    first = last + 1 - len(batch)
    return {
        first + place: refs.jobs_of(item[1])
        for place, item in enumerate(batch)
        if len(item) > 1 and item[1]
    }


def _lost_result(needed: str, other: Job | None) -> JobFailed:
    if other is None:
        return JobFailed(f"it needs the result of job {needed}, which is not known any more")
    ended = "was" if other.state is JobState.CANCELLED else "has"
    why = f"{ended} {other.state.value}: {other.detail}"
    return JobFailed(f"it needs the result of job {needed} ({other.request.name}), which {why}")


__all__ = ["Items", "Jobs"]
