"""Jobs that are over go: at a word, after `jobs_keep`, and runs of a schedule beyond the newest.

    refusal ─► None ─► remove: its manifests and loops' checkpoints in the store, its items, results
                       and logs in the tables; what stays is its name, owner and tags, for the costs

Chunks that nothing names any more are removed as all are (`gateway/upkeep.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, update

from mlcloud.checkpoint.step import KIND as CHECKPOINTS
from mlcloud.cluster.records import now
from mlcloud.errors import Conflict
from mlcloud.gateway.jobs import tables
from mlcloud.gateway.jobs.keeping import KIND as JOBS
from mlcloud.gateway.recurring import recurring

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.job import Job
    from mlcloud.gateway.jobs.jobs import Jobs

log = logging.getLogger(__name__)

FIRST_S = 60.0  # after the gateway has started
REMOVED = "removed"  # the state of what is left of a row


class Removal:
    """Of one gateway. `keep` 0: jobs stay. `runs` of each schedule stay. `every_s` 0: never."""

    def __init__(self, jobs: Jobs, keep: timedelta, runs: int, every_s: float) -> None:
        self._jobs, self._keep, self._runs, self._every_s = jobs, keep, runs, every_s

    async def run(self) -> None:
        failed = "jobs that are old are not removed"
        await recurring(self.once, log, failed, every_s=self._every_s, first_s=FIRST_S)

    async def once(self) -> None:
        for job in self.due():
            await self.remove(job)

    def due(self) -> list[Job]:
        """What the rules say."""
        found = {job.id: job for job in self.older(self._keep)} if self._keep else {}
        runs: dict[str, list[Job]] = {}
        for job in self._jobs:
            if job.over and job.request.schedule is not None:
                runs.setdefault(job.request.schedule, []).append(job)
        for each in runs.values():
            each.sort(key=lambda job: job.created_at)
            found |= {job.id: job for job in each[: -self._runs]}
        return [job for job in found.values() if self.refusal(job) is None]

    def older(self, than: timedelta) -> list[Job]:
        """Those that ended so long ago, and that nothing needs."""
        until = now() - than
        return [
            job
            for job in self._jobs
            if job.over and (job.finished_at or job.created_at) <= until and not self.refusal(job)
        ]

    def refusal(self, job: Job) -> str | None:
        """Why it cannot be removed."""
        if not job.over:
            return f"job {job.id} is {job.state.value}: cancel it first"
        for other in self._jobs:
            if not other.over and job.id in other.refers():
                return f"job {other.id}, which is {other.state.value}, needs its result"
        return None

    async def remove(self, job: Job) -> None:
        """Raises `Conflict`, and `StoreError` where the store does not answer."""
        if why := self.refusal(job):
            raise Conflict(why)
        async with self._jobs.keeping.turn:  # nobody writes it meanwhile
            job.to_keep = False
            await asyncio.to_thread(self._remove, job)
            self._jobs.forget(job)
        log.info("job %s (%s) was removed", job.id, job.request.name)

    def _remove(self, job: Job) -> None:
        store = self._jobs.keeping.store
        for kind in (CHECKPOINTS, JOBS):
            for name in store.names(kind, under=job.id):
                for step in store.steps(kind, name):
                    store.discard(kind, name, step)
        request = job.request.model_copy(update={"source": "", "environment": None, "sweep": None})
        left = {
            "state": REMOVED,
            "request": request.model_dump_json(),
            "code": b"",
            "remembered": json.dumps({}),
        }
        table = tables.jobs
        with self._jobs.keeping.engine.begin() as connection:
            for each in (tables.inputs, tables.results):
                connection.execute(delete(each).where(each.c.job_id == job.id))
            connection.execute(update(table).where(table.c.id == job.id).values(left))
