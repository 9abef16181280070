"""A session put on another node shape: what would fail is refused first, then parked and resumed.

    wanted ─► is it offered? idle? safe in the store? does the state fit? ── no ─► nothing changes
                │ yes
                ▼
    the node is given back ─► a node of the new shape ─► state restored ─► row and record say so
                                 │ none came, or the state does not come up there
                                 ▼
                        parked, with its state and its old shape

Part of `session.py`, which holds the state; each function works on one session.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlcloud.cluster.shapes import HostRequest
from mlcloud.errors import Conflict, SessionClosed, SessionFailed
from mlcloud.gateway import environments, hosting
from mlcloud.models import SessionRequest, SessionState
from mlcloud.units import format_bytes

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

# An interpreter and its libraries, and what unpacking takes beside the values.
BESIDE_STATE = 256 * 2**20
UNPACKING = 1.1
# Its supervisor looks twice a second whether a kernel keeps to its memory.
MEMORY_LOOK_S = 1.2
# Shorter than a client waits: whoever asked is told why. An environment is installed on the way.
BRING_UP_S = 540.0


@dataclass(frozen=True)
class Shape:
    """What a session asks for, resolved against what the cluster offers."""

    request: SessionRequest
    host_request: HostRequest
    memory_bytes: int

    @property
    def memory(self) -> int:
        """Bytes that a kernel has there: the session's limit, else the node's."""
        return self.memory_bytes or int(self.host_request.node_type.resources["memory"])

    def __str__(self) -> str:
        node = self.host_request.node_type.describe()
        return f"{node} with {format_bytes(self.memory)} of memory"


async def reshape(session: Session, shape: Shape) -> None:
    """Bring the session up on this shape, which is its own from then on.

    Raises `Conflict` while a cell runs, where names would be lost, or where its state is too large
    for the shape, all before anything is given back. Raises `SessionFailed` where it did not come
    up there: then it is parked, with its state and the shape that it had.
    """
    _refuse_busy(session)
    async with session.turn:
        _refuse_busy(session)  # a cell may have begun while this waited
        if session.host is not None and session.host.alive:
            await hosting.save_background(session)
            await session.until_safe()
        await _refuse_loss(session, shape)
        await _give_up_successor(session)
        if session.host is not None:
            session.set_state(SessionState.MOVING)
            await hosting.release(session, session.host)
        before = Shape(session.request, session.host_request, session.memory_bytes)
        _set(session, shape)
        try:
            await _bring_up(session)
        except BaseException as error:
            _set(session, before)
            await _park(session)
            if session.state is SessionState.CLOSED:
                raise SessionClosed(f"session {before.request.name!r} was closed") from error
            if not isinstance(error, Exception):
                raise
            why = str(error) or type(error).__name__
            raise SessionFailed(
                f"session {session.request.name!r} did not come up on {shape}: {why}. It is parked "
                f"with its state and its old shape ({before}), where the next cell brings it up"
            ) from error
        session.settle()
    await session.write_record()


def _refuse_busy(session: Session) -> None:
    name = session.request.name
    if session.state in (SessionState.CLOSED, SessionState.FAILED):
        raise SessionClosed(f"session {name!r} is {session.state.value}; start another one")
    if session.current is not None or session.queue:
        raise Conflict(
            f"session {name!r} is busy: interrupt its cell or wait for it, then resume the session "
            "on the other shape"
        )


async def _refuse_loss(session: Session, shape: Shape) -> None:
    """What is not in the store does not move, and what does not fit would never come up."""
    name, services = session.request.name, session.services
    newest = await asyncio.to_thread(services.snapshots.latest, session.id)
    step, body = (0, dict[str, Any]()) if newest is None else newest[:2]
    unsafe = services.executions.unsafe(session.id, after=step)
    alive = session.host is not None and session.host.alive
    if unsafe and alive:
        cells = ", ".join(each.label for each in unsafe)
        raise Conflict(
            f"session {name!r} stays where it is: what its cells {cells} made is not in the store "
            "yet; `%mlcloud state` tells when it is, then try again"
        )
    if session.unsaved and alive:
        names = "; ".join(f"{each}: {why}" for each, why in session.unsaved.items())
        raise Conflict(
            f"moving {name!r} to another shape would lose what cannot be saved yet ({names}); "
            "delete these names, or park with force=True and resume then"
        )
    made = sum(int(recipe.get("bytes", 0)) for recipe in body.get("recipes", {}).values())
    refused = too_large(int(body.get("bytes", 0)) + made, session.request, shape)
    if refused:
        raise Conflict(refused)


def too_large(held: int, present: SessionRequest, shape: Shape) -> str:
    """Why a state of `held` bytes, made on the present shape, would not come up; empty: it may."""
    needs = int(held * UNPACKING) + BESIDE_STATE
    # Where both shapes have a GPU the state may be in its memory, whose size offers do not tell.
    if not held or needs <= shape.memory or (present.gpu and shape.request.gpu):
        return ""
    return (
        f"session {present.name!r} holds {format_bytes(held)} and needs about "
        f"{format_bytes(needs)} of memory to come up; {shape} is too small for it: ask for more "
        "with memory= or another shape, or delete what it need not keep"
    )


async def _give_up_successor(session: Session) -> None:
    """Of a move that is under way: the session goes elsewhere now."""
    successor, session.successor = session.successor, None
    if successor is None:
        return
    successor.cancel()
    await asyncio.wait({successor})
    if not successor.cancelled() and successor.exception() is None:
        await hosting.release(session, successor.result(), billing=False)


def _set(session: Session, shape: Shape) -> None:
    session.request = shape.request
    session.host_request = shape.host_request
    session.memory_bytes = shape.memory_bytes


async def _bring_up(session: Session) -> None:
    limit = BRING_UP_S + (environments.SETUP_S if session.request.environment else 0)
    kind = session.host_request.node_type.name
    session.successor = asyncio.create_task(hosting.bring_up(session, node_type=kind))
    try:
        host = await asyncio.wait_for(session.ensure_host(), limit)
    except asyncio.TimeoutError:
        raise SessionFailed(f"no such node was up within {limit:.0f} s") from None
    if session.memory_bytes:
        await asyncio.sleep(MEMORY_LOOK_S)
    if host.deaths:
        raise SessionFailed(host.deaths[0])
    if not host.alive:
        raise SessionFailed(f"its node was lost while it came up ({host.lost.result()})")
    if session.not_restored:
        names = "; ".join(f"{name}: {why}" for name, why in sorted(session.not_restored.items()))
        raise SessionFailed(f"not all of its state can be restored there ({names})")


async def _park(session: Session) -> None:
    """What began to come up is given back; the table says what the session is again."""
    await _give_up_successor(session)
    if session.host is not None:
        await hosting.release(session, session.host)
    session.detail, session.to_record = "", True
    session.save(request=session.request.model_dump_json())
    session.set_state(SessionState.PARKED)
