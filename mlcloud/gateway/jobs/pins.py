"""Items and jobs that only one worker can run, since it keeps what no pickle can bring elsewhere.

results that an item, or a job's function, needs are there ─► some are kept ─► pinned
look ─► its worker is free: it is the job's │ it is busy: it gets nothing else │ gone: they fail
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mlcloud.errors import JobFailed, ResultLost
from mlcloud.job_models import JobState

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.crew import Crews, Worker
    from mlcloud.gateway.jobs.job import Job


class Pins:
    """`result_of(job id, item)` is a result as it travels."""

    def __init__(self, crews: Crews, result_of: Callable[[str, int], Any]) -> None:
        self._crews, self._result_of = crews, result_of

    def _keeper(self, refs: Iterable[Any]) -> Worker | None:
        """The worker that has what these results cannot bring. Raises `ResultLost`."""
        return self._crews.kept.worker([*ref, self._result_of(*ref)] for ref in refs)

    def function(self, job: Job) -> None:
        """All that its function needs is there."""
        try:
            worker = self._keeper(job.code["needs"])
        except JobFailed as error:
            job.fail(error)
            return
        job.pin = None if worker is None else worker.name

    def item(self, job: Job, item: int) -> None:
        """All that this item needs is there."""
        if job.over or job.items.is_ended(item):
            return
        wire = job.items.wire(item)
        try:
            worker = self._keeper(wire[1] if len(wire) > 1 else [])
            if job.pin is not None and worker is not None and worker.name != job.pin:
                raise ResultLost(
                    "its function and its arguments need results that are kept in two workers, so "
                    "nothing can have both: make them in one call"
                )
        except JobFailed as error:
            job.lost_pins(error, [item])
            return
        if worker is not None and job.pin is None:
            job.items.pin(item, worker.name)

    def look(self, jobs: Iterable[Job]) -> None:
        """Now and then."""
        needed: set[str] = set()
        for job in jobs:
            for name in job.waits_for():
                worker = self._crews.workers.get(name)
                if worker is None:
                    self._lose(job, name)
                    continue
                needed.add(name)
                if worker.job is None and not worker.leaving:
                    self._crews.assign(worker, job)
                elif worker.job is not job and job.state is JobState.QUEUED:
                    job.detail = "waits for the worker that keeps a result which it needs"
        self._crews.needed = needed

    def _lose(self, job: Job, worker: str) -> None:
        """That worker is gone."""
        items = job.items.unpin(worker)
        refs = job.code["needs"] if job.pin == worker else []
        refs = refs or [ref for item in items for ref in job.items.wire(item)[1]]
        lost = ResultLost(f"{worker}, which alone could run it, is gone")
        try:
            self._keeper(refs)
        except ResultLost as error:
            lost = error
        if job.pin == worker:
            job.fail(lost)
        else:
            job.lost_pins(lost, items)
