"""The head goes away: everything is brought into the store, so that a new head goes on with it.

    notice of the head ─► sessions and status say so ─► every session saves, loops checkpoint
                                     │                         └─► record, ledger, index: written
                                     └─► until the end they are written every other second

A rented head that is as old as nodes may become is told so by nobody but itself (`of_age`): it
saves, and ends as one that nobody uses.

A head that is at risk saves once. What is in the store then is what `record.rebuild` reads: the
index of sessions, their journals, what nodes cost, budgets. Nothing else is done: whether nodes
outlive their head is their dead man's business, and who brings up the new head is the user.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlcloud.cluster.notices import SAVES, WITHDRAWN
from mlcloud.cluster.records import now
from mlcloud.gateway import hosting

if TYPE_CHECKING:
    from mlcloud.gateway.core import Gateway
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

AGAIN_S = 2.0
LOOK_S = 30.0  # at an age that may have been changed
AGE_NOTICE_S = 120.0
LEFT_OVER_S = 1.0  # for the record, after the sessions have saved
LEAST_S = 2.0


class Farewell:
    """Of one gateway. `deadline` is when the head is gone, None while it stays."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.deadline: datetime | None = None
        self._task: asyncio.Task[Any] | None = None

    def on_notice(self, kind: str, in_s: float | None) -> None:
        """`in_s`: until the head goes away; None where it may stay."""
        if kind == WITHDRAWN:
            self._said("the cloud took back its notice for the head node: the cluster goes on")
            self.deadline = None
            self._gateway.cluster.detail = ""
            return
        if in_s is None and kind in SAVES:
            if self.deadline is None:
                text = "the cloud says that the head node may go away before long: saving now"
                self._begin(text, 30.0)
            return
        deadline = now() + timedelta(seconds=in_s or 0.0)
        if self.deadline is not None and self.deadline <= deadline:
            return  # another sign of the same
        self.deadline = deadline
        self._begin(
            f"the cloud takes the head node back in {in_s or 0:.0f} s: saving now", in_s or 0
        )

    async def of_age(self, since: datetime, end: Callable[[], Awaitable[None]]) -> None:
        """Returns when the machine, rented `since` then, has become too old, and `end` is done."""
        while True:
            lifetime = self._gateway.settings.node_lifetime
            left = (since + lifetime - now()).total_seconds() if lifetime else LOOK_S
            if lifetime and left <= 0:
                log.warning("the head node is as old as it may become: it ends")
                await end()
                return
            ahead = min(AGE_NOTICE_S, lifetime.total_seconds() / 4)
            if lifetime and left <= ahead and self.deadline is None:
                self.deadline = since + lifetime
                self._begin(
                    f"the head node is as old as it may become (max_lifetime) in {left:.0f} s: "
                    "saving now",
                    left,
                )
            await asyncio.sleep(max(0.05, min(LOOK_S, left - ahead if left > ahead else left)))

    def _begin(self, text: str, seconds: float) -> None:
        log.warning("%s", text)
        self._said(text)
        self._gateway.cluster.detail = text
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._save(seconds))

    def _said(self, text: str) -> None:
        for session in self._gateway.sessions:
            session.story("head", text)

    async def _save(self, seconds: float) -> None:
        gateway, leaves = self._gateway, self.deadline is not None
        await gateway.record_everything()  # first what needs no session's kernel
        saving = [self._save_session(each) for each in gateway.sessions]
        try:
            within = max(LEAST_S, seconds - LEFT_OVER_S)
            await asyncio.wait_for(asyncio.gather(*saving), within)
        except asyncio.TimeoutError:
            log.warning("not every session could be saved in time")
        await gateway.record_everything()
        unsafe = [each.request.name for each in gateway.sessions if _is_behind(each)]
        but = f", but of {', '.join(unsafe)} the last safe cell" if unsafe else ""
        text = f"everything is in the store at {gateway.store.url}{but}"
        if leaves:
            text += ": a new head goes on with it (`mlcloud down`, then `mlcloud up`)"
        log.warning("%s", text)
        self._said(text)
        gateway.cluster.detail = text if leaves else ""
        while self.deadline is not None:
            await asyncio.sleep(AGAIN_S)
            await gateway.record_everything()

    async def _save_session(self, session: Session) -> None:
        host = session.host
        if host is None or not host.alive:
            return
        await hosting.save_now(session, host)
        if session.current is None:
            await session.until_safe()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _is_behind(session: Session) -> bool:
    finished, safe = session.services.executions.counts(session.id)
    return session.current is not None or safe < finished
