"""Keeping the store small: what no session can come back to goes, then chunks that nobody names.

    every `prune_every`, in a thread, by the head that holds the cluster's lease
      closed sessions   after `closed_keep`: states, checkpoints, logs, inputs; of the record that
                        stays what it cost (`Record.fold`)
      open sessions     old states (`retention`), inputs of cells whose state is there (`inputs`)
      Store.prune()     chunks that no manifest names any more, `prune_grace` after they were marked

Manifests go first, chunks at the earliest a grace later, so whoever has just read one can still
read what it names. A store that does not answer, or that another process sweeps, is tried again the
next time. Sessions wait for nothing of this, but going back to an old state and forking take turns
with it (`Session.past`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from mlcloud.checkpoint.step import KIND as CHECKPOINTS
from mlcloud.config import Settings
from mlcloud.errors import Damaged, NoCheckpoint
from mlcloud.gateway import inputs, retention
from mlcloud.gateway.lease import Lease
from mlcloud.gateway.record import Fenced, Record
from mlcloud.gateway.recurring import recurring
from mlcloud.gateway.snapshots import KIND as SNAPSHOTS
from mlcloud.kernel.log import KIND as LOGS
from mlcloud.store import Store
from mlcloud.units import format_bytes

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session
    from mlcloud.gateway.sessions import Sessions

log = logging.getLogger(__name__)

FIRST_S = 600.0  # after the gateway has started
T = TypeVar("T")


class Upkeep:
    """Of one gateway's store."""

    def __init__(
        self, settings: Settings, sessions: Sessions, record: Record, lease: Lease
    ) -> None:
        self._sessions, self._record, self._lease = sessions, record, lease
        self._every_s = settings.prune_every.total_seconds()
        self._grace_s = settings.prune_grace.total_seconds()
        self._closed_keep = settings.closed_keep
        self._newest = settings.history_keep
        self._url = settings.store_url

    @cached_property
    def _store(self) -> Store:
        """Of its own, opened in the thread: a collector's knowledge of the newest step may not be
        brought up to date by who writes meanwhile, else two that sweep would not see each other."""
        return Store(self._url)

    async def run(self) -> None:
        """For ever; not at all with `prune_every` 0."""
        failed = "the store could not be tidied"
        await recurring(self.once, log, failed, every_s=self._every_s, first_s=FIRST_S)

    async def once(self) -> None:
        """One round. Raises `StoreError`, and `Conflict` where another process prunes."""
        if self._lease.lapsed or not await _in_thread(self._lease.is_held):
            return
        for session in self._sessions:
            try:
                await self._tidy(session)
            except Fenced as error:
                log.info("session %s is left alone: %s", session.id, error)
        mine = {session.id for session in self._sessions}
        await _in_thread(partial(self._remove_closed, mine))
        await _in_thread(self._prune)

    async def _tidy(self, session: Session) -> None:
        """An open session."""
        if session.over:
            return
        async with session.past:
            newest = await _in_thread(partial(self._thin, session.id))
        # Cells that wait have numbers above those that are safe, except where the state between
        # them was saved.
        waiting = [each.ordinal for each in (*session.queue, session.current) if each is not None]
        up_to = min([newest, *(ordinal - 1 for ordinal in waiting)])
        await _in_thread(partial(self._let_go, session.id, up_to))

    def _thin(self, session_id: str) -> int:
        """Remove old states; the newest one's step, 0 where there is none."""
        self._record.check(session_id, anew=True)  # another head's are left alone
        steps = self._store.steps(SNAPSHOTS, session_id)
        if len(steps) > self._newest:
            states = [(step, self._created(session_id, step)) for step in steps]
            known = [(step, at) for step, at in states if at is not None]
            stay = retention.kept(known, datetime.now(timezone.utc), self._newest)
            for step, _ in known:
                if step not in stay:
                    self._store.discard(SNAPSHOTS, session_id, step)
        return steps[-1] if steps else 0

    def _let_go(self, session_id: str, up_to: int) -> None:
        inputs.Inputs(self._store).let_go(session_id, up_to)

    def _created(self, session_id: str, step: int) -> datetime | None:
        """None for a damaged one: it is left for people to look at."""
        with contextlib.suppress(Damaged, NoCheckpoint):
            return self._store.manifest(SNAPSHOTS, session_id, step).created
        return None

    def _remove_closed(self, open_: set[str]) -> None:
        until = datetime.now(timezone.utc) - self._closed_keep
        for session_id, closed_at in self._record.closed(open_).items():
            if closed_at > until:
                continue
            for kind in (SNAPSHOTS, CHECKPOINTS, LOGS, inputs.KIND):
                for name in self._store.names(kind, under=session_id):
                    for step in self._store.steps(kind, name):
                        self._store.discard(kind, name, step)
            self._record.fold(session_id)
            log.info("closed session %s was removed from the store", session_id)

    def _prune(self) -> None:
        found = self._store.prune(grace_s=self._grace_s)
        if found.chunks or found.marked:
            freed, marked = format_bytes(found.bytes), format_bytes(found.marked_bytes)
            counts = found.chunks, freed, found.marked, marked
            log.info("pruned %d chunks (%s), marked %d (%s)", *counts)


async def _in_thread(call: Callable[[], T]) -> T:
    """In one that nobody waits for when the gateway ends: a prune may take long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="mlcloud-upkeep", daemon=True).start()
    return await done
