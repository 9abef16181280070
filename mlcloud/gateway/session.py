"""A session: a durable remote kernel. One worker task runs its cells in order, wherever it lives.

                    first cell                     cell
      starting ──────────────► idle ◄─────────────────────► busy
         ▲                      │ ▲                           │  notice, or the node just dies
         │ next cell            │ └──── restored, runs again ─┤
      parked ◄── idle_timeout ──┘               moving ◄──────┘        closed, failed: for good

At a notice the successor is asked for at once, while the old host still runs the cell. Whichever
comes first: the cell ends, and the session moves between cells; or the node ends, and the cell runs
again on the successor from the state before it. Either way the state comes from the last committed
snapshot, never
from the old host's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from mlcloud.cluster.preemptions import Preemptions
from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import HostRequest
from mlcloud.cost.ledger import ExecutionSpan
from mlcloud.errors import (
    Collected,
    Conflict,
    ExecutionCancelled,
    MLCloudError,
    SessionClosed,
    SessionFailed,
)
from mlcloud.gateway import adoption, db, elastic, gangs, hosting, restoring
from mlcloud.gateway.billing import Billing, is_worker
from mlcloud.gateway.embedded import EmbeddedCluster
from mlcloud.gateway.execution import Execution, Executions
from mlcloud.gateway.given import Given
from mlcloud.gateway.inputs import Inputs
from mlcloud.gateway.journal import Journal
from mlcloud.gateway.lease import Lease
from mlcloud.gateway.links import HostError, Links
from mlcloud.gateway.livehost import LiveHost
from mlcloud.gateway.notices import Leaving
from mlcloud.gateway.outcomes import Outcomes
from mlcloud.gateway.questions import Questions
from mlcloud.gateway.record import Fenced, Record
from mlcloud.gateway.rerun import refusal
from mlcloud.gateway.snapshots import SnapshotLog
from mlcloud.gateway.traffic import Traffic
from mlcloud.gateway.usage import UsageTable
from mlcloud.gateway.vault import Vault
from mlcloud.models import ExecutionState, SessionRequest, SessionState

log = logging.getLogger(__name__)

MAX_RUNS = 20
BRING_UP_TRIES = 5
SAFE_WAIT_S = 20.0
BUSY_LOOK_S = 60.0
GIVE_BACK_S = 5.0
LAPSED_LOOK_S = 0.05
ASK_S = 0.8  # the notebook waits for a second, with its Tab
YIELD_S = 5.0  # in which a cell must end that is not wanted any more
STOP_LOOK_S = 0.05


Begun = tuple[LiveHost, asyncio.Future[dict[str, Any]]]  # where a cell runs, and its end


@dataclass
class Services:
    """What every session of a gateway shares."""

    engine: Engine
    cluster: EmbeddedCluster
    billing: Billing
    executions: Executions
    links: Links
    snapshots: SnapshotLog
    record: Record
    lease: Lease
    inputs: Inputs
    preemptions: Preemptions
    usage: UsageTable
    traffic: Traffic
    vault: Vault
    leaving: dict[str, Leaving]  # nodes that go away
    store_url: str
    ray_dir: Path
    idle_timeout_s: float
    input_timeout_s: float
    output_limits: dict[str, int]
    snapshot_limits: dict[str, float]
    # Raises `BudgetExceeded` where work would certainly lead beyond a budget (`budgets.py`).
    refuse: Callable[[Session, dict[str, Any], str], None] = lambda session, options, execution: (
        None
    )
    # What the cluster's specification gives to each session (`specified.py`).
    given: Callable[[], Given] = Given
    #: While a session, or jobs by their keys, wait for nodes (`buying`).
    buying: Callable[[HostRequest, Session | Sequence[str]], AbstractContextManager[None]] = (
        lambda request, whose: nullcontext()
    )


class Session:
    """See the module. Methods are called on the event loop; none blocks it."""

    def __init__(
        self,
        services: Services,
        *,
        id: str,
        request: SessionRequest,
        host_request: HostRequest,
        memory_bytes: int,
        created_at: datetime,
        idle_timeout_s: float,
        state: SessionState = SessionState.STARTING,
        epoch: int = 0,
        ordinal: int = 0,
        last_event: int = 0,
        adopted_number: int | None = None,
    ) -> None:
        self.services = services
        self.id = id
        self.request = request
        self.host_request = host_request
        self.memory_bytes = memory_bytes
        self.created_at = created_at
        self.idle_timeout_s = idle_timeout_s
        self.detail = ""
        self.state = state
        self.epoch = epoch
        self.ordinal = ordinal
        self.journal = Journal(services.engine, id, last_event)
        self.host: LiveHost | None = None
        self.current: Execution | None = None
        self.queue: deque[Execution] = deque()
        self.begun: Begun | None = None  # `current`, until the worker takes it up
        self.known: dict[str, Execution] = {}
        self.successor: asyncio.Task[LiveHost] | None = None
        self._work = asyncio.Event()
        self.turn = asyncio.Lock()
        self.past = asyncio.Lock()  # none of its states goes while one is gone back to
        self.safe = asyncio.Event()
        self.unsafe: set[str] = set()  # executions that finished and are not in the store yet
        self.pending: dict[str, int] = {}  # bytes that they may have changed
        self.lagging: dict[str, int] = {}  # those whose footers say that the store is behind
        self.seats = elastic.Seats(self)
        self.leaving_ranks: set[str] = set()  # nodes of a gang that have their notice
        self.safe_to = ""  # the last cell that is safe
        self.recorded = 0  # the last event that is in the store's record
        self.to_record = True  # something has ended since the store's record was written
        self.unsaved: dict[str, str] = {}
        self.not_restored: dict[str, str] = {}  # what the last restore should have had, and why not
        self.outcomes = Outcomes(self)
        self.questions = Questions(self)
        self._background: set[asyncio.Task[Any]] = set()
        if adopted_number is not None:
            adoption.take_up(self)
        self._worker = asyncio.create_task(self._serve(adopted_number))

    # --- what clients ask -------------------------------------------------------------------------

    def execute(
        self,
        execution_id: str,
        *,
        op: str,
        code: str,
        shipment: dict[str, Any] | None,
        options: dict[str, Any],
    ) -> Execution:
        """Queue an execution; the same id again is the same execution, and runs nothing twice."""
        if execution_id in self.known:
            return self.known[execution_id]
        self.services.refuse(self, options, execution_id)
        execution = Execution(
            execution_id,
            self.id,
            op,
            code,
            shipment,
            options,
            ordinal=self.ordinal + 1,
            first_event=self.journal.last,
        )
        free = None if self._is_dropped(execution) else self._free_host()
        begin = None if free is None else self._mark_running(execution)
        if self.over or not self.services.executions.add(execution, begin):
            known = self.services.executions.get(execution_id)
            if known is not None and known.session_id == self.id:
                return known
            if known is not None:
                raise Conflict(f"execution {execution_id} belongs to another session")
            raise SessionClosed(
                f"session {self.request.name!r} is {self.state.value}"
                f"{': ' + self.detail if self.detail else ''}; start another one"
            )
        self.ordinal = execution.ordinal
        self.known[execution_id] = execution
        if free is None or begin is None:
            self.queue.append(execution)
            if execution.objects:  # it may wait for long
                self.spawn(self._hold(execution))
        else:
            self.services.billing.append(begin)
            self.current, self.begun = execution, (free, self._send_off(execution, free))
        self._work.set()
        return execution

    def _is_dropped(self, execution: Execution) -> bool:
        """Whether it was to run after another one only if that did not fail, and that did."""
        after = execution.options.get("after")
        if not isinstance(after, str):
            return False
        before = self.known.get(after) or self.services.executions.get(after)
        return before is not None and before.state is ExecutionState.FAILED

    def _free_host(self) -> LiveHost | None:
        """The host, where a cell can begin at this moment: it saves the worker's turn."""
        host = self.host
        if host is None or not host.alive or self.state is not SessionState.IDLE:
            return None
        waits = self.queue or self.current is not None or self.turn.locked()
        waits = waits or self.services.lease.lapsed
        return None if waits or self.successor is not None else host

    async def interrupt(self, execution_id: str) -> None:
        """Cancel a queued execution, or send SIGINT to the one that runs."""
        execution = self.known.get(execution_id)
        if execution is None or execution.ended:
            return
        execution.interrupted = True
        if execution in self.queue:
            self.queue.remove(execution)
            self.outcomes.cancelled(execution)
        elif execution is self.current:
            if self.host is not None and execution_id in self.host.finished:
                with contextlib.suppress(Exception):  # a host that dies now ends the cell anyway
                    await self.host.call("interrupt", execution_id)
            elif self.questions.asking:
                self.questions.withdraw()
            elif self.successor is not None and not self.successor.done():
                self.successor.cancel()

    async def comm(self, relay_id: str, message: dict[str, Any]) -> None:
        """A page's message for one of the session's widgets; lost where there is no kernel."""
        if self.host is not None and self.host.alive:
            with contextlib.suppress(Exception):  # a host that dies now takes its widgets along
                await self.host.call("comm", relay_id, message)

    async def ask(self, question: dict[str, Any], timeout_s: float = ASK_S) -> dict[str, Any]:
        """What Tab and `?` want to know of the names in the kernel, also while a cell runs.

        Empty where no kernel answers in time: nothing is started for it, and nothing waits.
        """
        host = self.host
        if host is None or not host.alive:
            return {}
        try:
            answer: dict[str, Any] = await asyncio.wait_for(
                host.call("ask", question, timeout_s), timeout_s
            )
        except Exception as error:  # Ray raises its own kinds; the pump tells dead from slow
            log.info("asking %s failed: %s", self.id, error)
            return {}
        return answer

    async def kill_kernel(self) -> None:
        if self.host is not None:
            await self.host.call("kill_kernel")

    async def stop_cells(self) -> None:
        """End what waits and what runs; a cell that does not yield to the interrupt, by ending its
        kernel."""
        for execution in [*self.queue]:
            await self.interrupt(execution.id)
        running, loop = self.current, asyncio.get_running_loop()
        if running is None:
            return
        await self.interrupt(running.id)
        until = loop.time() + YIELD_S
        while self.current is running:
            if loop.time() > until and not running.ended:
                until = math.inf
                with contextlib.suppress(Exception):  # a host that dies now ends the cell anyway
                    await self.kill_kernel()
            await asyncio.sleep(STOP_LOOK_S)

    async def park(self, *, force: bool = False) -> None:
        """Give the node back and keep the state. Raises `Conflict` when something would be lost."""
        if self.current is not None:
            raise Conflict(
                f"session {self.request.name!r} is busy; interrupt the cell first, or wait for it"
            )
        async with self.turn:
            await hosting.save_background(self)
            await self.until_safe()
            host = self.host  # perhaps lost meanwhile
            if host is None:
                self.set_state(SessionState.PARKED)
                return
            if self.unsaved and not force:
                names = "; ".join(f"{name}: {why}" for name, why in self.unsaved.items())
                raise Conflict(
                    f"parking {self.request.name!r} would lose what cannot be saved yet ({names}); "
                    "delete these names, or park with force=True"
                )
            await hosting.release(self, host)
            self.set_state(SessionState.PARKED)

    async def resume(self) -> None:
        """Bring the session back on a node without running anything."""
        self.services.refuse(self, {}, "")
        async with self.turn:
            await self.ensure_host()
            self.settle()

    async def close(self) -> None:
        """End the session for good. Its journal and snapshots stay in the store."""
        if self.state is SessionState.CLOSED:
            return
        self.set_state(SessionState.CLOSED)
        for execution in [*self.queue]:
            self.outcomes.cancelled(execution)
        self.queue.clear()
        if self.current is not None:
            self.outcomes.cancelled(self.current)
        await self.shut(keep_host=False)

    async def shut(self, *, keep_host: bool) -> None:
        """Stop this object's tasks; with `keep_host` the host runs on for another gateway."""
        tasks = [self._worker, *self._background]
        if self.successor is not None:
            tasks.append(self.successor)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(Exception):  # Ray may be gone, and its reservations with it
            await asyncio.wait_for(self.seats.give_back(), GIVE_BACK_S)
        if self.host is not None and not keep_host:
            await hosting.release(self, self.host)

    # --- what the cluster tells -------------------------------------------------------------------

    def on_notice(self, instance_id: str, deadline: datetime, kind: str) -> bool:
        """The session's node goes away: ask for the successor now, not after the kill.

        False where it is not on this node, or on its way already.
        """
        host = self.host
        if host is None or instance_id not in host.instances or self.successor is not None:
            return False
        if self.is_gang:
            return gangs.on_notice(self, host, instance_id, deadline, kind)
        seconds = max(0, math.ceil((deadline - now()).total_seconds()))
        self.story(
            "notice",
            hosting.notice_text(self.place(host), kind, seconds),
            node=instance_id,
            deadline=deadline.isoformat(),
            kind=kind,
        )
        self.set_state(SessionState.MOVING)
        self.spawn(hosting.tell_notice(self, host, deadline))
        self.successor = asyncio.create_task(hosting.bring_up_elsewhere(self, host, deadline))
        self.spawn(hosting.move_when_idle(self, host))
        return True

    def on_risk(self, instance_id: str, kind: str) -> None:
        """The session's node may go away, or stands still for a moment: save, and stay."""
        host = self.host
        if host is None or instance_id not in host.instances or self.successor is not None:
            return
        place = self.place_of(instance_id)
        self.story("risk", hosting.risk_text(place, kind), node=instance_id, kind=kind)
        self.spawn(hosting.save_now(self, host))

    def on_withdrawn(self, instance_id: str, was_risk: bool) -> None:
        host = self.host
        if host is None or instance_id not in host.instances:
            return
        self.spawn(hosting.tell_notice(self, host, None))
        if not was_risk:
            place = self.place_of(instance_id)
            text = f"the cloud took its notice back; the session leaves {place} all the "
            self.story("risk", f"{text}same, between cells", node=instance_id, kind="withdrawn")

    def on_node_end(self, instance_id: str, reason: str) -> None:
        if self.host is not None and instance_id in self.host.instances:
            self.host.lose("preempted" if reason == "preempted" else f"its node ended ({reason})")
            self.spawn(hosting.lost_between_cells(self, self.host))

    def look_again(self) -> None:
        """Its idle time has changed."""
        self._work.set()

    # --- the worker -------------------------------------------------------------------------------

    async def _serve(self, adopted_number: int | None) -> None:
        if adopted_number is not None:
            try:
                await adoption.adopt(self, adopted_number)
            except Exception:
                log.exception("session %s could not be adopted as it was", self.id)
        while True:
            if not self.queue and self.begun is None:
                self._work.clear()
                try:
                    # What kept it from being parked is looked at again before long.
                    again = min(self.idle_timeout_s, BUSY_LOOK_S)
                    wait_s = again if self.detail else self.idle_timeout_s
                    await asyncio.wait_for(self._work.wait(), wait_s)
                except asyncio.TimeoutError:
                    await hosting.park_if_idle(self)
                    continue
            async with self.turn:
                begun, self.begun = self.begun, None
                if begun is None:
                    if not self.queue:
                        continue
                    self.current = self.queue.popleft()
                assert self.current is not None
                try:
                    if begun is not None:
                        await self._until_ended(self.current, *begun)
                    await self.run_to_end(self.current)
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    log.exception("execution %s", self.current.id)
                    self.outcomes.finish_with(
                        self.current, SessionFailed(f"gateway error: {error!r}")
                    )
                finally:
                    self.current = None
                self.settle()

    async def run_to_end(self, execution: Execution, *, underway: bool = False) -> None:
        """Run until it has ended, on as many hosts as that takes."""
        while self.services.lease.lapsed and not execution.ended:
            await asyncio.sleep(LAPSED_LOOK_S)  # it may be another head's to run
        while not execution.ended:
            if not execution.runs and self._is_dropped(execution):
                failed = ExecutionCancelled("not run: a cell before it has failed")
                self.outcomes.finish_with(execution, failed)
                return
            if execution.runs >= (elastic.MAX_RUNS if self.request.min_workers else MAX_RUNS):
                self.outcomes.finish_with(
                    execution, SessionFailed(f"given up after {execution.runs} interrupted runs")
                )
                return
            try:
                host = await self.ensure_host()
            except asyncio.CancelledError:
                if not execution.interrupted:
                    raise
                self.outcomes.cancelled(execution)
                return
            except MLCloudError as error:
                self.outcomes.finish_with(execution, error)
                return
            if not underway:
                if execution.interrupted:  # while its node was being made ready
                    self.outcomes.cancelled(execution)
                    return
                if execution.runs:
                    self.story("rerun", f"the cell runs again on {self.place(host)}")
                self._start(execution, host)
            elif self.successor is None and not self.questions.open:
                self.set_state(SessionState.BUSY)
            underway = False
            await self._until_ended(execution, host)

    async def run_once(self, execution: Execution, host: LiveHost) -> None:
        """Run on this host; if that is lost meanwhile, it has failed."""
        self._start(execution, host)
        await self._until_ended(execution, host)
        if not execution.ended:
            self.outcomes.finish_with(execution, SessionFailed("its node was lost"))

    def _start(self, execution: Execution, host: LiveHost) -> None:
        span = self._mark_running(execution)
        with db.writing(self.services.engine) as connection:
            self.services.executions.save(execution, connection)
            self.services.billing.add(span, connection)
        self._send_off(execution, host)

    def _mark_running(self, execution: Execution) -> ExecutionSpan:
        execution.runs += 1
        execution.state = ExecutionState.RUNNING
        execution.started_at = execution.started_at or now()
        return ExecutionSpan(execution.id, self.id, now())

    def _send_off(self, execution: Execution, host: LiveHost) -> asyncio.Future[dict[str, Any]]:
        """To the host, now that it is written down."""
        if self.successor is None:
            self.set_state(SessionState.BUSY)
        ended = host.expect(execution.id)
        self.spawn(self.submit(host, execution))
        return ended

    async def write_record(self) -> bool:
        """What is new of this session, into the store. False where that did not succeed."""
        self.to_record, last = False, self.journal.last
        try:
            await asyncio.to_thread(self.services.record.write, self.id)
        except Fenced as error:
            self.fenced(error)
        except MLCloudError as error:
            log.warning("session %s could not be recorded: %s", self.request.name, error)
            self.to_record = True
            return False
        self.recorded = last
        return True

    def fenced(self, error: MLCloudError) -> None:
        """Another head has this session: nothing of it goes on here."""
        if self.over:
            return
        log.error("session %s: %s", self.request.name, error)
        self.detail = str(error)
        for execution in [*self.queue, *([self.current] if self.current else [])]:
            self.outcomes.finish_with(execution, SessionClosed(str(error)))
        self.queue.clear()
        for execution_id in self.unsafe:  # whoever waits until they are safe waits no longer
            text = f"this cell's state is not safe: {error}"
            self.journal.emit(execution_id, "story", {"what": "unsafe", "text": text})
        self.unsafe.clear()
        self.safe.set()
        self.set_state(SessionState.FAILED)
        if self.successor is not None:
            self.successor.cancel()
        if self.host is not None:
            self.spawn(hosting.release(self, self.host))

    def _request(self, host: LiveHost, execution: Execution) -> bytes:
        services = self.services
        return execution.request(
            services.preemptions.mean_time_s(host.instance),
            services.billing.per_hour(self.id),
            services.cluster.cloud.get(host.instance).offer.simulated,
        )

    async def submit(self, host: LiveHost, execution: Execution) -> None:
        # In the store before the cell starts.
        if execution.brings_names and not await self._keep_inputs(execution):
            host.resolve(execution.id, {"status": "error"})
            return
        try:
            await host.call(
                "submit",
                self._request(host, execution),
                execution.code,
                execution.id,
                bool(execution.options.get("allow_stdin")),
                int(execution.options.get("burst") or 0),
            )
        except Exception as error:  # Ray raises its own kinds; the pump tells dead from slow
            log.info("submitting %s failed: %s", execution.id, error)
            if isinstance(error, HostError):  # it said so itself: nothing of the cell has begun
                host.lose(f"it could not take the cell: {error}")

    async def _keep_inputs(self, execution: Execution) -> bool:
        """What comes with it is recorded, and its objects named. False: some are gone, and so it
        has ended."""
        lost, _ = await asyncio.gather(self._hold(execution), self.write_record())
        if lost is not None:
            self.outcomes.finish_with(execution, lost)
        return lost is None

    async def _hold(self, execution: Execution) -> Collected | None:
        """Name the objects that come with it in the store; why not, where some are gone."""
        hold, objects = self.services.inputs.hold, execution.objects
        if not objects:
            return None
        try:
            await asyncio.to_thread(hold, self.id, execution.ordinal, objects)
        except Collected as error:
            return error
        except MLCloudError as error:  # as for the record: the cell may run all the same
            log.warning("what comes with %s could not be named: %s", execution.id, error)
        return None

    async def _until_ended(
        self,
        execution: Execution,
        host: LiveHost,
        ended: asyncio.Future[dict[str, Any]] | None = None,
    ) -> None:
        """Wait for the cell's end or the host's; on the latter, leave the execution unfinished."""
        ended = ended or host.finished.get(execution.id)
        if ended is None:  # its end was pumped while we were adopting it
            return
        timeout = execution.options.get("timeout_s")
        waiting: set[asyncio.Future[Any]] = {ended, host.lost}
        done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            execution.options["timed_out"] = True
            await self.interrupt(execution.id)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            content = ended.result()
            if content.get("kernel_died"):
                await restoring.revive(self, host)
            elif content.get("regroup"):
                await gangs.regroup(self, host)
            return
        host.finished.pop(execution.id, None)
        self.outcomes.close_span(execution, lost=True)
        await hosting.host_lost(self, host)
        why = f"the node was taken away while the cell ran ({host.lost.result()})"
        await self.settle_cut_short(execution, why)

    async def settle_cut_short(self, execution: Execution, what: str) -> None:
        """End an execution that may not run again after what happened to it, or leave it to."""
        refused = None if execution.interrupted else await refusal(self, execution, what)
        if execution.interrupted:  # perhaps while somebody was asked
            self.outcomes.cancelled(execution)
        elif refused is not None:
            self.outcomes.finish_with(execution, refused)

    # --- hosts ------------------------------------------------------------------------------------

    async def ensure_host(self) -> LiveHost:
        """The host to run on: the present one, or a new one with the last snapshot restored.

        The caller has the turn.
        """
        if self.host is not None and not self.host.alive:
            await hosting.host_lost(self, self.host)
        if self.host is not None:
            return self.host
        if self.successor is None:
            self.successor = asyncio.create_task(hosting.bring_up(self))
        try:
            host = await self.successor
        finally:
            self.successor = None
        await hosting.take_over(self, host)
        return host

    async def until_safe(self) -> None:
        """Wait until every finished cell's snapshot is committed, or cannot be."""
        until = asyncio.get_running_loop().time() + SAFE_WAIT_S
        while self.unsafe and self.host is not None and self.host.alive:
            self.safe.clear()
            left = until - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self.safe.wait(), left)
            except asyncio.TimeoutError:
                return

    # --- events -----------------------------------------------------------------------------------

    def story(self, what: str, text: str, **facts: Any) -> None:
        """A line for the running cell's output: what happened to it, and where it is now."""
        target = self.current.id if self.current else ""
        self.journal.emit(target, "story", {"what": what, "text": text, **facts})

    def status(self, text: str, *, ready: bool = False) -> None:
        """What the session waits for; shown while it lasts. `ready`: it waits no more."""
        self.detail = "" if ready else text
        target = self.current.id if self.current else ""
        self.journal.emit(target, "status", {"text": text, "ready": ready})

    # --- small things -----------------------------------------------------------------------------

    @property
    def is_gang(self) -> bool:
        """Whether it has several kernels, or may have."""
        return self.request.workers > 1

    @property
    def over(self) -> bool:
        """Whether it has ended for good, here."""
        return self.state in (SessionState.CLOSED, SessionState.FAILED)

    def is_elsewhere(self) -> bool:
        """Whether its node is in another region than the head, and with it the store."""
        instances = self.services.cluster.cloud.instances() if self.host is not None else []
        here = {e.offer.region for e in instances if e.alive and not is_worker(e)}
        mine = {e.offer.region for e in instances if self.host and e.id == self.host.instance}
        return bool(here and mine) and not here & mine

    def place(self, host: LiveHost) -> str:
        return gangs.place(self, host) or self.place_of(host.instance)

    def place_of(self, instance_id: str) -> str:
        offer = self.services.cluster.cloud.get(instance_id).offer
        price = f"${offer.usd_per_hour.normalize():f}/h"
        simulated = " simulated" if offer.simulated else ""
        return f"{offer.instance_type} {offer.market} {offer.zone} ({price}{simulated})"

    def set_state(self, state: SessionState) -> None:
        if self.over and (state is not SessionState.CLOSED or self.state is state):
            return
        self.state = state
        if state in (SessionState.IDLE, SessionState.BUSY):
            self.detail = ""
            return  # twice a cell: a later gateway sees for itself which it is
        self.save(state=state.value, detail=self.detail)

    def settle(self) -> None:
        """The state between two cells."""
        if self.begun is not None:
            return
        if self.host is not None:
            moving = self.successor is not None
            self.set_state(SessionState.MOVING if moving else SessionState.IDLE)
        elif self.state not in (SessionState.PARKED, SessionState.FAILED):
            self.set_state(SessionState.PARKED if self.epoch else SessionState.STARTING)

    def save(self, **values: Any) -> None:
        new = {f"new_{name}": value for name, value in values.items()}
        with db.writing(self.services.engine) as connection:
            db.update_of(db.sessions, *values).run(connection, {"key": self.id, **new})

    def spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
