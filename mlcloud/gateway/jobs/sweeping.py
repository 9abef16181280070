"""A sweep: a job whose items are made here, one whenever there is a worker for it.

    Search.ask ─► item (params) ─► worker ─► reports ─► Search.report ─► go on, or stop it
        ▲                             └────► its end ─► Search.tell
        └─ as many at once as the job has workers; its end: no more to ask for, its time or money

The search is a cache too: its trials are read back from the items and from what workers told, which
are in the tables and in the store. So it goes on after this process was killed, and a sweep's
notebook may be closed. What a trial returns is never unpickled here: workers tell numbers beside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mlcloud.cluster.records import now
from mlcloud.errors import JobFailed, MLCloudError, UsageError
from mlcloud.job_models import JobRequest, JobState, SweepRequest
from mlcloud.sweeps import space
from mlcloud.sweeps.breeding import Breeding, Population
from mlcloud.sweeps.search import Asha, Search
from mlcloud.units import parse_duration

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.crew import Crews, Worker
    from mlcloud.gateway.jobs.job import Job

log = logging.getLogger(__name__)

LOOK_S = 0.5
STOP_S = 5.0  # a trial that has not reported for so long after it was stopped is ended
HOPELESS = 5  # so many trials failed, and none came to anything: the rest would too
POPULATION = 8
STOPPED = "stopped"
_NONE = pickle.dumps(None)


def check(request: JobRequest) -> None:
    """Raises `UsageError` for a sweep that cannot be."""
    wanted = request.sweep
    assert wanted is not None
    if wanted.lasts is not None:
        parse_duration(wanted.lasts)
    made = _searching(wanted, [])
    if isinstance(made, Search) and not (made.wanted or wanted.lasts or request.max_cost):
        raise UsageError("this sweep has no end: give trials=40, or a budget in dollars or time")


def _searching(request: SweepRequest, records: list[dict[str, Any]]) -> Search | Population:
    known = space.described(request.space)
    try:
        if request.algorithm == "pbt":
            if request.asha is not None:
                raise UsageError("a population ends its own members: leave asha out")
            size = request.trials or POPULATION
            breeding = Breeding(**(request.breeding or {}))
            return Population(
                known, request.metrics, size, breeding, seed=request.seed, records=records
            )
        return Search(
            known,
            request.metrics,
            algorithm=request.algorithm,
            trials=request.trials,
            asha=Asha(**request.asha) if request.asha is not None else None,
            seed=request.seed,
            records=records,
        )
    except TypeError as error:
        raise UsageError(f"no such search can be: {error}") from None


class Sweep:
    """Of one job. But for `_turn`, `read` and what they call, all is called on the event loop."""

    def __init__(self, job: Job, request: SweepRequest) -> None:
        self._job, self.request = job, request
        self.why = ""  # it ended before its end
        self.version = 0
        self.records: list[dict[str, Any]] = []
        self._search: Search | Population | None = None
        self._events: deque[tuple[int, str, Any]] = deque()
        self._due = asyncio.Event()
        self._steps: dict[int, int] = {}
        self._stopping: dict[int, float] = {}
        self._told_to_stop: set[int] = set()
        self._finals: dict[int, dict[str, float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._reading = threading.Lock()
        self._lasts_s = (
            parse_duration(request.lasts).total_seconds() if request.lasts is not None else None
        )

    @property
    def names(self) -> list[str]:
        return list(self.request.space)

    @property
    def any_good(self) -> bool:
        return self._search is not None and self._search.best is not None

    # --- what workers tell ------------------------------------------------------------------------

    def sifted(self, results: list[list[Any]]) -> list[list[Any]]:
        """Without reports of steps that were told before; ends of stopped trials are marked."""
        kept = []
        for entry in results:
            item, kind, value, more = entry
            if kind == "report":
                if not value["final"]:
                    if more[0] <= self._steps.get(item, -1):
                        continue
                    self._steps[item] = more[0]
            elif kind != "part" and (
                item in self._stopping or (kind == "error" and value["name"] == "TrialStopped")
            ):
                self._stopping.pop(item, None)
                entry = [item, "ok", _NONE, [more[0], STOPPED]]
            kept.append(entry)
        return kept

    def heard(self, entries: list[list[Any]]) -> None:
        """These were committed."""
        for item, kind, value, more in entries:
            if kind == "report":
                self._events.append((item, kind, [more[0], value["values"], value["final"]]))
            elif kind == "error":
                self._events.append((item, kind, f"{value['name']}: {value['text']}"[:500]))
            elif kind == "ok":
                self._events.append((item, STOPPED if STOPPED in more[1:] else kind, None))
        self._due.set()

    def lost(self, held: list[int]) -> list[int]:
        """A worker is gone with these; the ones that run again."""
        self._end_stopped([item for item in held if item in self._stopping])
        return [item for item in held if not self._job.items.is_ended(item)]

    def look(self, crews: Crews) -> None:
        """Now and then: it is driven, its time, trials that do not stop."""
        job = self._job
        if self._task is None and not job.over:
            self._task = asyncio.create_task(self._run())
        late = [i for i, at in self._stopping.items() if time.monotonic() - at > STOP_S]
        for item in late:
            for worker in crews.of(job):
                if item in worker.held:
                    worker.held.pop(item)
                    crews.end(worker)
        self._end_stopped(late)
        if self._lasts_s is None or job.started_at is None or job.over:
            return
        if (now() - job.started_at).total_seconds() > self._lasts_s:
            self.end(f"its {self.request.lasts} are over")

    def _end_stopped(self, items: list[int]) -> None:
        ends = []
        for item in items:
            self._stopping.pop(item, None)
            if not self._job.items.is_ended(item):
                ends.append([item, "ok", _NONE, [0.0, STOPPED]])
        if ends:
            self._job.items.commit(ends, [])
            self.heard(ends)

    # --- its end ----------------------------------------------------------------------------------

    def end(self, why: str) -> None:
        """Now, with what there is: what trials reported last counts."""
        if self.why or self._job.over:
            return
        self.why = why
        self._end_all()

    def _end_all(self) -> None:
        job = self._job
        self._end_stopped([i for i in range(job.items.total) if not job.items.is_ended(i)])
        for worker in job.workers:
            if worker.held and job.crews is not None:
                job.crews.end(worker)
        self._due.set()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # --- the search -------------------------------------------------------------------------------

    async def _run(self) -> None:
        job = self._job
        try:
            await asyncio.to_thread(self.read)
            while not job.over:
                await self._go_on()
            await asyncio.to_thread(self._turn, list(self._events), 0)
        except MLCloudError as error:
            job.fail(error)
        except Exception as error:
            log.exception("the search of sweep %s has failed", job.id)
            job.fail(JobFailed(f"its search has failed: {error}"))
        finally:
            self._changed()

    async def _go_on(self) -> None:
        job = self._job
        self._due.clear()
        events = [self._events.popleft() for _ in range(len(self._events))]
        open_items = job.items.total - job.items.ended
        room = 0 if self.why else max(0, job.request.max_workers - open_items)
        made, stop = await asyncio.to_thread(self._turn, events, room)
        if job.over:
            return
        if made and not self.why:
            items = [[pickle.dumps(((each["params"],), {}, None), 5), [], each] for each in made]
            job.add(job.items.total, items, {}, last=False)
        for item in stop:
            self._stop(item)
        if events or made:
            self._changed()
            job.woken()
        if self._events:
            return
        if hopeless := self._hopeless():
            self._end_all()
            job.fail(JobFailed(hopeless))
        elif self._search_is_over():
            job.add(job.items.total, [], {}, last=True)
            job._end_if_all()
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._due.wait(), LOOK_S)

    def _turn(
        self, events: list[tuple[int, str, Any]], room: int
    ) -> tuple[list[dict[str, Any]], list[int]]:
        """In a thread: (new trials, those that are to stop)."""
        search = self._search
        assert search is not None
        stop = []
        for item, kind, what in events:
            trial = search.trials.get(item)
            if trial is None or trial.state != "running":
                continue
            if kind == "report":
                step, values, final = what
                if final:
                    self._finals[item] = values
                elif item not in self._told_to_stop and not search.report(item, step, values):
                    self._told_to_stop.add(item)
                    stop.append(item)
            elif kind == STOPPED:
                search.stop(item)
            elif kind == "error":
                search.fail(item, what)
            else:
                try:
                    search.tell(item, self._finals.pop(item, {}))
                except UsageError as error:
                    search.fail(item, str(error))
        made = []
        for _ in range(room):
            asked = search.ask()
            if asked is None:
                break
            more = {name: getattr(asked, name, None) for name in ("parent", "since")}
            made.append({"params": asked.params, **more})
        self.records = search.records
        return made, stop

    def _stop(self, item: int) -> None:
        """A trial lags behind."""
        job = self._job
        if job.items.is_ended(item):
            return
        holder = next((w for w in job.workers if item in w.held), None)
        self._stopping[item] = time.monotonic()
        if holder is None or job.crews is None:
            self._end_stopped([item])
        else:
            job.crews._spawn(self._ask_to_stop(holder, item))

    async def _ask_to_stop(self, worker: Worker, item: int) -> None:
        with contextlib.suppress(Exception):  # it may be gone; `look` ends what does not stop
            await worker.handle.stop.remote(self._job.id, item)

    def _search_is_over(self) -> bool:
        search = self._search
        assert search is not None
        if search.running:
            return False
        if self.why:
            return True
        if isinstance(search, Population):
            return not search.waits
        return search.wanted is not None and len(search.trials) >= search.wanted

    def _hopeless(self) -> str:
        search = self._search
        assert search is not None
        failed = [each for each in search.trials.values() if each.state == "failed"]
        others = any(each.state in ("done", STOPPED) for each in search.trials.values())
        wanted = getattr(search, "wanted", None) or HOPELESS
        if others or len(failed) < min(HOPELESS, wanted):
            return ""
        return f"its first {len(failed)} trials have failed; the last: {failed[-1].why}"

    def _changed(self) -> None:
        self.version += 1
        self._job.changed()

    # --- read back --------------------------------------------------------------------------------

    def read(self) -> None:
        """Make the search of what is known. Blocks."""
        with self._reading:
            if self._search is None:
                self._search = self._read()
                self.records = self._search.records

    def _read(self) -> Search | Population:
        items = self._job.items
        request = self.request
        kind = Population if request.algorithm == "pbt" else Search
        records: list[dict[str, Any]] = []
        for number in range(items.total):
            made = items.wire(number)[2]
            record: dict[str, Any] = {"number": number, "params": made["params"], "values": {}}
            record |= {"state": "running", "step": None, "why": "", "rungs": []}
            if kind is Population:
                since = made["since"]
                record |= {"parent": made["parent"], "since": since, "looked": since or 0}
            records.append(record)
        row = 0
        while row < items.rows:
            row, entries = items.as_told(row, 2**20)
            for item, told, value, more in entries:
                self._replay(records[item], told, value, more)
        for record in records:
            record.pop("final", None)
        return _searching(request, records)

    def _replay(self, record: dict[str, Any], told: str, value: Any, more: list[Any]) -> None:
        request = self.request
        if told == "report":
            if value["final"]:
                record["final"] = value["values"]
                if record["number"] not in self._finals:
                    self._finals[record["number"]] = value["values"]
                return
            step = self._steps[record["number"]] = record["step"] = more[0]
            record["values"] = {**record["values"], **value["values"]}
            first = next(iter(request.metrics))
            found = value["values"].get(first)
            if "looked" in record:
                every = Breeding(**(request.breeding or {})).interval
                if first in record["values"] and step - record["looked"] >= every:
                    record["looked"] = step
            elif request.asha is not None and found is not None:
                asha = Asha(**request.asha)
                if step >= asha.first * asha.factor ** len(record["rungs"]):
                    record["rungs"].append((step, found))
        elif told == "error":
            record["state"], record["why"] = "failed", f"{value['name']}: {value['text']}"[:500]
        elif told == "ok" and STOPPED in more[1:]:
            record["state"] = STOPPED
        elif told == "ok":
            record["values"] = {**record["values"], **self._finals.pop(record["number"], {})}
            missing = [name for name in request.metrics if name not in record["values"]]
            record["state"] = "failed" if missing else "done"
            record["why"] = f"it told no {', '.join(missing)}" if missing else ""

    def view(self) -> dict[str, Any]:
        """For clients: plain data."""
        request = self.request
        search, over = self._search, self._job.over
        trials = [
            {**each, "state": STOPPED if over and each["state"] == "running" else each["state"]}
            for each in self.records
        ]
        return {
            "version": self.version,
            "metrics": request.metrics,
            "names": self.names,
            "space": request.space,
            "trials": trials,
            "wanted": getattr(search, "wanted", None),
            "why": self.why,
            "limit_usd": self._job.request.max_cost,
            "front": [each.number for each in search.front]
            if search is not None and len(request.metrics) > 1
            else [],
        }


def state_at_end(sweep: Sweep) -> tuple[JobState, str]:
    """What a sweep whose trials have all ended has come to."""
    if sweep.any_good:
        return JobState.DONE, sweep.why
    wanted = ", ".join(sweep.request.metrics)
    return JobState.FAILED, f"JobFailed: no trial told {wanted}" + f"; {sweep.why}" * bool(
        sweep.why
    )
