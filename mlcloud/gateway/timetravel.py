"""A session's past: the states it had after its cells, and going back to one of them.

    history ─► the snapshots in the store, with the cells that made them
    restore ─► a copy of that snapshot is committed as the newest one ─► an empty kernel loads it
    fork    ─► a copy of it is committed as another session's first one
    restart ─► an empty state is committed as the newest one ─► an empty kernel, which loads nothing

The copy comes first: whatever dies meanwhile, the session comes up in the state that was asked for.
What was given up is in the history still. A copy is a manifest: the chunks are the same. Old states
go in time (`retention`), but none that is being gone back to (`Session.past`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any

from mlcloud.errors import Conflict, Damaged, MLCloudError, NotFound
from mlcloud.gateway import restoring
from mlcloud.saved_models import Boundary, Rewound

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session
    from mlcloud.gateway.sessions import Sessions

MOST = 200  # states that one answer has


async def history(session: Session) -> list[Boundary]:
    """The newest states that can be gone back to, oldest first."""
    cells = {each.ordinal: each for each in session.services.executions.all_of(session.id)}
    found = []
    bodies = await asyncio.to_thread(session.services.snapshots.newest, session.id, MOST)
    for step, body in bodies:
        cell = cells.get(step)
        found.append(
            Boundary(
                step=step,
                code=cell.code if cell else "",
                finished_at=cell.finished_at if cell else None,
                restored_from=body.get("restored_from"),
                names=sorted(_names(body)),
                bytes=body.get("bytes", 0),
                new_bytes=body.get("new_bytes", 0),
                left_out=body.get("skipped", {}),
            )
        )
    return found


async def restore(session: Session, step: int) -> Rewound:
    """Put the session into the state it had after its cell numbered `step`.

    Raises `NotFound` where there is no such state, `Damaged` where it cannot be read, and
    `Conflict` while a cell runs.
    """
    if session.current is not None or session.queue:
        raise Conflict(
            f"session {session.request.name!r} is busy; interrupt the cell first, or wait for it"
        )
    async with session.turn, session.past:
        await session.until_safe()
        body = await _read(session, step)
        copy = {**body, "restored_from": step, "new_bytes": 0}
        if not await _begin_anew(session, copy, "restored"):
            raise Damaged(f"the state of step {step} is damaged, take another")
        return Rewound(step=session.ordinal, names=sorted(_names(body)))


async def restart(session: Session) -> Rewound:
    """A new kernel without any name, on the node that the session has. What runs is ended first.

    What was before is in the history. A session that is on no node begins so with its next cell.
    """
    await session.stop_cells()
    async with session.turn, session.past:
        await session.until_safe()
        if session.ordinal:
            session.unsaved = {}
            await _begin_anew(session, {restoring.EMPTY: True}, "restarted")
        return Rewound(step=session.ordinal, names=[])


async def _begin_anew(session: Session, body: dict[str, Any], why: str) -> bool:
    """Commit this as the newest state, and have an empty kernel load it. The caller has the turn.

    False where the kernel could not load it, and has an older one.
    """
    session.ordinal += 1
    await asyncio.to_thread(
        session.services.snapshots.commit,
        session.id,
        session.ordinal,
        f"{why}-{secrets.token_hex(8)}",
        body,
    )
    session.save(ordinal=session.ordinal)
    host, loaded = session.host, session.ordinal
    if host is not None and host.alive:
        session.unsafe.clear()
        try:
            await host.handle.start.remote()
            loaded = await restoring.restore_latest(session, host)
        except MLCloudError:
            raise
        except Exception as error:  # Ray's kinds of gone: another host loads it
            host.lose(f"it was gone before it could begin anew: {error}")
        else:
            with contextlib.suppress(Exception):  # a host that is gone is found to be so
                await host.call("settled")
    if host is not None and host.alive and loaded != session.ordinal:
        return False
    session.settle()
    return True


async def fork(sessions: Sessions, session: Session, name: str, step: int | None) -> Session:
    """Another session of that name, with the same resources, that begins with this one's state.

    `step` None: the newest state; while a cell runs, that is the one before it. Raises `Conflict`
    where the name is taken, `NotFound` and `Damaged` as `restore`.
    """
    if sessions.has(name):
        raise Conflict(f"there is a session {name!r} already; choose another name, or close it")
    if session.current is None:
        await session.until_safe()
    async with session.past:
        return await _fork(sessions, session, name, step)


async def _fork(sessions: Sessions, session: Session, name: str, step: int | None) -> Session:
    if step is not None:
        body: dict[str, Any] | None = await _read(session, step)
    else:
        newest = await asyncio.to_thread(session.services.snapshots.latest, session.id)
        step, body = (None, None) if newest is None else newest[:2]
    ancestors = [*session.request.ancestors, session.id]
    made = sessions.create(
        session.request.model_copy(update={"name": name, "ancestors": ancestors})
    )
    session.services.vault.copy(session.id, made.id)
    if body is None:
        return made
    copy = {**body, "restored_from": step, "new_bytes": 0}
    commit = session.services.snapshots.commit
    try:
        await asyncio.to_thread(commit, made.id, 0, f"forked-{secrets.token_hex(8)}", copy)
    except Exception:
        await sessions.close(name)
        raise
    return made


async def _read(session: Session, step: int) -> dict[str, Any]:
    try:
        return await asyncio.to_thread(session.services.snapshots.read, session.id, step)
    except NotFound:
        raise NotFound(
            f"session {session.request.name!r} has no state of step {step}: `history()` lists them "
            "(cells that follow each other at once may be saved together; --durable waits for each)"
        ) from None
    except Damaged as error:
        raise Damaged(f"the state of step {step} is damaged, take another: {error}") from error


def _names(body: dict[str, Any]) -> set[str]:
    groups = {name for group in body.get("groups", []) for name in group["names"]}
    return groups | {entry["name"] for entry in body.get("imports", []) if "name" in entry}
