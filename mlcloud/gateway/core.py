"""The gateway's parts, put together: database, store, cluster, sessions, and the idle end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack

from mlcloud import __version__
from mlcloud.cluster.attempts import Attempt
from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.clouds.headed import Headed
from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.cluster.notices.clouds import ENDPOINTS
from mlcloud.cluster.preemptions import Preemptions
from mlcloud.cluster.records import now
from mlcloud.cluster_models import AttemptInfo, ClusterInfo, NodeInfo, NodeUse
from mlcloud.config import Settings
from mlcloud.cost.least import Least
from mlcloud.cost.ledger import NodeSpan, PriceChange
from mlcloud.cost_models import Spend
from mlcloud.errors import MLCloudError, NotFound, StoreError
from mlcloud.gateway.billing import Billing, is_worker
from mlcloud.gateway.budgets import Budgets
from mlcloud.gateway.comeback import Comeback
from mlcloud.gateway.costs import CostReports
from mlcloud.gateway.db import open_database
from mlcloud.gateway.embedded import EmbeddedCluster
from mlcloud.gateway.execution import Execution, Executions
from mlcloud.gateway.farewell import Farewell
from mlcloud.gateway.gangs import Warm
from mlcloud.gateway.inputs import Inputs
from mlcloud.gateway.jobs.jobs import Jobs
from mlcloud.gateway.lease import PATIENCE_S, RENEW_S, Lease, cluster_of
from mlcloud.gateway.links import Links
from mlcloud.gateway.notices import Leaving, Notices
from mlcloud.gateway.record import Fenced, Record
from mlcloud.gateway.repricing import Repricing
from mlcloud.gateway.session import Services
from mlcloud.gateway.sessions import Sessions
from mlcloud.gateway.snapshots import SnapshotLog
from mlcloud.gateway.specified import Specified
from mlcloud.gateway.spend import Spending
from mlcloud.gateway.traffic import Traffic
from mlcloud.gateway.upkeep import Upkeep
from mlcloud.gateway.usage import UsageTable
from mlcloud.gateway.vault import Vault
from mlcloud.models import ExecutionInfo
from mlcloud.store import Signer, Store, load_or_create_key

log = logging.getLogger(__name__)
IDLE_LOOKS, IDLE_LOOK_S = 5, 0.2  # so often it must be found idle, that far apart
BILLING_S = 1.0
LOOK_S = 0.5
LAST_RECORD_S = 10.0
USE_S = 15.0  # some heartbeats: what a node did longer ago is not what it does
ATTEMPTS_SHOWN = timedelta(hours=1)
RECORD_S, RECORD_PRINTED_S, RECORD_ALL_S = 1.0, 4.0, 30.0


class Gateway:
    """One per cluster, at `url`, and for nodes elsewhere at `nodes_url`.

    `on_idle` is called when nobody has used it for `idle_end`.
    """

    version = __version__

    def __init__(
        self,
        settings: Settings,
        url: str,
        token: str,
        *,
        on_idle: Callable[[], None],
        nodes_url: str = "",
    ) -> None:
        self.specified = Specified(settings)
        self.settings = settings = self.specified.settings(settings)
        self.links = Links(nodes_url or url)
        self.url, self.token = url, token
        self.engine = open_database(settings.database_url)
        self.store = Store(settings.store_url)
        signer = Signer(load_or_create_key(settings.store_key_file))
        _check_key(self.store, signer, settings)
        elsewhere = HeadSpec.read(settings.head_file).cluster_id if settings.head_file else ""
        self.lease = Lease(self.store, signer, cluster_of(settings.home, elsewhere))
        self.lease.take(PATIENCE_S if elsewhere else 0.0)
        self.record = Record(self.engine, self.store, signer, self.lease.cluster)
        rebuilt = self.record.rebuild()
        if rebuilt:
            log.info("%d sessions were read back from the store's record", rebuilt)
        self.record.let_go_of_lost()
        self.cluster = EmbeddedCluster(
            settings,
            on_end=self._node_ended,
            on_attempt=self._attempt,
            specification=self.specified.specification,
        )
        least = Least(settings.least_billed)
        self.billing = Billing(self.engine, self.cluster.cloud.offers(), least)
        self.billing.recall(self.record.nodes(), self.cluster.cloud.instances())
        self.spending = Spending(lambda: self.billing.ledger, self.billing)
        self.preemptions = Preemptions()
        self.traffic = Traffic(self.engine)
        leaving: dict[str, Leaving] = {}
        self.sessions = Sessions(
            Services(
                engine=self.engine,
                cluster=self.cluster,
                billing=self.billing,
                executions=Executions(self.engine, self.billing),
                links=self.links,
                snapshots=SnapshotLog(self.store, signer),
                record=self.record,
                lease=self.lease,
                inputs=Inputs(self.store),
                preemptions=self.preemptions,
                usage=UsageTable(self.engine),
                traffic=self.traffic,
                vault=Vault(),
                leaving=leaving,
                store_url=settings.store_url,
                ray_dir=settings.ray_dir,
                idle_timeout_s=settings.idle_timeout.total_seconds(),
                input_timeout_s=settings.input_timeout.total_seconds(),
                output_limits=settings.output_limits,
                snapshot_limits=settings.snapshot_limits,
            )
        )
        self.budgets = Budgets(self.sessions)
        self.costs = CostReports(self.billing, self.engine, self.store, self.traffic)
        self.sessions.services.refuse = self.budgets.refuse
        self.sessions.services.buying = self.budgets.buying.asking
        self.sessions.services.given = self.specified.given
        self.budgets.recall(self.record.budgets())
        endpoints = self.specified.present(settings).endpoints
        self.repricing = Repricing(settings, self.sessions, endpoints)
        self.specified.begin(self)
        self.jobs = Jobs(
            self.sessions.services,
            self.budgets,
            self.store,
            signer,
            self.lease.cluster,
            keep=settings.jobs_keep,
            keep_runs=settings.schedule_keep,
            remove_every_s=settings.prune_every.total_seconds(),
        )
        self.comeback = Comeback(self.sessions, settings.spot_return)
        self.farewell = Farewell(self)
        self.notices = Notices(self.cluster, self.sessions, leaving, self.farewell.on_notice)
        self.upkeep = Upkeep(settings, self.sessions, self.record, self.lease)
        self._on_idle = on_idle
        self._heard: set[str] = set()  # nodes whose agents were heard
        self._uses: dict[str, tuple[float, NodeUse]] = {}
        self.warm = Warm()
        self._last_used = time.monotonic()
        self._tasks: list[asyncio.Task[Any]] = []
        self._down = False

    def start(self) -> None:
        """Begin serving: the cluster comes up in the background."""
        self._see(self.cluster.cloud.instances())
        self.sessions.adopt_all()
        self.jobs.start()
        self._tasks = [
            asyncio.create_task(self.cluster.start()),
            asyncio.create_task(self.cluster.watch()),
            asyncio.create_task(self._watch_idle()),
            asyncio.create_task(self._keep_books()),
            asyncio.create_task(self._keep_record()),
            asyncio.create_task(self._keep_lease()),
            asyncio.create_task(self.upkeep.run()),
            asyncio.create_task(self.comeback.run()),
            asyncio.create_task(self.budgets.run()),
            asyncio.create_task(self.repricing.run()),
        ]

        rented = self.cluster.cloud.name in ENDPOINTS
        if rented:
            # A head that was started again on the same machine is as old as the first one there.
            records = self.cluster.cloud.instances()
            heads = [each.launched_at for each in records if each.node_type == HEAD]
            age = self.farewell.of_age(min(heads, default=now()), self._end)
            self._tasks.append(asyncio.create_task(age))

    async def _end(self) -> None:
        await self.down()
        self._on_idle()

    def used(self) -> None:
        self._last_used = time.monotonic()

    async def down(self) -> None:
        """End the cluster. Sessions stay in the store, parked."""
        if self._down:
            return
        self._down = True
        await self.jobs.close(keep=False)
        await self.sessions.shut(keep_hosts=False)
        await self.cluster.end()
        self.billing.see(self.cluster.cloud.instances())
        with contextlib.suppress(asyncio.TimeoutError):  # of a store that does not answer
            await asyncio.wait_for(self._record_all(everything=True), LAST_RECORD_S)

    async def close(self) -> None:
        """The server ends. Without a `down` before, the cluster runs on for the next gateway."""
        if not self._down:
            await self.jobs.close(keep=True)
        await self.sessions.shut(keep_hosts=True)
        try:  # a store that does not answer is not waited for: what was recorded is there
            await asyncio.wait_for(self._record_all(everything=True), LAST_RECORD_S)
            await asyncio.wait_for(asyncio.to_thread(self.lease.release), LAST_RECORD_S)
        except (MLCloudError, asyncio.TimeoutError) as error:
            log.warning("the end could not be recorded: %s", error)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.notices.close()
        self.traffic.flush(now_=True)
        await self.farewell.close()
        self.engine.dispose()

    # --- background -------------------------------------------------------------------------------

    async def _watch_idle(self) -> None:
        overdue = 0
        while True:
            limit = self.settings.idle_end.total_seconds()
            if self.sessions.busy() or self.jobs.busy():
                self.used()
            left = self._last_used + limit - time.monotonic()
            overdue = overdue + 1 if left <= 0 else 0
            if 0 < overdue < IDLE_LOOKS:
                # While Ray is imported this loop can stand still for seconds: requests may wait.
                await asyncio.sleep(IDLE_LOOK_S)
                continue
            if left <= 0:
                log.info("nobody has used this gateway for %.0f s: it ends", limit)
                await self._end()
                return
            await asyncio.sleep(min(left, 5.0))

    async def _keep_books(self) -> None:
        while True:
            await asyncio.sleep(BILLING_S)
            self._see(await asyncio.to_thread(self.cluster.cloud.instances))
            self.traffic.flush()
            if self.billing.due():
                try:
                    await self.billing.settle()
                except Exception:
                    log.exception("what days cost could not be settled, it is tried again")

    async def _keep_record(self) -> None:
        """Into the store: a cell's end and a budget at once, what a cell shows within seconds, all
        every 30 s."""
        everything = printed = time.monotonic()
        while True:
            await asyncio.sleep(RECORD_S)
            due = self.budgets.to_record or time.monotonic() - everything > RECORD_ALL_S
            if due:
                everything = time.monotonic()
            if time.monotonic() - printed > RECORD_PRINTED_S:
                printed = time.monotonic()
                for session in self.sessions:
                    session.to_record |= session.journal.last > session.recorded
            await self._record_all(everything=due)

    async def record_everything(self) -> None:
        """Sessions, their journals, what nodes cost, budgets: in the store when it returns."""
        for session in self.sessions:
            session.to_record |= session.journal.last > session.recorded
        await self._record_all(everything=True)

    async def _record_all(self, *, everything: bool) -> None:
        for session in self.sessions:
            if session.to_record or everything:
                await session.write_record()
        if everything:
            try:
                ledger, budgets = self.billing.ledger, self.budgets.plain()
                self.budgets.to_record = False
                nodes: list[NodeSpan | PriceChange] = [*ledger.nodes, *ledger.price_changes]
                await asyncio.to_thread(self.record.write_nodes, nodes, budgets)
            except MLCloudError as error:
                log.warning("what nodes cost could not be recorded: %s", error)

    async def _keep_lease(self) -> None:
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            if self.lease.lapsed:
                await self._look_what_is_ours()
            elif time.monotonic() - renewed < RENEW_S:
                continue
            renewed = time.monotonic()
            try:
                held = await asyncio.to_thread(self.lease.renew)
            except MLCloudError as error:
                log.warning("the lease could not be renewed: %s", error)
                continue
            if not held:
                log.error("another head holds the cluster now: this one ends")
                await self.sessions.shut(keep_hosts=True)
                self._on_idle()
                return

    async def _look_what_is_ours(self) -> None:
        """This process stood still, or the store did: other heads may have taken sessions up.

        A store that does not answer is not waited for: nobody has taken anything up from it, and
        what is committed is checked once more.
        """
        log.warning("no sign of life was given for long: looking what is held by others now")
        for session in self.sessions:
            try:
                looking = asyncio.to_thread(self.record.check, session.id, anew=True)
                await asyncio.wait_for(looking, LAST_RECORD_S)
            except Fenced as error:
                session.fenced(error)
            except (MLCloudError, asyncio.TimeoutError) as error:
                log.warning("whose session %s is could not be read: %s", session.id, error)
        self.lease.looked()

    def _see(self, instances: list[Instance]) -> None:
        self.billing.see(instances)
        self.preemptions.see(instances, now())

    def _node_ended(self, instance: Instance) -> None:
        self._see(self.cluster.cloud.instances())
        self.notices.leaving.pop(instance.id, None)
        self._uses.pop(instance.id, None)
        self.sessions.on_node_end(instance)
        self.jobs.on_node_end(instance)

    def _attempt(self, attempt: Attempt) -> None:
        self.sessions.on_attempt(attempt)

    # --- facts ------------------------------------------------------------------------------------

    def node_token(self, node: str) -> str | None:
        try:
            self.cluster.cloud.get(node)
        except NotFound:
            return None
        return self.cluster.cloud.records.secrets_of(node)["node_token"]

    def heard(self, node: str, ends: str) -> bool:
        """An agent lives; or is about to end its node, and says why. False where the node has been
        given up. Blocks."""
        cloud = self.cluster.cloud
        if ends:
            cloud.records.said(node, ends)
        elif node not in self._heard:
            self._heard.add(node)
            cloud.records.joined(node)
        return cloud.heard(node) if isinstance(cloud, Headed) else True

    def join(self, node: str, token: str) -> dict[str, Any] | None:
        """What a node gets for its join token, if that is right. Blocks."""
        cloud = self.cluster.cloud
        return cloud.join(node, token) if isinstance(cloud, Headed) else None

    @property
    def node_wheel(self) -> Path | None:
        """What nodes install, where they bring no mlcloud of their own."""
        cloud = self.cluster.cloud
        name = cloud.spec.runtime.wheel if isinstance(cloud, Headed) else ""
        return self.settings.home / name if name else None

    def bootstrap_failed(self, node: str, token: str, why: str) -> bool:
        """A machine could not be made a node. Blocks."""
        if self.join(node, token) is None:
            return False
        cloud = self.cluster.cloud
        assert isinstance(cloud, Headed)
        cloud.failed(node, why)
        return True

    def node_infos(self, *, ended: bool = False) -> list[NodeInfo]:
        held: dict[str, list[str]] = {}
        for session in self.sessions:
            for instance in set(session.host.instances) if session.host is not None else ():
                held.setdefault(instance, []).append(session.request.name)
        working = self.jobs.on_nodes()
        return [
            NodeInfo(
                id=each.id,
                node_type=each.node_type,
                instance_type=each.offer.instance_type,
                zone=each.offer.zone,
                market=each.offer.market,
                usd_per_hour=self.billing.price_of(each.id, each.offer.usd_per_hour),
                simulated=each.offer.simulated,
                launched_at=each.launched_at,
                ended_at=each.ended_at,
                reason=each.reason,
                notice_deadline=each.notice.deadline if each.notice else None,
                sessions=held.get(each.id, []),
                jobs=working.get(each.id, []),
                idle_since=self._idle_since(each) if each.id not in held | working else None,
                reserved=self._reserved(each.id),
                cpus=each.offer.cpus,
                memory_bytes=each.offer.memory_bytes,
                gpu=each.offer.gpu,
                use=self._use(each.id),
            )
            for each in self.cluster.cloud.instances()
            if is_worker(each) and (ended or each.alive)
        ]

    def cluster_info(self) -> ClusterInfo:
        self.billing.see(self.cluster.cloud.instances())
        state: Any = self.cluster.state
        return ClusterInfo(
            name=self.cluster.name,
            state=state,
            detail=self.cluster.detail,
            cloud=self.cluster.cloud.name,
            nodes=self.node_infos(),
            sessions=self.sessions.infos(),
            standing_usd_per_hour=self._standing(),
            store=self.store.url,
            usd=self.billing.spent(),
            usd_per_hour=self.billing.per_hour(),
            simulated=all(each.simulated for each in self.cluster.cloud.offers()),
            offers=sorted({each.describe() for each in self.cluster.types}),
            budgets=self.budgets.infos(),
            attempts=self._attempts(),
        )

    def _idle_since(self, node: Instance) -> datetime:
        placed = self.billing.ledger.placements_on(node.id)
        return max([node.launched_at, *(each.ended_at for each in placed if each.ended_at)])

    def used_by(self, node: str, use: NodeUse | None) -> None:
        """What its heartbeat says."""
        if use is not None:
            self._uses[node] = time.monotonic(), use

    def _use(self, node: str) -> NodeUse | None:
        at, use = self._uses.get(node, (0.0, None))
        return use if time.monotonic() - at < USE_S else None

    def _reserved(self, node: str) -> float:
        placed = self.billing.ledger.placements_on(node)
        return min(1.0, sum(float(each.share) for each in placed if each.ended_at is None))

    def _standing(self) -> Decimal:
        heads = [e for e in self.cluster.cloud.instances() if e.alive and not is_worker(e)]
        prices = (self.billing.price_of(each.id, each.offer.usd_per_hour) for each in heads)
        return sum(prices, Decimal(0))

    async def spend(self, since: datetime, step_s: int) -> Spend:
        names = {each.id: each.request.name for each in self.sessions}
        names |= {each.key: f"job {each.request.name} {each.id[:6]}" for each in self.jobs}
        return await self.spending.series(since, step_s, now(), lambda key: names.get(key, key))

    def _attempts(self) -> list[AttemptInfo]:
        """The latest of each offer, and what launches wait for, within `ATTEMPTS_SHOWN`."""
        since = now() - ATTEMPTS_SHOWN
        latest = {
            (each.node_type, each.zone, each.instance_type, each.market): each
            for each in self.cluster.attempts.recent()
            if each.at >= since
        }
        return [
            AttemptInfo(**{name: getattr(each, name) for name in AttemptInfo.model_fields})
            for each in sorted(latest.values(), key=lambda each: each.at)
        ]

    def execution_info(self, execution_id: str) -> ExecutionInfo:
        execution = self.sessions.services.executions.get(execution_id)
        session = next(
            (s for s in self.sessions if execution and s.id == execution.session_id), None
        )
        if execution is None or session is None:
            raise NotFound(f"no execution {execution_id!r}")
        return self._execution_info(session.request.name, execution)

    def execution_infos(self, name: str) -> list[ExecutionInfo]:
        """A session's latest cells, oldest first."""
        session = self.sessions.get(name)
        found = self.sessions.services.executions.latest(session.id)
        return [self._execution_info(name, each) for each in found]

    def _execution_info(self, name: str, execution: Execution) -> ExecutionInfo:
        return ExecutionInfo(
            id=execution.id,
            session=name,
            state=execution.state,
            code=execution.code,
            created_at=execution.created_at,
            started_at=execution.started_at,
            finished_at=execution.finished_at,
            runs=execution.runs,
            first_event=execution.first_event,
            number=(execution.options.get("cell") or {}).get("number"),
            use=self.sessions.services.usage.info(execution.id),
        )

    def events(self, name: str, after: int) -> list[dict[str, Any]]:
        """A batch of a session's events as JSON; bytes are base64."""
        return [
            {
                "seq": seq,
                "execution_id": execution_id,
                "kind": kind,
                **_jsonable(msgpack.unpackb(blob, strict_map_key=False)),
            }
            for seq, execution_id, kind, blob in self.sessions.get(name).journal.read(after)
        ]


def _check_key(store: Store, signer: Signer, settings: Settings) -> None:
    """A store has one key. Raises `StoreError` for another one: nothing could be read with it."""
    known = store.read_mark("key")
    if known is None:
        store.write_mark("key", signer.fingerprint.encode())
    elif known.decode("ascii", "replace") != signer.fingerprint:
        raise StoreError(
            f"the store at {store.url} was signed with another key than that in "
            f"{settings.store_key_file}: copy the key file from where the store was used first, "
            "or name it by MLCLOUD_STORE_KEY"
        )


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    return [_jsonable(inner) for inner in value] if isinstance(value, list) else value
