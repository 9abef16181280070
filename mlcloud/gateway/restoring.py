"""Bringing a session's state back into an empty kernel.

    newest committed snapshot, signature checked ─► the kernel loads its chunks, hashes checked
          │ damaged: the one before it, and the user is told
          └─► what had finished after it, but was not safe, runs again

Part of `session.py`, which holds the state; each function works on one session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import msgpack

from mlcloud.errors import SessionFailed
from mlcloud.gateway import mounting
from mlcloud.gateway.livehost import LiveHost
from mlcloud.gateway.rerun import refusal
from mlcloud.gateway.snapshots import cannot_survive
from mlcloud.models import ExecutionState

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

EMPTY = "empty"  # a state without anything: its session was restarted


async def restore(session: Session, host: LiveHost) -> None:
    step = await restore_latest(session, host)
    await replay(session, host, after=step)
    with contextlib.suppress(Exception):  # a host that is gone is found to be so
        await host.call("settled")


async def replay(session: Session, host: LiveHost, *, after: int) -> None:
    """Run again what had finished, but whose state was not in the store when the host died."""
    for execution in session.services.executions.unsafe(session.id, after=after):
        if session.current is not None and execution.ordinal >= session.current.ordinal:
            return
        what = f"the state of cell {execution.label} was lost before it was in the store"
        refused = await refusal(session, execution, what)
        if refused is not None:
            session.story("not_restored", str(refused))
            execution.state = ExecutionState.FAILED
            session.unsafe.discard(execution.id)
            session.services.executions.save(execution)
            continue
        session.story("rerun", "an earlier cell runs again: its state was not in the store yet")
        session.known[execution.id] = execution
        ended = host.expect(execution.id)
        await session.submit(host, execution)
        waiting: set[asyncio.Future[Any]] = {ended, host.lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            return


async def restore_latest(session: Session, host: LiveHost) -> int:
    """Load the newest snapshot that can be read; its step, 0 if there is none."""
    session.not_restored = {}
    await mounting.prepare(session, host)
    before: int | None = None
    while True:
        latest = await asyncio.to_thread(session.services.snapshots.latest, session.id, before)
        if latest is None:
            return 0
        step, body, passed = latest
        for text in passed:
            session.story("fell_back", text)
        if body.get(EMPTY):
            return step
        content = await load_snapshot(session, host, step, body)
        if content is None:
            return step  # lost again: the caller's next look at the host finds out
        if content.get("status") == "ok":
            break
        why = f"{content.get('ename')}: {content.get('evalue')}"
        if content.get("ename") != "Damaged":
            raise SessionFailed(f"the state after cell {step} could not be restored: {why}")
        session.story("fell_back", f"the state after cell {step} is damaged, going back: {why}")
        before = step
    names = sum(len(group["names"]) for group in body.get("groups", []))
    if names:
        plural = "" if names == 1 else "s"
        session.story("restored", f"{names} name{plural} restored from the store", step=step)
    rebuilt: dict[str, list[int]] = content.get("rebuilt") or {}
    if rebuilt:
        steps = sorted({step for cells in rebuilt.values() for step in cells})
        cells = ", ".join(session.services.executions.labels(session.id, steps))
        text = f"{', '.join(sorted(rebuilt))} made again by running what made it (cells {cells})"
        session.story("rebuilt", text, cells=rebuilt)
    session.unsaved = cannot_survive(body)
    missing: dict[str, str] = content.get("missing") or {}
    session.not_restored = {n: why for n, why in missing.items() if n not in session.unsaved}
    if missing:
        lost = "; ".join(f"{name}: {why}" for name, why in sorted(missing.items()))
        session.story("not_restored", f"not restored: {lost}", why=missing)
    return step


async def load_snapshot(
    session: Session, host: LiveHost, step: int, body: dict[str, Any]
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
    elsewhere = await asyncio.to_thread(session.is_elsewhere)
    session.services.traffic.restored(session.id, body, elsewhere=elsewhere)
    ended = host.expect(execution_id)
    try:
        await host.call("submit", request, "", execution_id)
    except Exception as error:  # Ray's kinds of gone
        host.lose(f"it died before it could be used: {error}")
    waiting: set[asyncio.Future[Any]] = {ended, host.lost}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    return ended.result() if ended.done() else None


async def revive(session: Session, host: LiveHost) -> None:
    """A new kernel in the same host, with the state before the cell that killed the old one."""
    try:
        await host.handle.start.remote()
        await restore(session, host)
    except Exception as error:  # Ray's own errors among them
        log.info("the kernel could not be revived: %s", error)
        host.lose(f"its kernel did not come back: {error}")
