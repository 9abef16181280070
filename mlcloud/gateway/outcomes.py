"""What becomes of executions: events journaled, ends recorded and billed, states made safe.

host's batch ─► on_events ─► journal (one transaction) ─► futures resolved, states committed
                └─ finished / kernel_died ─► books closed, the `done` event with its footer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgpack

from mlcloud.cluster.clouds.local import now
from mlcloud.cost.footer import footer
from mlcloud.cost.ledger import ExecutionSpan
from mlcloud.errors import ExecutionCancelled, MLCloudError
from mlcloud.gateway import restoring
from mlcloud.gateway.execution import Execution
from mlcloud.gateway.livehost import Events, LiveHost
from mlcloud.gateway.stories import describe_death
from mlcloud.models import ExecutionState

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session


class Outcomes:
    """The outcomes of one session's executions."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # Ends whose books are closed and whose event is not in the journal yet: a batch that could
        # not be written (a full disk) comes again, and must not close them twice.
        self._unwritten: dict[str, bytes] = {}

    def on_events(self, host: LiveHost, events: Events) -> None:
        """Journal a batch; then act on the ends in it. Called by the host's pump, in order."""
        items: list[tuple[str, str, bytes]] = []
        acts: list[Callable[[], None]] = []
        for _, execution_id, kind, blob in events:
            if kind == "finished":
                self.on_finished(host, execution_id, blob, items, acts)
            elif kind == "kernel_died":
                self.on_died(host, execution_id, blob, items, acts)
            elif kind == "mlcloud_snapshot":
                content = msgpack.unpackb(blob, strict_map_key=False)["content"]
                acts.append(lambda content=content: self._session.spawn(self.commit(content)))  # type: ignore[misc]
            elif not execution_id.startswith("restore-"):
                items.append((execution_id, kind, blob))
                if kind == "input_request":
                    content = msgpack.unpackb(blob, strict_map_key=False)["content"]
                    acts.append(
                        lambda id=execution_id, content=content: (  # type: ignore[misc]
                            self._session.questions.asked(id, content)
                        )
                    )
        self._session.journal.append(
            items, host_number=events[-1][0] if host is self._session.host else None
        )
        self._unwritten.clear()
        for act in acts:
            act()

    def on_finished(
        self,
        host: LiveHost,
        execution_id: str,
        blob: bytes,
        items: list[tuple[str, str, bytes]],
        acts: list[Callable[[], None]],
    ) -> None:
        content = msgpack.unpackb(blob, strict_map_key=False)["content"]
        execution = self._session.known.get(execution_id)
        if execution is not None and execution is self._session.current and not execution.ended:
            failed = content.get("status") != "ok"
            state = ExecutionState.FAILED if failed else ExecutionState.FINISHED
            if execution.options.get("timed_out"):
                content = {
                    **content,
                    "ename": "ExecutionTimeout",
                    "evalue": f"interrupted after {execution.options['timeout_s']:g} s (--timeout)",
                }
            if execution.op != "get":
                self._session.unsafe.add(execution_id)
            self._unwritten[execution_id] = self.ended(execution, state, content)
        if execution_id in self._unwritten:
            items.append((execution_id, "done", self._unwritten[execution_id]))
        acts.append(lambda: host.resolve(execution_id, content))

    def on_died(
        self,
        host: LiveHost,
        execution_id: str,
        blob: bytes,
        items: list[tuple[str, str, bytes]],
        acts: list[Callable[[], None]],
    ) -> None:
        report = msgpack.unpackb(blob, strict_map_key=False)["content"]
        message = describe_death(report, self._session.memory_bytes)
        content = {"status": "error", "ename": "KernelDied", "evalue": message, "kernel_died": True}
        execution = self._session.known.get(execution_id)
        self._session.unsafe.clear()
        self._session.safe.set()
        if execution is not None and execution is self._session.current and not execution.ended:
            self._unwritten[execution_id] = self.ended(execution, ExecutionState.FAILED, content)
        if execution_id in self._unwritten:
            items.append((execution_id, "done", self._unwritten[execution_id]))
        if execution_id:
            acts.append(lambda: host.resolve(execution_id, content))
        else:
            acts.append(lambda: self._session.spawn(restoring.revive(self._session, host)))

    def ended(self, execution: Execution, state: ExecutionState, content: dict[str, Any]) -> bytes:
        """Close an execution's books; returns its `done` event, the bill included."""
        before = execution.state
        self._session.questions.withdraw()
        execution.state = state
        execution.finished_at = now()
        try:
            self.close_span(execution)
            self._session.services.executions.save(execution)
        except Exception:
            execution.state = before  # not written, so not ended: whoever called tries again
            raise
        execution.shipment = None  # the table has it, should it be needed again
        text, html, metadata = footer(self._session.services.billing.execution(execution.id))
        metadata["mlcloud"]["session"] = self._session.request.name
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

    def close_span(self, execution: Execution, *, lost: bool = False) -> None:
        """`lost`: this run's work was cut off, as it would not have been on demand."""
        for span in self._session.services.billing.ledger.spans_of(execution.id):
            if span.ended_at is None:
                self._session.services.billing.add(
                    ExecutionSpan(
                        execution.id, self._session.id, span.started_at, now(), only_on_spot=lost
                    )
                )

    def finish_with(self, execution: Execution, error: MLCloudError) -> None:
        """End an execution that no kernel will answer for any more."""
        if execution.ended:
            return
        content = {
            "status": "error",
            "ename": type(error).__name__,
            "evalue": str(error),
            "traceback": [f"{type(error).__name__}: {error}"],
        }
        blob = self.ended(execution, ExecutionState.FAILED, content)
        self._session.journal.append([(execution.id, "done", blob)])

    def cancelled(self, execution: Execution) -> None:
        if execution.interrupted:
            content = {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""}
            blob = self.ended(execution, ExecutionState.FAILED, content)
            self._session.journal.append([(execution.id, "done", blob)])
        else:
            self.finish_with(
                execution,
                ExecutionCancelled(
                    f"session {self._session.request.name!r} was closed before it ended"
                ),
            )

    async def commit(self, content: dict[str, Any]) -> None:
        """A kernel has put its state into the store: commit it, and the execution is safe."""
        execution_id = content["execution_id"]
        execution = self._session.known.get(execution_id) or self._session.services.executions.get(
            execution_id
        )
        if execution is None:
            return
        error = ""
        if content["status"] == "ok":
            try:
                await asyncio.to_thread(
                    self._session.services.snapshots.commit,
                    self._session.id,
                    execution.ordinal,
                    execution_id,
                    content["body"],
                )
            except MLCloudError as failure:
                error = str(failure)
            else:
                self._session.unsaved = dict(content["body"].get("skipped", {}))
        else:
            error = f"{content['ename']}: {content['evalue']}"
        if not error and execution.state is ExecutionState.FINISHED:
            execution.state = ExecutionState.SAFE
            self._session.services.executions.save(execution)
        self._session.unsafe.discard(execution_id)
        self._session.safe.set()
        if error:
            self._session.journal.emit(
                execution_id,
                "story",
                {"what": "unsafe", "text": f"this cell's state is not safe yet: {error}"},
            )
        else:
            self._session.journal.emit(execution_id, "safe", {"ordinal": execution.ordinal})
