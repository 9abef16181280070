"""What becomes of executions: events journaled, ends recorded and billed, states made safe.

host's batch ─► on_events ─► journal (one transaction) ─► futures resolved, states committed
                └─ finished / kernel_died ─► books closed, the `done` event with its footer
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack
from sqlalchemy import Connection

from mlcloud.cluster.records import now
from mlcloud.cost.footer import footer
from mlcloud.cost.ledger import ExecutionSpan
from mlcloud.errors import BudgetExceeded, ExecutionCancelled, MLCloudError
from mlcloud.gateway import db, elastic, hosting, mounting, restoring
from mlcloud.gateway.execution import LOOKING, Execution
from mlcloud.gateway.journal import packed
from mlcloud.gateway.lease import Lapsed
from mlcloud.gateway.livehost import Events, LiveHost
from mlcloud.gateway.record import Fenced
from mlcloud.gateway.snapshots import cannot_survive
from mlcloud.gateway.stories import describe_death
from mlcloud.models import ExecutionState
from mlcloud.units import format_bytes

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

MOST_DEATHS = 3  # of a host's kernels while no cell runs
NOTEWORTHY_LAG = 64 * 2**20  # bytes that are not in the store yet, worth a word in a footer

# Executions that end with a transaction, and their state before it.
Ending = list[tuple[Execution, ExecutionState]]


class Outcomes:
    """The outcomes of one session's executions."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._in_order = asyncio.Lock()  # one commit after the other, as they came

    def on_events(self, host: LiveHost, events: Events) -> None:
        """Journal a batch, with the ends in it, in one transaction; then act on them.

        Called by the host's pump, in order. A batch that could not be written (a full disk) comes
        again, so everything is then as it was before. Raises `Lapsed` where the session may be
        another head's by now.
        """
        if self._session.services.lease.lapsed:
            raise Lapsed
        items: list[tuple[str, str, bytes]] = []
        acts: list[Callable[[], None]] = []
        with self._writing() as (connection, ending):
            for _, execution_id, kind, blob in events:
                if kind == "finished":
                    content = _content(blob)
                    use = content.pop("use", None)
                    execution = self._ends(execution_id)
                    if execution is not None:
                        self._used(execution, host, use, connection)
                        done = self._finished(execution, content, connection, ending)
                        items.append((execution_id, "done", done))
                    acts.append(partial(host.resolve, execution_id, content))
                elif kind == "kernel_died":
                    content = self._death(blob)
                    execution = self._ends(execution_id)
                    if execution is not None:
                        self._used(execution, host, _content(blob).get("use"), connection)
                        over = execution.options.get("over_budget")
                        if over:
                            content = {**content, "ename": "BudgetExceeded", "evalue": over}
                        done = self.ended(
                            execution, ExecutionState.FAILED, content, connection, ending
                        )
                        items.append((execution_id, "done", done))
                    acts.append(partial(self._died, host, execution_id, content))
                elif kind == "mlcloud_snapshot":
                    acts.append(partial(self._commit_soon, _content(blob)))
                elif kind == "mlcloud_lost":
                    acts.append(partial(self._rank_lost, host, _content(blob)["why"]))
                elif kind == "mlcloud_effect":
                    execution = self._ends(execution_id)
                    if execution is not None:
                        execution.effects.append(_content(blob)["text"])
                        self._session.services.executions.save(execution, connection)
                elif execution_id.startswith(mounting.PREFIX):
                    if kind == "mlcloud_transfer":
                        acts.append(partial(self._session.status, _content(blob)["text"]))
                elif not execution_id.startswith("restore-"):
                    items.append((execution_id, kind, blob))
                    if kind == "mlcloud_event" and _content(blob).get("type") == "left":
                        acts.append(partial(elastic.left, self._session, host, _content(blob)))
                    if kind == "input_request":
                        asked = self._session.questions.asked
                        acts.append(partial(asked, execution_id, _content(blob)))
            number = events[-1][0] if host is self._session.host else None
            rows = self._session.journal.write(connection, items, host_number=number)
        self._session.journal.tell(rows)
        for act in acts:
            act()

    @contextmanager
    def _writing(self) -> Iterator[tuple[Connection, Ending]]:
        """A transaction, and the executions that end with it: not, if it fails."""
        ending: Ending = []
        try:
            with db.writing(self._session.services.engine) as connection:
                yield connection, ending
        except Exception:
            for execution, before in ending:
                execution.state, execution.finished_at = before, None
            raise
        for execution, _ in ending:
            execution.shipment = None  # the table has it, should it be needed again

    def _ends(self, execution_id: str) -> Execution | None:
        """The execution of this id, if it is the one whose end we wait for."""
        execution = self._session.known.get(execution_id)
        if execution is None or execution is not self._session.current or execution.ended:
            return None
        return execution

    def _finished(
        self,
        execution: Execution,
        content: dict[str, Any],
        connection: Connection,
        ending: Ending,
    ) -> bytes:
        failed = content.get("status") != "ok"
        if failed and execution.options.get("over_budget"):
            why = execution.options["over_budget"]
            content = {**content, "ename": "BudgetExceeded", "evalue": why}
        elif execution.options.get("timed_out"):
            content = {
                **content,
                "ename": "ExecutionTimeout",
                "evalue": f"interrupted after {execution.options['timeout_s']:g} s (--timeout)"
                + (f"; {content['where']}" if content.get("where") else ""),
            }
        if execution.op not in LOOKING:
            self._session.unsafe.add(execution.id)
            self._session.pending[execution.id] = int(content.get("pending") or 0)
        state = ExecutionState.FAILED if failed else ExecutionState.FINISHED
        return self.ended(execution, state, content, connection, ending)

    def _used(
        self,
        execution: Execution,
        host: LiveHost,
        use: dict[str, Any] | None,
        connection: Connection,
    ) -> None:
        """Enter what it used of its node, where that was measured."""
        session = self._session
        if use is not None and execution.op not in (*LOOKING, "save"):
            share = session.host_request.share
            session.services.usage.add(
                execution.id, session.id, host.instance, share, use, connection
            )

    def _rank_lost(self, host: LiveHost, why: str) -> None:
        host.lose(why)
        self._session.spawn(hosting.lost_between_cells(self._session, host))

    def _death(self, blob: bytes) -> dict[str, Any]:
        message = describe_death(_content(blob), self._session.memory_bytes)
        return {"status": "error", "ename": "KernelDied", "evalue": message, "kernel_died": True}

    def _died(self, host: LiveHost, execution_id: str, content: dict[str, Any]) -> None:
        # What had finished runs again (`restoring.replay`), and is not safe before. What failed
        # does not: what it had done is lost.
        session = self._session
        for each in list(session.unsafe):
            known = session.known.get(each)
            if known is None or known.state is not ExecutionState.FINISHED:
                session.unsafe.discard(each)
                session.pending.pop(each, None)
        session.safe.set()
        if execution_id:
            host.resolve(execution_id, content)
            return
        host.deaths.append(content["evalue"])
        if len(host.deaths) <= MOST_DEATHS:
            self._session.spawn(restoring.revive(self._session, host))
        else:  # what it restores is what kills it: the next cell tries elsewhere, and says so
            host.lose(f"its kernel died {len(host.deaths)} times between cells")
            self._session.spawn(hosting.lost_between_cells(self._session, host))

    def _commit_soon(self, content: dict[str, Any]) -> None:
        self._session.spawn(self.commit(content))

    def ended(
        self,
        execution: Execution,
        state: ExecutionState,
        content: dict[str, Any],
        connection: Connection,
        ending: Ending,
    ) -> bytes:
        """Close an execution's books; returns its `done` event, the bill included."""
        ending.append((execution, execution.state))
        self._session.to_record = True
        self._session.questions.withdraw()
        execution.state = state
        execution.finished_at = now()
        self.close_span(execution, connection=connection)
        self._session.services.executions.save(execution, connection)
        lag = self._lag(execution)
        shown = self._footer(execution, lag)
        if lag:
            self._session.lagging[execution.id] = execution.ordinal
        return packed("done", {**content, "runs": execution.runs, "footer": shown})

    def _footer(self, execution: Execution, lag: str) -> dict[str, Any]:
        text, html, metadata = footer(self._session.services.billing.execution(execution.id), lag)
        metadata["mlcloud"]["session"] = self._session.request.name
        shown = {"text": text, "html": html, "metadata": metadata}
        if lag:  # it is replaced when the store has caught up
            shown["transient"] = {"display_id": f"mlcloud-footer-{execution.id}"}
        return shown

    def _lag(self, execution: Execution) -> str:
        """How far the store is behind, where that is more than the moment it always takes."""
        session = self._session
        earlier = session.unsafe - {execution.id}
        pending = sum(session.pending.get(each, 0) for each in session.unsafe)
        if not earlier and pending < NOTEWORTHY_LAG:
            return ""
        safe = f"safe to cell {session.safe_to}" if session.safe_to else "no cell is safe yet"
        return f"{safe}; {format_bytes(pending)} pending"

    def _caught_up(self, ordinal: int) -> None:
        """Footers that said how far the store was behind say so no more."""
        session = self._session
        for execution_id, of in list(session.lagging.items()):
            if of > ordinal:
                continue
            del session.lagging[execution_id]
            execution = session.known.get(execution_id)
            if execution is not None:
                shown = self._footer(execution, "")
                content = {
                    "data": {"text/plain": shown["text"], "text/html": shown["html"]},
                    "metadata": shown["metadata"],
                    "transient": {"display_id": f"mlcloud-footer-{execution_id}"},
                }
                session.journal.emit(execution_id, "update_display_data", content)

    def close_span(
        self,
        execution: Execution,
        *,
        lost: bool = False,
        connection: Connection | None = None,
    ) -> None:
        """`lost`: this run's work was cut off, as it would not have been on demand."""
        billing = self._session.services.billing
        for span in billing.ledger.spans_of(execution.id):
            if span.ended_at is None:
                closed = ExecutionSpan(
                    execution.id, self._session.id, span.started_at, now(), only_on_spot=lost
                )
                billing.add(closed, connection)

    def finish_with(self, execution: Execution, error: MLCloudError) -> None:
        """End an execution that no kernel will answer for any more."""
        if not execution.ended:
            content = {
                "status": "error",
                "ename": type(error).__name__,
                "evalue": str(error),
                "traceback": [f"{type(error).__name__}: {error}"],
            }
            self._end(execution, content)

    def cancelled(self, execution: Execution) -> None:
        over = execution.options.get("over_budget")
        if over:  # before it had a node
            self.finish_with(execution, BudgetExceeded(over))
        elif execution.interrupted:
            self._end(execution, {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""})
        else:
            name = self._session.request.name
            self.finish_with(
                execution, ExecutionCancelled(f"session {name!r} was closed before it ended")
            )

    def _end(self, execution: Execution, content: dict[str, Any]) -> None:
        with self._writing() as (connection, ending):
            done = self.ended(execution, ExecutionState.FAILED, content, connection, ending)
            rows = self._session.journal.write(connection, [(execution.id, "done", done)])
        self._session.journal.tell(rows)

    async def commit(self, content: dict[str, Any]) -> None:
        """A kernel has put its state into the store: commit it, and the execution is safe."""
        async with self._in_order:
            await self._commit_next(content)

    async def _commit_next(self, content: dict[str, Any]) -> None:
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
                    self._commit, execution.ordinal, execution_id, content["body"]
                )
            except Fenced as failure:
                self._session.fenced(failure)
                return
            except MLCloudError as failure:
                error = str(failure)
            else:
                self._session.unsaved = cannot_survive(content["body"])
                self._session.safe_to = execution.label
        else:
            error = f"{content['ename']}: {content['evalue']}"
        # Those before it that are not safe yet are in this state too, or have none either.
        saved = [execution, *self._before(execution)]
        text = f"this cell's state is not safe yet: {error}"
        story = packed("story", {"what": "unsafe", "text": text})
        with db.writing(self._session.services.engine) as connection:
            if not error and execution.state is ExecutionState.FINISHED:
                execution.state = ExecutionState.SAFE
                self._session.services.executions.save(execution, connection)
            if not error:
                services = self._session.services
                services.executions.safe_up_to(self._session.id, execution.ordinal, connection)
            items = [
                (each.id, "story", story)
                if error
                else (each.id, "safe", packed("safe", {"ordinal": each.ordinal}))
                for each in saved
            ]
            rows = self._session.journal.write(connection, items)
        for each in saved:
            self._session.unsafe.discard(each.id)
            self._session.pending.pop(each.id, None)
            if not error and each.state is ExecutionState.FINISHED:
                each.state = ExecutionState.SAFE
        self._session.safe.set()
        self._session.journal.tell(rows)
        self._session.to_record = True
        if not error:
            self._caught_up(execution.ordinal)

    def _before(self, execution: Execution) -> list[Execution]:
        """Those that are not safe yet and ran before it."""
        known = (self._session.known.get(each) for each in self._session.unsafe)
        return [each for each in known if each is not None and each.ordinal < execution.ordinal]

    def _commit(self, ordinal: int, execution_id: str, body: dict[str, Any]) -> None:
        """Unless another head has the session. Blocks."""
        services = self._session.services
        services.record.check(self._session.id)
        services.snapshots.commit(self._session.id, ordinal, execution_id, body)
        elsewhere = self._session.is_elsewhere()
        services.traffic.committed(self._session.id, body, elsewhere=elsewhere)


def _content(blob: bytes) -> dict[str, Any]:
    content: dict[str, Any] = msgpack.unpackb(blob, strict_map_key=False)["content"]
    return content
