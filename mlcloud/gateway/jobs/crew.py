"""Workers: warm processes in Ray actors, by the shape of what they may hold.

    demand(shape, n) ─► actors asked of Ray, whose autoscaler brings nodes ─► idle ─ assign ─► job's
                                                                               ▲                │
                               ended after `IDLE_S` ◄──────────────────────────┴─── free ◄──────┘

A worker serves one job at a time, and stays warm for the next one. A new process costs about a
second and a half, a GPU task of plain Ray's each time. How an end is told apart: `Gone.preempted`
where the node has ended or had its notice, else the process died by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import HostRequest, choose
from mlcloud.cost.ledger import Placement
from mlcloud.errors import MLCloudError, SessionFailed
from mlcloud.gateway import db
from mlcloud.gateway.hosts import NAMESPACE
from mlcloud.gateway.jobs import tables
from mlcloud.gateway.jobs.kept import KeptResults, Key
from mlcloud.models import EnvironmentSpec
from mlcloud.units import parse_gpu, parse_size
from mlcloud.values.refs import job_of

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.job import Job
    from mlcloud.gateway.session import Services

log = logging.getLogger(__name__)

IDLE_S = 20.0
STARTS_AT_ONCE = 2  # or as many as there are already
NODE_END_S = 1.0  # a node's record may say after its processes that it has ended
SILENCE_S = 30.0
START_TRIES = 5


@dataclass(frozen=True)
class Shape:
    """What a worker holds, and with what it runs."""

    cpus: float
    gpu: str | None
    memory: str | None
    market: str
    environment: str = ""  # JSON of an `EnvironmentSpec`
    private: str = ""  # JSON of secrets' names and data: others' jobs have no part in them

    def request(self, services: Services) -> HostRequest:
        """Raises `NoSuchResources`."""
        return choose(
            services.cluster.types,
            cpus=self.cpus,
            memory_bytes=parse_size(self.memory) if self.memory else 0,
            gpu=parse_gpu(self.gpu) if self.gpu else None,
            market="on-demand" if self.market == "on-demand" else "spot",
        )


@dataclass(frozen=True)
class Gone:
    """How a worker ended."""

    why: str
    preempted: bool


@dataclass(eq=False)
class Worker:
    """One process. `held`: the items that it was given and has not told the end of."""

    name: str
    shape: Shape
    handle: Any
    instance: str = ""
    job: Job | None = None
    held: dict[int, float] = field(default_factory=dict)
    knows: str = ""  # the job whose code it has
    placement: Placement | None = None
    after: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    leaving: bool = False
    over: bool = False
    pump: asyncio.Task[None] | None = None
    packages: dict[str, str] | None = None  # with an environment of its own
    prepared: str = ""  # the job whose secrets and data it has
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of who prepares it


class Crews:
    """All workers of a gateway. `told` gets what a worker says, `gone` how it ended."""

    def __init__(
        self,
        services: Services,
        *,
        told: Callable[[Worker, list[bytes]], None],
        gone: Callable[[Worker, Gone], None],
        failed: Callable[[Shape, Exception], None],
        ready: Callable[[], None],
    ) -> None:
        self._services = services
        self._told, self._gone, self._failed, self._ready = told, gone, failed, ready
        self.workers: dict[str, Worker] = {}
        self.starting: dict[Shape, int] = {}
        self.kept = KeptResults(self._drop)
        self.needed: set[str] = set()  # workers that have what waiting items need
        self._tasks: set[asyncio.Task[Any]] = set()

    def of(self, job: Job) -> list[Worker]:
        return [each for each in self.workers.values() if each.job is job and not each.over]

    def idle(self, shape: Shape) -> Worker | None:
        """One that keeps results of others comes last."""
        found = [
            each
            for each in self.workers.values()
            if each.job is None and each.shape == shape and not each.leaving and not each.over
        ]
        free = (each for each in found if not self.kept.of(each))
        return next(free, found[0] if found else None)

    def keeping(self, job_id: str) -> list[Worker]:
        """Workers that nobody uses now and that stay for results of this job."""
        found = {each.name: each for each in self.workers.values() if each.job is None}
        keys = {each: self.kept.of(worker) for each, worker in found.items()}
        return [found[each] for each, of in keys.items() if of and of[-1][0] == job_id]

    # --- coming -----------------------------------------------------------------------------------

    def demand(self, shape: Shape, wanted: int, jobs: list[str]) -> None:
        """So many more are wanted than there are, for these jobs."""
        live = sum(each.shape == shape for each in self.workers.values())
        under_way = self.starting.get(shape, 0)
        most = max(STARTS_AT_ONCE, live)
        for _ in range(min(wanted, most) - under_way):
            self.starting[shape] = self.starting.get(shape, 0) + 1
            self._spawn(self._start(shape, jobs))

    async def _start(self, shape: Shape, jobs: list[str]) -> None:
        try:
            with self._services.buying(shape.request(self._services), jobs):
                worker = await self._bring_up(shape)
        except (MLCloudError, Exception) as error:
            log.warning("no worker of %s could be started: %s", shape, error)
            self._failed(shape, error)
            return
        finally:
            self.starting[shape] -= 1
        self._attach(worker)
        self._ready()

    async def _bring_up(self, shape: Shape) -> Worker:
        services = self._services
        await services.cluster.joined()
        # Not before: Ray reads at its first import which address a driver is to use.
        from ray.exceptions import RayError

        request = shape.request(services)
        last: Exception | None = None
        for _ in range(START_TRIES):
            name = f"job-worker-{secrets.token_hex(6)}"
            with services.engine.begin() as connection:
                row = {"name": name, "crew": json.dumps(shape.__dict__)}
                connection.execute(insert(tables.workers).values(row))
            handle = await asyncio.to_thread(self._create, name, shape, request)
            try:
                facts = await handle.facts.remote(packages=bool(shape.environment))
                at, packages = str(facts["instance"]), facts["packages"]
                return Worker(name, shape, handle, instance=at, packages=packages)
            except asyncio.CancelledError:
                self._forget(name, handle)
                raise
            except RayError as error:
                last = error
                self._forget(name, handle)
                _raise_if_broken(error)
                await asyncio.sleep(1.0)
        raise SessionFailed(f"no worker could be started in {START_TRIES} tries: {last}")

    def _create(self, name: str, shape: Shape, request: HostRequest) -> Any:
        import ray

        from mlcloud.gateway.environments import runtime_env_of
        from mlcloud.gateway.hosting import gone_of_late
        from mlcloud.kernel.job_actor import JobWorker

        services = self._services
        shunned = {*gone_of_late(services.cluster.cloud), *services.leaving}
        labels = {}
        if shunned:
            labels["mlcloud.instance"] = f"!in({', '.join(sorted(shunned))})"
        spec = EnvironmentSpec.model_validate_json(shape.environment) if shape.environment else None
        return (
            ray.remote(JobWorker)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=100,
                num_cpus=request.num_cpus,
                num_gpus=request.num_gpus,
                memory=(parse_size(shape.memory) if shape.memory else 0) or None,
                resources=request.resources,
                label_selector=labels or None,
                runtime_env=runtime_env_of(spec, services.store_url, services.ray_dir),
            )
            .remote(store_url=services.store_url, folder=str(services.ray_dir / "h"))
        )

    def _attach(self, worker: Worker) -> None:
        self.workers[worker.name] = worker
        self._services.cluster.cloud.records.served(worker.instance)
        worker.pump = self._spawn(self._read(worker))

    async def adopt(
        self, find: Callable[[str], Job | None], keep_s: Callable[[str], float]
    ) -> None:
        """Find the actors of an earlier gateway; what has no job that goes on is ended."""
        with self._services.engine.connect() as connection:
            rows = connection.execute(select(tables.workers)).all()
        if not rows:
            return
        hosts = await self._services.cluster.joined()
        for row in rows:
            handle = await asyncio.to_thread(hosts.find, row.name)
            job = find(row.job_id) if row.job_id else None
            if handle is None:
                self._forget(row.name, None)
                continue
            try:
                facts = await asyncio.wait_for(handle.facts.remote(), 10)
                held = await asyncio.wait_for(handle.status.remote(), 10)
                kept = await asyncio.wait_for(handle.kept.remote(), 10)
                has = await asyncio.wait_for(handle.held_secrets.remote(), 10)
            except Exception as error:  # Ray's kinds of gone
                log.info("worker %s is not taken up again: %s", row.name, error)
                self._forget(row.name, handle)
                continue
            shape = Shape(**json.loads(row.crew))
            worker = Worker(row.name, shape, handle, instance=str(facts["instance"]))
            if job is not None:
                worker.job = job
                worker.placement = self._open_placement(job.key, worker.instance)
                wanted = self._services.vault.missing(job)
                self._services.vault.put(job.id, {n: has[n] for n in wanted if n in has})
                job.took_up(worker, [item for name, item in held if name == job.id])
            for of, item in kept:
                self.kept.note((of, item), worker, keep_s(job_of(of)))
            if job is None and kept:
                worker.placement = self._open_placement(
                    f"job:{job_of(kept[-1][0])}", worker.instance
                )
            self._attach(worker)
        self._ready()

    def _open_placement(self, key: str, instance: str) -> Placement | None:
        used = {each.placement for each in self.workers.values()}
        for each in self._services.billing.open_placements(key):
            if each.node_id == instance and each not in used:
                return each
        return None

    # --- a job's ----------------------------------------------------------------------------------

    def assign(self, worker: Worker, job: Job) -> None:
        self._close_bill(worker)
        worker.job = job
        self._open_bill(worker, job.key)
        self._note_job(worker, job.id)

    def _open_bill(self, worker: Worker, key: str) -> None:
        share = Decimal(str(round(worker.shape.request(self._services).share, 6)))
        billing = self._services.billing
        billing.see(self._services.cluster.cloud.instances())
        worker.placement = Placement(key, worker.instance, share, now())
        billing.add(worker.placement)

    def free(self, worker: Worker) -> None:
        """Its job needs it no more: it waits for another one.

        The job whose results it keeps pays for it.
        """
        worker.job = None
        worker.held.clear()
        worker.idle_since = time.monotonic()
        self._close_bill(worker)
        if not worker.over:
            self._note_job(worker, "")
            if keys := self.kept.of(worker):
                self._open_bill(worker, f"job:{job_of(keys[-1][0])}")

    def _close_bill(self, worker: Worker) -> None:
        placement, worker.placement = worker.placement, None
        if placement is None:
            return
        billing = self._services.billing
        billing.see(self._services.cluster.cloud.instances())
        ends = now()
        if billing.ledger.knows(placement.node_id):
            node_end = billing.ledger.node(placement.node_id).ended_at
            ends = min(ends, node_end or ends)
        billing.add(replace(placement, ended_at=ends))

    def _note_job(self, worker: Worker, job_id: str) -> None:
        with db.writing(self._services.engine) as connection:
            changed = update(tables.workers).where(tables.workers.c.name == worker.name)
            connection.execute(changed.values(job_id=job_id))

    # --- going ------------------------------------------------------------------------------------

    def end(self, worker: Worker, why: str = "its worker was ended") -> None:
        """Kill it: it is not needed, or its item is not to go on."""
        if worker.over:
            return
        worker.over = True
        self.workers.pop(worker.name, None)
        self.kept.forget(self.kept.of(worker), why)
        self._close_bill(worker)
        if worker.pump is not None:
            worker.pump.cancel()
        self._forget(worker.name, worker.handle)

    def _lost(self, worker: Worker, gone: Gone) -> None:
        if worker.over:
            return
        job = worker.job
        what = "its node was lost" if gone.preempted else "its worker died"
        self.end(worker, f"{what} ({gone.why})")
        log.info("worker %s on %s is gone: %s", worker.name, worker.instance, gone)
        worker.job = job
        self._gone(worker, gone)

    def _forget(self, name: str, handle: Any) -> None:
        hosts = self._services.cluster.hosts
        if handle is not None and hosts is not None:
            self._spawn(asyncio.to_thread(hosts.kill, handle))
        with db.writing(self._services.engine) as connection:
            connection.execute(delete(tables.workers).where(tables.workers.c.name == name))

    def on_node_end(self, instance: str, reason: str | None) -> None:
        for worker in [*self.workers.values()]:
            if worker.instance == instance:
                self._lost(worker, Gone(reason or "its node ended", preempted=True))

    def look(self) -> None:
        """Now and then: notices, and workers that nobody needs."""
        for worker in [*self.workers.values()]:
            leaving = self._services.leaving.get(worker.instance)
            if leaving is not None and not worker.leaving:
                worker.leaving = True
                left = max(0.0, (leaving.deadline - now()).total_seconds())
                self._spawn(self._notice(worker, left))
            if worker.job is not None:
                continue
            if worker.leaving:
                self.end(worker, "its node was taken back")
            elif time.monotonic() - worker.idle_since > IDLE_S and not self.kept.of(worker):
                self.end(worker)
        self.kept.look(lambda worker: worker.name in self.needed)

    def _drop(self, worker: Worker, keys: list[Key]) -> None:
        self._spawn(self._tell_drop(worker, keys))
        if worker.job is None and not self.kept.of(worker):
            self._close_bill(worker)
            worker.idle_since = time.monotonic()

    async def _tell_drop(self, worker: Worker, keys: list[Key]) -> None:
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):  # it is gone, and they with it
            await worker.handle.drop.remote([list(each) for each in keys])

    async def _notice(self, worker: Worker, left_s: float) -> None:
        """What it has not begun goes to others; what runs is told to save."""
        with contextlib.suppress(Exception):  # it may be gone already
            await worker.handle.notice.remote(left_s)
            given = await worker.handle.give_back.remote()
            if worker.job is not None:
                worker.job.given_back(worker, given)

    # --- reading ----------------------------------------------------------------------------------

    async def _read(self, worker: Worker) -> None:
        from ray.exceptions import ActorDiedError, RayError

        while not worker.over:
            try:
                events = await worker.handle.events.remote(worker.after)
            except ActorDiedError as error:
                await self._find_out(worker, str(error).strip().splitlines()[0])
                return
            except RayError as error:
                # Unavailable is not dead: the link may come back, and it keeps its events.
                if time.monotonic() - worker.heard > SILENCE_S:
                    self._lost(worker, Gone(f"not heard of: {error}", preempted=True))
                    return
                await asyncio.sleep(0.25)
                continue
            worker.heard = time.monotonic()
            if self._services.lease.lapsed:
                await asyncio.sleep(0.25)  # it keeps them until this head has looked
                continue
            new = [body for number, body in events if number > worker.after]
            if new:
                try:
                    self._told(worker, new)
                except Exception:
                    log.exception("what a worker told could not be kept; trying again")
                    await asyncio.sleep(2.0)
                    continue
                worker.after = events[-1][0]

    async def _find_out(self, worker: Worker, why: str) -> None:
        """Whether the process died, or its node did."""
        cloud = self._services.cluster.cloud
        until = time.monotonic() + NODE_END_S
        while time.monotonic() < until:
            if worker.over:
                return
            instance = await asyncio.to_thread(cloud.get, worker.instance)
            if not instance.alive:
                self._lost(worker, Gone(instance.reason or why, preempted=True))
                return
            await asyncio.sleep(0.1)
        leaves = worker.instance in self._services.leaving
        self._lost(worker, Gone(why, preempted=leaves))

    async def close(self, *, keep: bool) -> None:
        """With `keep` the actors run on for the next gateway."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not keep:
            for worker in [*self.workers.values()]:
                self.end(worker)

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _raise_if_broken(error: Exception) -> None:
    from mlcloud.errors import EnvironmentFailed
    from mlcloud.kernel.overlay import BEGIN, END

    text = str(error)
    if BEGIN in text:
        why = text.partition(BEGIN)[2].partition(END)[0]
        raise EnvironmentFailed(f"the environment of the job could not be made: {why}") from error
