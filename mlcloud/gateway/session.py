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
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
from sqlalchemy import Engine, update

from mlcloud.cluster.clouds.local import now
from mlcloud.cluster.shapes import HostRequest
from mlcloud.cost.footer import footer
from mlcloud.cost.ledger import ExecutionSpan, Placement
from mlcloud.errors import (
    Conflict,
    ExecutionCancelled,
    MLCloudError,
    SessionClosed,
    SessionFailed,
)
from mlcloud.gateway import db
from mlcloud.gateway.billing import Billing
from mlcloud.gateway.embedded import EmbeddedCluster
from mlcloud.gateway.execution import Execution, Executions
from mlcloud.gateway.journal import Journal
from mlcloud.gateway.livehost import Events, LiveHost
from mlcloud.gateway.snapshots import SnapshotLog
from mlcloud.gateway.stories import describe_death
from mlcloud.models import ExecutionState, SessionRequest, SessionState

log = logging.getLogger(__name__)

MAX_RUNS = 20
BRING_UP_TRIES = 5
SAFE_WAIT_S = 20.0


@dataclass
class Services:
    """What every session of a gateway shares."""

    engine: Engine
    cluster: EmbeddedCluster
    billing: Billing
    executions: Executions
    snapshots: SnapshotLog
    store_url: str
    ray_dir: Path
    idle_timeout_s: float


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
        self._known: dict[str, Execution] = {}
        self._successor: asyncio.Task[LiveHost] | None = None
        self._work = asyncio.Event()
        self._turn = asyncio.Lock()
        self._safe = asyncio.Event()
        self._unsafe: set[str] = set()
        self._unsaved: dict[str, str] = {}
        self._background: set[asyncio.Task[Any]] = set()
        if adopted_number is not None:
            self._take_up()
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
        known = self._known.get(execution_id) or self.services.executions.get(execution_id)
        if known is not None:
            if known.session_id != self.id:
                raise Conflict(f"execution {execution_id} belongs to another session")
            return known
        if self.state in (SessionState.CLOSED, SessionState.FAILED):
            raise SessionClosed(
                f"session {self.request.name!r} is {self.state.value}"
                f"{': ' + self.detail if self.detail else ''}; start another one"
            )
        self.ordinal += 1
        execution = Execution(
            execution_id, self.id, op, code, shipment, options, ordinal=self.ordinal
        )
        self.services.executions.add(execution)
        self._known[execution_id] = execution
        self.queue.append(execution)
        self._work.set()
        return execution

    async def interrupt(self, execution_id: str) -> None:
        """Cancel a queued execution, or send SIGINT to the one that runs."""
        execution = self._known.get(execution_id)
        if execution is None or execution.ended:
            return
        execution.interrupted = True
        if execution in self.queue:
            self.queue.remove(execution)
            self._cancelled(execution)
        elif execution is self.current:
            if self.host is not None and execution_id in self.host.finished:
                with contextlib.suppress(Exception):  # a host that dies now ends the cell anyway
                    await self.host.handle.interrupt.remote(execution_id)
            elif self._successor is not None and not self._successor.done():
                self._successor.cancel()

    async def kill_kernel(self) -> None:
        if self.host is not None:
            await self.host.handle.kill_kernel.remote()

    async def park(self, *, force: bool = False) -> None:
        """Give the node back and keep the state. Raises `Conflict` when something would be lost."""
        if self.current is not None:
            raise Conflict(
                f"session {self.request.name!r} is busy; interrupt the cell first, or wait for it"
            )
        async with self._turn:
            if self.host is None:
                self._set_state(SessionState.PARKED)
                return
            await self._until_safe()
            if self._unsaved and not force:
                names = "; ".join(f"{name}: {why}" for name, why in self._unsaved.items())
                raise Conflict(
                    f"parking {self.request.name!r} would lose what cannot be saved yet ({names}); "
                    "delete these names, or park with force=True"
                )
            await self._release(self.host)
            self._set_state(SessionState.PARKED)

    async def resume(self) -> None:
        """Bring the session back on a node without running anything."""
        async with self._turn:
            await self._ensure_host()
            self._settle()

    async def close(self) -> None:
        """End the session for good. Its journal and snapshots stay in the store."""
        if self.state is SessionState.CLOSED:
            return
        self._set_state(SessionState.CLOSED)
        for execution in [*self.queue]:
            self._cancelled(execution)
        self.queue.clear()
        if self.current is not None:
            self._cancelled(self.current)
        await self.shut(keep_host=False)

    async def shut(self, *, keep_host: bool) -> None:
        """Stop this object's tasks; with `keep_host` the host runs on for another gateway."""
        tasks = [self._worker, *self._background]
        if self._successor is not None:
            tasks.append(self._successor)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.host is not None and not keep_host:
            await self._release(self.host)

    # --- what the cluster tells -------------------------------------------------------------------

    def on_notice(self, instance_id: str, deadline: datetime, kind: str) -> None:
        """The session's node goes away: ask for the successor now, not after the kill."""
        host = self.host
        if host is None or host.instance != instance_id or self._successor is not None:
            return
        seconds = max(0, math.ceil((deadline - now()).total_seconds()))
        self.story(
            "notice",
            f"notice: the cloud takes {self._place(host)} back in {seconds} s",
            node=instance_id,
            deadline=deadline.isoformat(),
            kind=kind,
        )
        self._set_state(SessionState.MOVING)
        self._spawn(self._tell_notice(host, deadline))
        self._successor = asyncio.create_task(self._bring_up_elsewhere(host, deadline))
        self._spawn(self._move_when_idle(host))

    async def _tell_notice(self, host: LiveHost, deadline: datetime) -> None:
        with contextlib.suppress(Exception):  # it may be gone already
            await host.handle.notice.remote(deadline.isoformat())

    async def _bring_up_elsewhere(self, host: LiveHost, deadline: datetime) -> LiveHost:
        # Drained first, so that Ray does not put the successor beside the one it replaces.
        assert self.services.cluster.hosts is not None
        with contextlib.suppress(Exception):  # a node that is gone cannot be drained, nor chosen
            await self.services.cluster.hosts.drain(str(host.facts["node_id"]), deadline)
        return await self._bring_up(avoid=host.instance)

    def on_node_end(self, instance_id: str, reason: str) -> None:
        if self.host is not None and self.host.instance == instance_id:
            self.host.lose("preempted" if reason == "preempted" else f"its node ended ({reason})")
            self._spawn(self._lost_between_cells(self.host))

    # --- the worker -------------------------------------------------------------------------------

    async def _serve(self, adopted_number: int | None) -> None:
        if adopted_number is not None:
            try:
                await self._adopt(adopted_number)
            except Exception:
                log.exception("session %s could not be adopted as it was", self.id)
        while True:
            if not self.queue:
                self._work.clear()
                try:
                    await asyncio.wait_for(self._work.wait(), self.idle_timeout_s)
                except asyncio.TimeoutError:
                    with contextlib.suppress(Conflict):  # it stays, and keeps billing, visibly
                        await self.park()
                    continue
            async with self._turn:
                if not self.queue:
                    continue
                self.current = self.queue.popleft()
                try:
                    await self._execute(self.current)
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    log.exception("execution %s", self.current.id)
                    self._finish_with(self.current, SessionFailed(f"gateway error: {error!r}"))
                finally:
                    self.current = None
                self._settle()

    async def _execute(self, execution: Execution, *, underway: bool = False) -> None:
        """Run until it has ended, on as many hosts as that takes."""
        while not execution.ended:
            if execution.runs >= MAX_RUNS:
                self._finish_with(
                    execution, SessionFailed(f"given up after {execution.runs} interrupted runs")
                )
                return
            try:
                host = await self._ensure_host()
            except asyncio.CancelledError:
                if not execution.interrupted:
                    raise
                self._cancelled(execution)
                return
            except MLCloudError as error:
                self._finish_with(execution, error)
                return
            if not underway:
                if execution.runs:
                    self.story("rerun", f"the cell runs again on {self._place(host)}")
                self._start(execution, host)
            underway = False
            if self._successor is None:
                self._set_state(SessionState.BUSY)
            await self._until_ended(execution, host)

    def _start(self, execution: Execution, host: LiveHost) -> None:
        execution.runs += 1
        execution.state = ExecutionState.RUNNING
        execution.started_at = execution.started_at or now()
        self.services.executions.save(execution)
        self.services.billing.add(ExecutionSpan(execution.id, self.id, now()))
        host.expect(execution.id)
        self._spawn(self._submit(host, execution))

    async def _submit(self, host: LiveHost, execution: Execution) -> None:
        try:
            await host.handle.submit.remote(execution.request(), execution.code, execution.id)
        except Exception as error:  # Ray raises its own kinds; the pump tells dead from slow
            log.info("submitting %s failed: %s", execution.id, error)

    async def _until_ended(self, execution: Execution, host: LiveHost) -> None:
        """Wait for the cell's end or the host's; on the latter, leave the execution unfinished."""
        ended = host.finished.get(execution.id)
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
                await self._revive(host)
            return
        host.finished.pop(execution.id, None)
        self._close_span(execution, lost=True)
        await self._host_lost(host)
        if execution.interrupted:
            self._cancelled(execution)
        elif execution.options.get("on_preempt") == "fail":
            self._finish_with(
                execution,
                SessionFailed(
                    f"the node was taken away while the cell ran ({host.lost.result()}); "
                    "it was not run again, as --on-preempt fail asks"
                ),
            )

    async def _host_lost(self, host: LiveHost) -> None:
        why = host.lost.result()
        place = self._place(host)
        self.story(
            "lost", f"{place} was {why}" if why == "preempted" else f"{place} is gone: {why}"
        )
        self.services.billing.see(self.services.cluster.cloud.instances())
        self.services.billing.close_placements(self.id)
        assert self.services.cluster.hosts is not None
        self.services.cluster.hosts.kill(host.handle)
        self.host = None
        self._set_state(SessionState.MOVING)

    # --- hosts ------------------------------------------------------------------------------------

    async def _ensure_host(self) -> LiveHost:
        """The host to run on: the present one, or a new one with the last snapshot restored."""
        if self.host is not None and not self.host.alive:
            await self._host_lost(self.host)
        if self.host is not None:
            return self.host
        if self._successor is None:
            self._successor = asyncio.create_task(self._bring_up())
        try:
            host = await self._successor
        finally:
            self._successor = None
        await self._take_over(host)
        return host

    async def _bring_up(self, avoid: str = "") -> LiveHost:
        """A started host on some node. Its kernel is empty yet."""
        from ray.exceptions import RayError

        if not self.services.cluster.up:
            self.status("starting the embedded cluster")
        hosts = await self.services.cluster.joined()
        for attempt in range(BRING_UP_TRIES):
            self.epoch += 1
            self._save(epoch=self.epoch, host_number=0)
            handle = hosts.create(
                f"{self.id}-{self.epoch}",
                self.host_request,
                memory_bytes=self.memory_bytes,
                arguments={
                    "session_id": self.id,
                    "store_url": self.services.store_url,
                    "folder": str(self.services.ray_dir / "h"),
                    "memory_bytes": self.memory_bytes,
                },
                avoid=avoid,
            )
            if attempt == 0:
                self.status("asking for a node")
            try:
                facts = await handle.start.remote()
            except asyncio.CancelledError:
                hosts.kill(handle)
                raise
            except RayError as error:
                # Placed on a node that died before Ray knew: the next try is placed elsewhere.
                log.info("host %s-%s did not start: %s", self.id, self.epoch, error)
                hosts.kill(handle)
                last = error
                await asyncio.sleep(1.0)
                continue
            self.status(f"starting on {self._place_of(str(facts['instance']))}")
            return LiveHost(handle, self.epoch, facts, number=0, on_events=self._on_events)
        raise SessionFailed(f"no host could be started in {BRING_UP_TRIES} tries: {last}")

    async def _take_over(self, host: LiveHost) -> None:
        """Restore the last snapshot into `host` and make it the session's."""
        moved = self.host is not None or self.state is SessionState.MOVING
        self._place_session(host)
        previous = self.host
        self.host = host
        if moved:
            self.story("moved", f"moved to {self._place(host)}", node=host.instance)
        await self._restore(host)
        self.status(f"on {self._place(host)}", ready=True)
        if previous is not None:
            await self._release(previous, billing=False)
        self._save(epoch=host.epoch, host_number=host.number)

    async def _restore(self, host: LiveHost) -> None:
        step = await self._restore_latest(host)
        await self._replay(host, after=step)

    async def _replay(self, host: LiveHost, *, after: int) -> None:
        """Run again what had finished, but whose state was not in the store when the host died."""
        for execution in self.services.executions.unsafe(self.id, after=after):
            if self.current is not None and execution.ordinal >= self.current.ordinal:
                return
            self.story("rerun", "an earlier cell runs again: its state was not in the store yet")
            self._known[execution.id] = execution
            ended = host.expect(execution.id)
            await self._submit(host, execution)
            waiting: set[asyncio.Future[Any]] = {ended, host.lost}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                return

    async def _restore_latest(self, host: LiveHost) -> int:
        """Load the newest snapshot that can be read; its step, 0 if there is none."""
        before: int | None = None
        while True:
            latest = await asyncio.to_thread(self.services.snapshots.latest, self.id, before)
            if latest is None:
                return 0
            step, body, passed = latest
            for text in passed:
                self.story("fell_back", text)
            content = await self._load_snapshot(host, step, body)
            if content is None:
                return step  # lost again: the caller's next look at the host finds out
            if content.get("status") == "ok":
                break
            why = f"{content.get('ename')}: {content.get('evalue')}"
            if content.get("ename") != "Damaged":
                raise SessionFailed(f"the state after cell {step} could not be restored: {why}")
            self.story("fell_back", f"the state after cell {step} is damaged, going back: {why}")
            before = step
        names = sum(len(group["names"]) for group in body.get("groups", []))
        if names:
            self.story("restored", f"{names} names restored from the store", step=step)
        self._unsaved = dict(body.get("skipped", {}))
        if self._unsaved:
            lost = ", ".join(sorted(self._unsaved))
            text = (
                f"not restored, since it cannot be saved: {lost}; run the cells that make it again"
            )
            self.story("not_restored", text, why=self._unsaved)
        return step

    async def _load_snapshot(
        self, host: LiveHost, step: int, body: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Have the kernel load a snapshot; the content of its end, None if the host was lost."""
        execution_id = f"restore-{host.epoch}-{step}-{time.monotonic_ns()}"
        request = msgpack.packb(
            {
                "op": "restore",
                "execution_id": execution_id,
                "snapshot_body": body,
                "snapshot": False,
            }
        )
        ended = host.expect(execution_id)
        try:
            await host.handle.submit.remote(request, "", execution_id)
        except Exception as error:  # Ray's kinds of gone
            host.lose(f"it died before it could be used: {error}")
        waiting: set[asyncio.Future[Any]] = {ended, host.lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else None

    async def _revive(self, host: LiveHost) -> None:
        """A new kernel in the same host, with the state before the cell that killed the old one."""
        try:
            await host.handle.start.remote()
            await self._restore(host)
        except Exception as error:  # Ray's own errors among them
            log.info("the kernel could not be revived: %s", error)
            host.lose(f"its kernel did not come back: {error}")

    async def _move_when_idle(self, old: LiveHost) -> None:
        """Switch to the successor between cells; a cell that is cut short does so by itself."""
        successor = self._successor
        assert successor is not None
        await asyncio.wait({successor})
        async with self._turn:
            if self._successor is not successor or successor.cancelled():
                return  # a cell that was cut short has taken it, or an interrupt has cancelled it
            self._successor = None
            if successor.exception() is not None:
                self.detail = str(successor.exception())
            elif self.host is old:
                if old.alive:
                    await self._until_safe()
                else:
                    await self._host_lost(old)
                await self._take_over(successor.result())
            self._settle()

    async def _lost_between_cells(self, host: LiveHost) -> None:
        """A node that died without a notice while nothing ran: the next cell brings another."""
        async with self._turn:
            if self.host is host and not host.alive and self._successor is None:
                await self._host_lost(host)
                self._set_state(SessionState.PARKED)

    async def _release(self, host: LiveHost, *, billing: bool = True) -> None:
        host.lose("released")
        assert self.services.cluster.hosts is not None
        with contextlib.suppress(Exception):
            await asyncio.wait_for(host.handle.stop.remote(), 5)
        self.services.cluster.hosts.kill(host.handle)
        if billing:
            self.services.billing.close_placements(self.id)
        if self.host is host:
            self.host = None

    def _place_session(self, host: LiveHost) -> None:
        self.services.billing.close_placements(self.id)
        self.services.billing.see(self.services.cluster.cloud.instances())
        share = Decimal(str(round(self.host_request.share, 6)))
        self.services.billing.add(Placement(self.id, host.instance, share, now()))

    async def _until_safe(self) -> None:
        """Wait until every finished cell's snapshot is committed, or cannot be."""
        until = asyncio.get_running_loop().time() + SAFE_WAIT_S
        while self._unsafe and self.host is not None and self.host.alive:
            self._safe.clear()
            left = until - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._safe.wait(), left)
            except asyncio.TimeoutError:
                return

    # --- events -----------------------------------------------------------------------------------

    def _on_events(self, host: LiveHost, events: Events) -> None:
        """Journal a batch; then act on the ends in it. Called by the host's pump, in order."""
        items: list[tuple[str, str, bytes]] = []
        acts: list[Callable[[], None]] = []
        for _, execution_id, kind, blob in events:
            if kind == "finished":
                self._on_finished(host, execution_id, blob, items, acts)
            elif kind == "kernel_died":
                self._on_died(host, execution_id, blob, items, acts)
            elif kind == "mlcloud_snapshot":
                content = msgpack.unpackb(blob, strict_map_key=False)["content"]
                acts.append(lambda content=content: self._spawn(self._commit(content)))  # type: ignore[misc]
            elif not execution_id.startswith("restore-"):
                items.append((execution_id, kind, blob))
        self.journal.append(items, host_number=events[-1][0] if host is self.host else None)
        for act in acts:
            act()

    def _on_finished(
        self,
        host: LiveHost,
        execution_id: str,
        blob: bytes,
        items: list[tuple[str, str, bytes]],
        acts: list[Callable[[], None]],
    ) -> None:
        content = msgpack.unpackb(blob, strict_map_key=False)["content"]
        execution = self._known.get(execution_id)
        if execution is not None and execution is self.current and not execution.ended:
            failed = content.get("status") != "ok"
            state = ExecutionState.FAILED if failed else ExecutionState.FINISHED
            if execution.options.get("timed_out"):
                content = {
                    **content,
                    "ename": "ExecutionTimeout",
                    "evalue": f"interrupted after {execution.options['timeout_s']:g} s (--timeout)",
                }
            if execution.op != "get":
                self._unsafe.add(execution_id)
            items.append((execution_id, "done", self._ended(execution, state, content)))
        acts.append(lambda: host.resolve(execution_id, content))

    def _on_died(
        self,
        host: LiveHost,
        execution_id: str,
        blob: bytes,
        items: list[tuple[str, str, bytes]],
        acts: list[Callable[[], None]],
    ) -> None:
        report = msgpack.unpackb(blob, strict_map_key=False)["content"]
        message = describe_death(report, self.memory_bytes)
        content = {"status": "error", "ename": "KernelDied", "evalue": message, "kernel_died": True}
        execution = self._known.get(execution_id)
        self._unsafe.clear()
        self._safe.set()
        if execution is not None and execution is self.current and not execution.ended:
            items.append(
                (execution_id, "done", self._ended(execution, ExecutionState.FAILED, content))
            )
        if execution_id:
            acts.append(lambda: host.resolve(execution_id, content))
        else:
            acts.append(lambda: self._spawn(self._revive(host)))

    def _ended(self, execution: Execution, state: ExecutionState, content: dict[str, Any]) -> bytes:
        """Close an execution's books; returns its `done` event, the bill included."""
        execution.state = state
        execution.shipment = None  # the table has it, should it be needed again
        execution.finished_at = now()
        self._close_span(execution)
        self.services.executions.save(execution)
        text, html, metadata = footer(self.services.billing.execution(execution.id))
        metadata["mlcloud"]["session"] = self.request.name
        body = {
            "type": "done",
            "time": time.time(),
            "content": {
                **content,
                "runs": execution.runs,
                "footer": {"text": text, "html": html, "metadata": metadata},
            },
        }
        packed: bytes = msgpack.packb(body, default=str)
        return packed

    def _close_span(self, execution: Execution, *, lost: bool = False) -> None:
        """`lost`: this run's work was cut off, as it would not have been on demand."""
        for span in self.services.billing.ledger.spans_of(execution.id):
            if span.ended_at is None:
                self.services.billing.add(
                    ExecutionSpan(execution.id, self.id, span.started_at, now(), only_on_spot=lost)
                )

    def _finish_with(self, execution: Execution, error: MLCloudError) -> None:
        """End an execution that no kernel will answer for any more."""
        if execution.ended:
            return
        content = {
            "status": "error",
            "ename": type(error).__name__,
            "evalue": str(error),
            "traceback": [f"{type(error).__name__}: {error}"],
        }
        blob = self._ended(execution, ExecutionState.FAILED, content)
        self.journal.append([(execution.id, "done", blob)])

    def _cancelled(self, execution: Execution) -> None:
        if execution.interrupted:
            content = {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""}
            blob = self._ended(execution, ExecutionState.FAILED, content)
            self.journal.append([(execution.id, "done", blob)])
        else:
            self._finish_with(
                execution,
                ExecutionCancelled(f"session {self.request.name!r} was closed before it ended"),
            )

    async def _commit(self, content: dict[str, Any]) -> None:
        """A kernel has put its state into the store: commit it, and the execution is safe."""
        execution_id = content["execution_id"]
        execution = self._known.get(execution_id) or self.services.executions.get(execution_id)
        if execution is None:
            return
        error = ""
        if content["status"] == "ok":
            try:
                await asyncio.to_thread(
                    self.services.snapshots.commit,
                    self.id,
                    execution.ordinal,
                    execution_id,
                    content["body"],
                )
            except MLCloudError as failure:
                error = str(failure)
            else:
                self._unsaved = dict(content["body"].get("skipped", {}))
        else:
            error = f"{content['ename']}: {content['evalue']}"
        if not error and execution.state is ExecutionState.FINISHED:
            execution.state = ExecutionState.SAFE
            self.services.executions.save(execution)
        self._unsafe.discard(execution_id)
        self._safe.set()
        if error:
            self.journal.emit(
                execution_id,
                "story",
                {"what": "unsafe", "text": f"this cell's state is not safe yet: {error}"},
            )
        else:
            self.journal.emit(execution_id, "safe", {"ordinal": execution.ordinal})

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

    def _place(self, host: LiveHost) -> str:
        return self._place_of(host.instance)

    def _place_of(self, instance_id: str) -> str:
        offer = self.services.cluster.cloud.get(instance_id).offer
        price = f"${offer.usd_per_hour.normalize():f}/h"
        simulated = " simulated" if offer.simulated else ""
        return f"{offer.instance_type} {offer.market} {offer.zone} ({price}{simulated})"

    def _set_state(self, state: SessionState) -> None:
        if self.state is SessionState.CLOSED:
            return
        self.state = state
        if state in (SessionState.IDLE, SessionState.BUSY):
            self.detail = ""
        self._save(state=state.value, detail=self.detail)

    def _settle(self) -> None:
        """The state between two cells."""
        if self.host is not None:
            moving = self._successor is not None
            self._set_state(SessionState.MOVING if moving else SessionState.IDLE)
        elif self.state not in (SessionState.PARKED, SessionState.FAILED):
            self._set_state(SessionState.PARKED if self.epoch else SessionState.STARTING)

    def _save(self, **values: Any) -> None:
        with self.services.engine.begin() as connection:
            connection.execute(
                update(db.sessions).where(db.sessions.c.id == self.id).values(**values)
            )

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- a gateway that comes back ----------------------------------------------------------------

    def _take_up(self) -> None:
        """What an earlier gateway left unfinished goes before all that is asked from now on."""
        unfinished = self.services.executions.unfinished(self.id)
        self._known.update({execution.id: execution for execution in unfinished})
        self.current = next((e for e in unfinished if e.state is ExecutionState.RUNNING), None)
        self.queue.extend(e for e in unfinished if e is not self.current)

    async def _adopt(self, host_number: int) -> None:
        """Find the host that an earlier gateway started, and finish what it was doing."""
        async with self._turn:
            try:
                await self._adopt_host(host_number)
                if self.host is None:
                    self.services.billing.close_placements(self.id)
                    if self.current is not None:
                        self._close_span(self.current)
                if self.current is not None:
                    underway = await self._underway(self.current)
                    await self._execute(self.current, underway=underway)
            finally:
                self.current = None
            self._settle()

    async def _adopt_host(self, host_number: int) -> None:
        if not self.epoch:
            return
        hosts = await self.services.cluster.joined()
        handle = hosts.find(f"{self.id}-{self.epoch}")
        if handle is None:
            return
        try:
            status = await asyncio.wait_for(handle.status.remote(), 15)
        except Exception as error:  # Ray's kinds of dead
            log.info("host %s-%s is gone: %s", self.id, self.epoch, error)
            return
        if not status["alive"]:
            hosts.kill(handle)
            return
        self.host = LiveHost(
            handle, self.epoch, status, number=host_number, on_events=self._on_events
        )

    async def _underway(self, execution: Execution) -> bool:
        """Whether the adopted host has the execution, running or ended."""
        host = self.host
        if host is None:
            return False
        ended = host.expect(execution.id)
        status = await host.handle.status.remote()
        while host.alive and host.number < status["last"] and not execution.ended:
            await asyncio.sleep(0.05)
        if execution.ended or status["running"] == execution.id:
            return True
        host.finished.pop(execution.id, None)
        return ended.done()
