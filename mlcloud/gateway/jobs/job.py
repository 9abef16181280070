"""One job: its items, handed to workers in batches of about `BATCH_S`, and what comes of them.

    queued ─► running ─► done | failed | cancelled          scheduled ─► (makes jobs) ─► cancelled

What happens to an item whose worker is gone depends on why:

    node taken, or ended       it runs again, and counts for nothing
    the process died           the items that it held run again, each alone: so the one that ends
                               its worker is found, and is quarantined after `CRASHES` times
    it raised                  it runs again `retries` times
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgpack
from sqlalchemy import update

from mlcloud.cluster.records import now
from mlcloud.errors import JobFailed, MLCloudError
from mlcloud.gateway import db
from mlcloud.gateway.jobs import tables
from mlcloud.gateway.jobs.crew import Crews, Gone, Shape, Worker
from mlcloud.gateway.jobs.items import Items
from mlcloud.gateway.jobs.kept import KEEP
from mlcloud.gateway.jobs.market import Market
from mlcloud.gateway.jobs.sweeping import Sweep, state_at_end
from mlcloud.job_models import ENDED, JobInfo, JobRequest, JobState
from mlcloud.units import parse_duration
from mlcloud.values import refs

if TYPE_CHECKING:
    from mlcloud.gateway.session import Services

log = logging.getLogger(__name__)

BATCH_S = 0.15  # of work in a batch
MOST_IN_BATCH = 1000
BATCH_BYTES = 4 * 2**20
LONG_S = 0.5  # an item of which the next one is not given beforehand
SCALE_S = 2.0  # so much work is worth a worker of its own
UNKNOWN_S = 1.0  # without a result after this long, an item counts as long
CRASHES = 3
DETAIL = 300  # characters of what a call raised, where the job is told of


class Job:
    """See the module. Methods are called on the event loop."""

    def __init__(
        self,
        services: Services,
        request: JobRequest,
        code: Any,
        *,
        created_at: datetime,
        state: JobState = JobState.QUEUED,
        detail: str = "",
        complete: bool = False,
        started_at: datetime | None = None,
        finished_at: datetime | None = None,
        next_run: datetime | None = None,
        places: list[str] | None = None,
        remembered: dict[str, Any] | None = None,
    ) -> None:
        self.services = services
        self.id = request.id
        self.key = f"job:{request.id}"  # whose costs they are
        self.request = request
        self.code = code  # a `packed.Wire`, and the jobs that it needs
        self.items = Items(services.engine, request.id)
        self.state, self.detail, self.complete = state, detail, complete
        self.created_at, self.started_at, self.finished_at = created_at, started_at, finished_at
        self.next_run = next_run
        self.places = places or []
        self.remembered = remembered or {}
        self.market = Market(self)
        self.sweep = Sweep(self, request.sweep) if request.sweep is not None else None
        self.mean_s: float | None = None
        self.preempted = self.retried = 0
        needed = code["needs"] if code else []
        self.needs: set[str] = set(refs.jobs_of(needed))
        self.placed = not needed  # whether it is known where its function can run
        self.pin: str | None = None  # the one worker that has what its function needs
        self.keep_s = parse_duration(request.keep or KEEP).total_seconds()
        self.to_keep = True  # something is not in the store yet
        self.heard = time.monotonic()  # of who sends its items
        self._tries: dict[int, int] = {}
        self._crashes: dict[int, int] = {}
        self._waiters: set[asyncio.Event] = set()
        self.crews: Crews | None = None
        self._results_of: Any = None
        self._timeout_s = (
            parse_duration(request.timeout).total_seconds() if request.timeout else None
        )

    # --- state ------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def shape(self) -> Shape:
        """Of the workers that it wants now."""
        request = self.request
        environment = request.environment
        private = request.model_dump(mode="json", include={"secrets", "data"})
        return Shape(
            request.cpus,
            request.gpu,
            request.memory,
            self.market.wanted,
            environment.model_dump_json(exclude={"summary"}) if environment else "",
            json.dumps(private, sort_keys=True) if any(private.values()) else "",
        )

    def refers(self) -> set[str]:
        """Jobs whose results it needs."""
        return {refs.job_of(job) for job, _ in self.code["needs"]} | self.items.refers

    def status(self, text: str) -> None:
        """What it waits for."""
        self.detail = text
        self.changed()

    def save(self) -> None:
        values = {
            "state": self.state.value,
            "detail": self.detail,
            "complete": int(self.complete),
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "next_run": self.next_run,
            "places": json.dumps(self.places),
            "remembered": json.dumps(self.remembered),
        }
        with db.writing(self.services.engine) as connection:
            changed = update(tables.jobs).where(tables.jobs.c.id == self.id)
            connection.execute(changed.values(values))
        self.to_keep = True
        self.changed()

    @property
    def workers(self) -> list[Worker]:
        return self.crews.of(self) if self.crews is not None else []

    def woken(self) -> None:
        """There is something to hand out."""
        if self.crews is not None:
            for worker in self.workers:
                self.feed(self.crews, worker, self._results_of)

    def changed(self) -> None:
        """Tell who waits for news of it."""
        for each in self._waiters:
            each.set()

    async def news(self, within_s: float) -> None:
        """Wait until something changes, at most so long."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            await asyncio.wait_for(event.wait(), within_s)
        except asyncio.TimeoutError:
            pass
        finally:
            self._waiters.discard(event)

    def info(self, crews: Crews) -> JobInfo:
        workers = crews.of(self)
        billing = self.services.billing
        places = [each.instance for each in workers] or self.places
        request = self.request
        return JobInfo(
            id=self.id,
            name=request.name,
            state=self.state,
            detail=self.detail,
            single=request.single,
            sweep=self.sweep is not None,
            items=self.items.total,
            complete=self.complete,
            done=self.items.done,
            failed=self.items.failed,
            running=len(self.items.out),
            preempted=self.preempted,
            retried=self.retried,
            workers=len(workers),
            kept=len(crews.kept.of_job(self.id)),
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            usd=billing.spent(self.key),
            usd_per_hour=billing.per_hour(self.key)
            if workers or crews.keeping(self.id)
            else Decimal(0),
            simulated=billing.simulated(self.key),
            gpu=request.gpu,
            cpus=request.cpus,
            market=request.market,
            places=sorted(set(places)),
            owner=request.owner,
            rerun_of=request.rerun_of,
            schedule=request.schedule,
            next_run=self.next_run,
            last_result=self.items.rows,
            last_log=self.items.rows,
            secrets=request.secrets,
            missing=[] if self.over else list(self.services.vault.missing(self)),
            data={each.path: each.url for each in request.data},
            remembered=self.remembered,
        )

    # --- items ------------------------------------------------------------------------------------

    def add(self, first: int, items: list[Any], needs: dict[int, list[str]], *, last: bool) -> None:
        """A batch of items; sent twice, it is there once."""
        self.heard = time.monotonic()
        total = self.items.total
        if first < total:
            skip = min(len(items), total - first)
            items = items[skip:]
            needs = {item: jobs for item, jobs in needs.items() if item >= total}
            first = total
        if first > total:
            raise ValueError(f"items {total} to {first - 1} of job {self.id} are missing")
        if items:
            self.items.add(first, items, needs)
            self.to_keep = True
        if last and not self.complete:
            self.complete = True
            self.save()
        self._end_if_all()

    def wants(self, crews: Crews) -> int:
        """How many workers it can use now, those that it has among them."""
        items, workers = self.items, crews.of(self)
        if self.over or self.state is JobState.SCHEDULED or self.needs:
            return 0
        if lacking := self.services.vault.missing(self):
            self.detail = f"waits for the secret {', '.join(lacking)}, which a notebook has"
            return 0
        waits = items.waiting - sum(map(len, items.pinned().values()))
        if not waits or self.pin is not None:
            return len(workers)
        most = min(self.request.max_workers, waits + len(items.out))
        if self.sweep is not None:
            return most  # as many trials are asked for as there may be workers
        if self.mean_s is None:
            began = min((t for each in workers for t in each.held.values()), default=None)
            is_long = began is not None and time.monotonic() - began > UNKNOWN_S
            return most if is_long else max(1, len(workers))
        work_s = (waits + len(items.out)) * self.mean_s
        return max(len(workers), min(most, math.ceil(work_s / SCALE_S)))

    def abandoned(self) -> None:
        """Who sent its items is gone: there are as many as have come."""
        self.complete = True
        text = f"its notebook went away after {self.items.total:,} items: those were all"
        self._note([0], f"{text}\n")
        self.save()
        self._end_if_all()

    def waits_for(self) -> list[str]:
        """Workers that alone can run items of it."""
        if self.over or self.state is JobState.SCHEDULED or self.needs:
            return []
        if self.pin is not None:
            return [self.pin] if self.items.waiting else []
        return list(self.items.pinned())

    # --- workers ----------------------------------------------------------------------------------

    def feed(self, crews: Crews, worker: Worker, results_of: Any) -> None:
        """Give it work, as long as that is of use."""
        self.crews, self._results_of = crews, results_of
        # What only this worker can run, it runs, whatever its shape, and before others' items.
        retires = worker.shape != self.shape or worker.name in crews.needed
        pinned_only = retires and self.pin != worker.name
        wrong = self.pin not in (None, worker.name)
        while not (self.over or worker.leaving or worker.over or wrong or self.needs):
            size, depth = self._batch()
            if worker.held and len(worker.held) > size * (depth - 1):
                break
            workers = max(1, len(crews.of(self)))
            share = math.ceil((self.items.waiting or 1) / (workers * 2))
            taken = self.items.take(max(1, min(size, share)), worker.name, pinned_only=pinned_only)
            if not taken:
                break
            self._send(crews, worker, taken)
            if any(item in self.items.alone for item in taken):
                break
        if not worker.held and worker.job is self:
            crews.free(worker)

    def _batch(self) -> tuple[int, int]:
        """(items in a batch, batches at a worker)."""
        one = self.mean_s is None or self._timeout_s is not None or self.sweep is not None
        if one or self.items.alone:
            return 1, 1
        assert self.mean_s is not None
        size = max(1, min(MOST_IN_BATCH, int(BATCH_S / max(self.mean_s, 1e-6))))
        return size, 1 if self.mean_s > LONG_S else 2

    def _send(self, crews: Crews, worker: Worker, taken: list[int]) -> None:
        began = time.monotonic()
        worker.held.update((item, began) for item in taken)
        if self.pin or any(item in self.items.pins for item in taken):
            crews.kept.used(worker)
        rows = []
        for item in taken:
            wire, *more = self.items.wire(item)
            needs = [[*ref, self._results_of(*ref)] for ref in (more[0] if more else [])]
            parent = more[1]["parent"] if len(more) > 1 else None
            rows.append([item, wire, needs, *([] if parent is None else [parent])])
        if self.started_at is None:
            self.started_at = now()
        if "packages" not in self.remembered and worker.packages:
            self.remembered["packages"] = worker.packages
        if worker.instance not in self.places:
            self.places = [*self.places, worker.instance][-20:]
        if self.state is JobState.QUEUED:
            self.state, self.detail = JobState.RUNNING, ""
            self.save()
        task = asyncio.create_task(self._submit(worker, msgpack.packb(rows)))
        crews._tasks.add(task)
        task.add_done_callback(crews._tasks.discard)

    async def _submit(self, worker: Worker, items: bytes) -> None:
        from ray.exceptions import RayError

        batch = secrets.token_hex(8)
        async with worker.turn:
            if worker.prepared != self.id and not await self._prepare(worker):
                return
            task = None if worker.knows == self.id else self._task(worker)
            worker.knows = self.id
        for _ in range(3):
            try:
                if await worker.handle.work.remote(batch, task, self.id, items):
                    return
                task = self._task(worker)
            except RayError:  # the pump finds out what it means
                await asyncio.sleep(0.3)

    async def _prepare(self, worker: Worker) -> bool:
        """Its secrets and its data are with the worker. Else it fails, or the worker is gone."""
        from ray.exceptions import RayError, RayTaskError

        request = self.request
        if request.secrets or request.data:
            try:
                values = await self.services.vault.gather(self)
                mounts = [each.model_dump() for each in request.data]
                await worker.handle.prepare.remote(values, mounts)
            except RayTaskError as error:
                why = f"{type(error.cause).__name__}: {error.cause}"
                self.fail(JobFailed(f"its data could not be had on {worker.instance}: {why}"))
                return False
            except MLCloudError as error:
                self.fail(error)
                return False
            except RayError:  # the pump finds out what it means
                return False
            began = time.monotonic()
            worker.held.update((item, began) for item in worker.held)
        worker.prepared = self.id
        return True

    def _task(self, worker: Worker) -> bytes:
        billing = self.services.billing
        packed: bytes = msgpack.packb(
            {
                "job": self.id,
                "wire": self.code["wire"],
                "needs": [[*ref, self._results_of(*ref)] for ref in self.code["needs"]],
                "generator": self.request.generator,
                "usd_per_hour": str(billing.per_hour(self.key)),
                "simulated": billing.simulated(self.key),
                "mean_time_to_preemption_s": self.services.preemptions.mean_time_s(worker.instance),
            }
        )
        return packed

    def took_up(self, worker: Worker, items: list[int]) -> None:
        """A worker of an earlier gateway has these still."""
        worker.knows = worker.prepared = self.id
        for item in items:
            if item < self.items.total and not self.items.is_ended(item):
                self.items.states[item] = 1
                self.items.out[item] = worker.name
                worker.held[item] = time.monotonic()

    def given_back(self, worker: Worker, items: list[int]) -> None:
        for item in items:
            if worker.held.pop(item, None) is not None:
                self.items.put_back(item)

    # --- what workers tell ------------------------------------------------------------------------

    def told(self, worker: Worker, results: list[list[Any]], logs: list[list[Any]]) -> None:
        """Commit what it told; what raised and may be tried again goes back."""
        keep: list[list[Any]] = []
        back: list[int] = []
        times: list[float] = []
        if self.sweep is not None:
            results = self.sweep.sifted(results)
        for entry in results:
            item, kind, value, more = entry
            if kind == "error" and self._may_retry(item, value):
                back.append(item)
                tries = self._tries[item] = self._tries.get(item, 0) + 1
                of = self.request.retries + 1
                said = f"{value['name']}: {value['text']}"[:500]
                logs.append([item, "mlcloud", f"try {tries} of {of} has failed: {said}\n"])
            else:
                keep.append(entry)
            if kind not in ("part", "report"):
                times.append(float(more[0]))
        self.items.commit(keep, logs)
        if self.sweep is not None:
            self.sweep.heard(keep)
        for item, kind, *_ in results:
            if kind not in ("part", "report"):
                worker.held.pop(item, None)
        for item in back:
            self.items.put_back(item)
            self.retried += 1
        if times:
            mean = sum(times) / len(times)
            weight = min(0.9, len(times) / 20 + 0.2)
            self.mean_s = (
                mean if self.mean_s is None else (self.mean_s * (1 - weight) + mean * weight)
            )
        self.to_keep = True
        self._end_if_all()
        self.changed()

    def _may_retry(self, item: int, error: dict[str, Any]) -> bool:
        return not error.get("own") and self._tries.get(item, 0) < self.request.retries

    def lost(self, worker: Worker, gone: Gone) -> None:
        """A worker is gone with what it held."""
        held = [item for item in worker.held if not self.items.is_ended(item)]
        worker.held.clear()
        if self.sweep is not None:
            held = self.sweep.lost(held)
        if not held or self.over:
            return
        if gone.preempted:
            self.preempted += len(held)
            self._note(held, f"runs again: the node was lost ({gone.why})\n")
        failed: list[list[Any]] = []
        for item in held:
            if not gone.preempted and len(held) == 1:
                crashes = self._crashes[item] = self._crashes.get(item, 0) + 1
                if crashes >= CRASHES:
                    failed.append([item, "error", _quarantined(item, crashes, gone.why), [0.0]])
                    continue
                self._note([item], f"ended its worker, time {crashes} of {CRASHES}: {gone.why}\n")
            self.items.put_back(item, alone=not gone.preempted)
        if failed:
            self.items.commit(failed, [])
            if self.sweep is not None:
                self.sweep.heard(failed)
        self.to_keep = True
        self._end_if_all()
        self.changed()

    def lost_pins(self, error: MLCloudError, items: list[int]) -> None:
        """What these need is gone."""
        told = own_error(type(error).__name__, str(error))
        entries = [[i, "error", told, [0.0]] for i in items if not self.items.is_ended(i)]
        self.items.commit(entries, [])
        if self.sweep is not None:
            self.sweep.heard(entries)
        self.to_keep = True
        self._end_if_all()
        self.changed()

    def _note(self, items: list[int], text: str) -> None:
        self.items.commit([], [[item, "mlcloud", text] for item in items[:20]])

    def look(self, crews: Crews) -> None:
        """Now and then: items that take too long."""
        if self.sweep is not None:
            self.sweep.look(crews)
        if self._timeout_s is None or self.over:
            return
        for worker in crews.of(self):
            late = [i for i, at in worker.held.items() if time.monotonic() - at > self._timeout_s]
            if not late:
                continue
            worker.held.clear()
            for item in late:
                text = f"item {item} took longer than {self.request.timeout} and was ended"
                error = own_error("ExecutionTimeout", text)
                entry = [item, "error", error, [self._timeout_s]]
                self.items.commit([entry], [])
                if self.sweep is not None:
                    self.sweep.heard([entry])
            crews.end(worker)
        self._end_if_all()
        self.changed()

    # --- ends -------------------------------------------------------------------------------------

    def _end_if_all(self) -> None:
        if self.over or not self.complete or self.items.ended < self.items.total:
            return
        if self.sweep is not None:
            self.finish(*state_at_end(self.sweep))
            return
        failed = self.items.failed
        detail = f"{failed} of {self.items.total:,} items failed" if failed else ""
        if failed and self.request.single and (entry := self.items.result(0)) is not None:
            text = " ".join(str(entry[2]["text"]).split())
            detail = f"{entry[2]['name']}: {text}"[:DETAIL]
        self.finish(JobState.FAILED if failed else JobState.DONE, detail)

    def finish(self, state: JobState, detail: str = "") -> None:
        if self.over:
            return
        self.state, self.detail, self.finished_at = state, detail, now()
        self.next_run = None
        self.services.vault.forget(self.id)
        self.save()
        if self.crews is not None:
            for worker in self.crews.of(self):
                if any(not self.items.is_ended(item) for item in worker.held):
                    self.crews.end(worker)  # it would go on with what nobody wants any more
                else:
                    self.crews.free(worker)

    def fail(self, error: MLCloudError) -> None:
        self.finish(JobState.FAILED, f"{type(error).__name__}: {error}")


def _quarantined(item: int, crashes: int, why: str) -> dict[str, Any]:
    text = (
        f"item {item} has ended its worker process {crashes} times and is not run any more; the "
        f"other items go on. The last time: {why[:300]}"
    )
    return own_error("WorkerDied", text)


def own_error(name: str, text: str) -> dict[str, Any]:
    """An item's end that is the gateway's word: a class of `mlcloud.errors`, and its message."""
    return {"name": name, "text": text, "own": True, "lines": [], "records": []}
