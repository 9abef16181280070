"""What the nodes report of their clouds' notices, and what follows.

    POST /v1/nodes/<id>/notice ─┬─ goes away ──► drained in Ray, passed over by new hosts, sessions
    (and each heartbeat)        │                move: the successors are asked for now
                                ├─ at risk ────► its sessions save, and stay
                                ├─ withdrawn ──► said; what was drained is left all the same
                                └─ of the head ► everything is saved (`farewell`)

A report may come twice, from a node whose answer was lost or for a gateway that was started since:
what is known already changes nothing. Ray cannot undo a drain, so a session leaves a drained node
when its cell has ended, also where the cloud has thought better of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.notices import SAVES, SHUTDOWN_S, WITHDRAWN
from mlcloud.cluster.notices.notice import LIFETIME
from mlcloud.cluster.records import now

if TYPE_CHECKING:
    from mlcloud.cluster_models import NoticeReport
    from mlcloud.gateway.embedded import EmbeddedCluster
    from mlcloud.gateway.sessions import Sessions

log = logging.getLogger(__name__)
OURS = (LIFETIME, "region")  # a node that this cluster gives back itself


@dataclass(frozen=True)
class Leaving:
    """A node that goes away, by this machine's clock."""

    deadline: datetime
    kind: str


class Notices:
    """Of one gateway. `leaving` is shared with whoever places hosts."""

    def __init__(
        self,
        cluster: EmbeddedCluster,
        sessions: Sessions,
        leaving: dict[str, Leaving],
        on_head: Callable[[str, float | None], None],
    ) -> None:
        self.leaving = leaving
        self._on_head = on_head
        self._cluster, self._sessions = cluster, sessions
        self._known: dict[tuple[str, str], str] = {}  # (node, key) → what was said last
        self._tasks: set[asyncio.Task[Any]] = set()

    def in_force(self, node: str, reports: Iterable[NoticeReport]) -> None:
        """A node's heartbeat: all that it knows of."""
        for report in reports:
            self.report(node, report)

    def report(self, node: str, report: NoticeReport) -> None:
        known = self._known.get((node, report.key))
        if known == report.kind or (known is None and report.kind == WITHDRAWN):
            return
        self._known[node, report.key] = report.kind
        log.info("node %s has a notice: %s, in %s s", node, report.kind, report.in_s)
        if self._is_head(node):
            seconds = SHUTDOWN_S if report.in_s is None else report.in_s
            gone = report.kind not in SAVES and report.kind != WITHDRAWN
            self._on_head(report.kind, seconds if gone else None)
            return  # no session is on it, and Ray's head is not drained
        if report.kind in SAVES:
            self._sessions.on_risk(node, report.kind)
        elif report.kind == WITHDRAWN:
            self._withdrawn(node, known in SAVES)
        else:
            seconds = SHUTDOWN_S if report.in_s is None else report.in_s
            self._goes(node, Leaving(now() + timedelta(seconds=seconds), report.kind))

    def _is_head(self, node: str) -> bool:
        return self._cluster.cloud.get(node).node_type == HEAD

    def _goes(self, node: str, leaving: Leaving) -> None:
        before = self.leaving.get(node)
        if before is not None and before.deadline <= leaving.deadline:
            return  # another sign of the same, such as the shutdown that follows a notice
        self.leaving[node] = leaving
        if leaving.kind not in OURS:  # what this cluster learns of its offers
            self._cluster.cloud.records.noticed(node, leaving.deadline, leaving.kind)
        if not self._sessions.on_notice(node, leaving.deadline, leaving.kind):
            self._spawn(self._drain(node, leaving.deadline))
        if leaving.kind == LIFETIME:
            self._spawn(self._end(node, leaving.deadline, "it was too old"))

    def _withdrawn(self, node: str, was_risk: bool) -> None:
        if not was_risk:
            self.leaving.pop(node, None)
        self._sessions.on_withdrawn(node, was_risk)

    async def _drain(self, node: str, deadline: datetime) -> None:
        """A node without a session, which has nobody else to drain it."""
        with contextlib.suppress(Exception):  # it may be gone, or not up yet
            hosts = await self._cluster.joined()
            ray_id = await hosts.node_of(node)
            if ray_id is not None:
                await hosts.drain(ray_id, deadline)

    def leave(self, node: str, leaving: Leaving, why: str) -> None:
        """This cluster gives the node back itself: its sessions move, and at the deadline it
        ends."""
        if node in self.leaving:
            return
        self._goes(node, leaving)
        self._spawn(self._end(node, leaving.deadline, why))

    async def _end(self, node: str, deadline: datetime, why: str) -> None:
        """Where it is too old its agent ends it as well: whoever comes first."""
        await asyncio.sleep(max(0.0, (deadline - now()).total_seconds()))
        await asyncio.to_thread(self._cluster.cloud.terminate, node, why)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
