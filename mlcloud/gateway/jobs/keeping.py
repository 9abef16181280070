"""Jobs in the store: the record, of which the gateway's tables are the cache.

    manifests/jobs/<job id>/<n>.json   signed; what the job is, and what is new: the rows of inputs
                                       and results since step n-1, packed into chunks
    at the job's end                   one manifest that names all of it; the others go

It names each chunk that code, items and results lie in, so nothing of a job is collected before the
job is. Another head reads it all back; `rerun` needs no more than this, years later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgpack
from sqlalchemy import Engine, delete, func, insert, select, update

from mlcloud.errors import MLCloudError, StepExists
from mlcloud.gateway.jobs import tables
from mlcloud.gateway.record import _from_plain, _plain
from mlcloud.job_models import JobRequest
from mlcloud.store import ChunkRef, Signer, Store
from mlcloud.values.packed import all_objects

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.job import Job
    from mlcloud.gateway.jobs.jobs import Jobs

log = logging.getLogger(__name__)

KIND = "jobs"
KEEP_S = 1.0
LONGEST_S = 10.0
SHARE = 0.02  # of a job's time between two of its manifests
_OWN = ("kept_inputs", "kept_results", "kept_step")


class Keeping:
    """Of one gateway. What blocks is called in threads."""

    def __init__(self, engine: Engine, store: Store, signer: Signer, cluster: str) -> None:
        self.engine, self.store, self._signer = engine, store, signer
        self._cluster = cluster
        self._written: dict[str, float] = {}
        self.turn = asyncio.Lock()

    async def run(self, jobs: Jobs) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            for job in jobs:
                if job.to_keep and self._is_due(job):
                    await self._write(job)

    def _is_due(self, job: Job) -> bool:
        if job.over:
            return True
        age = time.time() - job.created_at.timestamp()
        pause = min(LONGEST_S, max(KEEP_S, age * SHARE))
        return time.monotonic() - self._written.get(job.id, 0.0) >= pause

    async def write_all(self, jobs: Jobs) -> None:
        for job in jobs:
            if job.to_keep:
                await self._write(job)

    async def _write(self, job: Job) -> None:
        async with self.turn:
            job.to_keep = False
            self._written[job.id] = time.monotonic()
            try:
                await asyncio.to_thread(self.write, job.id, over=job.over)
            except MLCloudError as error:
                job.to_keep = True
                log.warning("job %s could not be recorded: %s", job.id, error)

    # --- writing ----------------------------------------------------------------------------------

    def write(self, job_id: str, *, over: bool) -> None:
        """What is new of it; at its end all of it, in one manifest."""
        jobs, inputs, results = tables.jobs, tables.inputs, tables.results
        with self.engine.connect() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
            from_input = 0 if over else row.kept_inputs
            from_result = 0 if over else row.kept_results
            new_inputs = connection.execute(
                select(inputs)
                .where(inputs.c.job_id == job_id, inputs.c.first >= from_input)
                .order_by(inputs.c.first)
            ).all()
            new_results = connection.execute(
                select(results)
                .where(results.c.job_id == job_id, results.c.number > from_result)
                .order_by(results.c.number)
            ).all()
        since = self.store.begin()
        plain = _plain(row)
        code = plain.pop("code")
        for name in _OWN:
            plain.pop(name)
        named = all_objects(
            [msgpack.unpackb(code, strict_map_key=False)]
            + [msgpack.unpackb(each.wires, strict_map_key=False) for each in new_inputs]
            + [msgpack.unpackb(each.entries, strict_map_key=False) for each in new_results]
        )
        body = {
            "cluster": self._cluster,
            "job": plain,
            "code": self._put([code]),
            "inputs": self._put(_packed(new_inputs)),
            "results": self._put(_packed(new_results)),
            "objects": [f"blake3:{each}" for each in (*named, *_wheels(row.request))],
            "whole": over,
        }
        step = row.kept_step + 1
        try:
            self.store.commit(KIND, job_id, step, body, sign=self._signer.sign, since=since)
        except StepExists:
            # By a head that was killed between this and its table's row.
            step = (self.store.latest(KIND, job_id) or step) + 1
            self.store.commit(KIND, job_id, step, body, sign=self._signer.sign, since=since)
        last_input = max((each.first + each.count for each in new_inputs), default=from_input)
        last_result = max((each.number for each in new_results), default=from_result)
        kept = {"kept_inputs": last_input, "kept_results": last_result, "kept_step": step}
        with self.engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(kept))
        if over:
            for older in self.store.steps(KIND, job_id):
                if older < step:
                    self.store.discard(KIND, job_id, older)

    def _put(self, parts: Iterable[bytes]) -> list[str]:
        return [str(ref) for ref in self.store.put_buffers(parts)]

    # --- reading ----------------------------------------------------------------------------------

    def rebuild(self) -> int:
        """Fill an empty table with this cluster's jobs; how many there were."""
        with self.engine.connect() as connection:
            if connection.execute(select(func.count()).select_from(tables.jobs)).scalar():
                return 0
        count = 0
        for job_id in self.store.names(KIND):
            step = self.store.latest(KIND, job_id)
            if step is None:
                continue
            body = self.store.read(KIND, job_id, step, verify=self._signer.verify)
            if body["cluster"] == self._cluster:
                count += self.load(job_id)
        if count:
            log.info("%d jobs were read back from the store", count)
        return count

    def load(self, job_id: str) -> bool:
        """Read a job of the store into the tables, also another cluster's. False: there is none.

        Raises `Damaged` where its manifests were not signed with this store's key.
        """
        steps = self.store.steps(KIND, job_id)
        if not steps:
            return False
        job: dict[str, Any] = {}
        code = b""
        inputs: dict[int, dict[str, Any]] = {}
        results: dict[int, dict[str, Any]] = {}
        for step in steps:
            body = self.store.read(KIND, job_id, step, verify=self._signer.verify)
            job, code = body["job"], self._get(body["code"])
            for each in self._rows(body["inputs"]):
                inputs[each["first"]] = each
            for each in self._rows(body["results"]):
                results[each["number"]] = each
        mine = body["cluster"] == self._cluster
        if not mine and job["state"] not in ("done", "failed", "cancelled"):
            job["state"], job["detail"] = "cancelled", "it was another cluster's"
        row = {**_from_plain(tables.jobs, job), "code": code, "kept_step": steps[-1]}
        row["kept_inputs"] = max((e["first"] + e["count"] for e in inputs.values()), default=0)
        row["kept_results"] = max(results, default=0)
        with self.engine.begin() as connection:
            connection.execute(delete(tables.jobs).where(tables.jobs.c.id == job_id))
            connection.execute(insert(tables.jobs).values(row))
            for table, found in ((tables.inputs, inputs), (tables.results, results)):
                connection.execute(delete(table).where(table.c.job_id == job_id))
                if found:
                    connection.execute(insert(table), list(found.values()))
        return True

    def _rows(self, refs: list[str]) -> list[dict[str, Any]]:
        if not refs:
            return []
        unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
        unpacker.feed(self._get(refs))
        return list(unpacker)

    def _get(self, refs: list[str]) -> bytes:
        return bytes(self.store.get_buffer([ChunkRef.parse(text) for text in refs]))


def _wheels(request: str) -> list[str]:
    """The chunks of its environment's wheels."""
    environment = JobRequest.model_validate_json(request).environment
    return [each for wheel in (environment.wheels if environment else ()) for each in wheel.objects]


def _packed(rows: Iterable[Any]) -> list[bytes]:
    """Rows one after the other, as one buffer; none of no rows."""
    packed = b"".join(msgpack.packb(dict(row._mapping)) for row in rows)
    return [packed] if packed else []
