"""Where a session lives: hosts brought up, taken over, moved between and given back.

    bring_up ─► take_over (restore the state, become the session's host) ─► release
                    ▲
    notice ─► bring_up_elsewhere ─► move_when_idle, or the cell that was cut short takes it

Part of `session.py`, which holds the state; each function works on one session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from mlcloud.cluster.clouds.local import LocalCloud
from mlcloud.cluster.notices.notice import LIFETIME, MAINTENANCE, REBALANCE, REBOOT, REDEPLOY
from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import HostRequest
from mlcloud.cost.ledger import Placement
from mlcloud.errors import Conflict, SessionFailed
from mlcloud.gateway import elastic, environments, gangs, restoring
from mlcloud.gateway.execution import Execution
from mlcloud.gateway.livehost import LiveHost
from mlcloud.models import SessionState
from mlcloud.units import parse_size

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

BRING_UP_TRIES = 5
ACTIVITY_S = 8.0
RAY_LEARNS_S = 30.0


async def bring_up(
    session: Session,
    avoid: str = "",
    node_type: str = "",
    request: HostRequest | None = None,
    *,
    quiet: bool = False,
) -> LiveHost:
    """A started host on some node. Its kernel is empty yet.

    `avoid`: not on this instance; `node_type`: on a node of this type and no larger one;
    `request`: for this, not for what the session asks for; `quiet`: nobody waits for it. Raises
    `NoSuchResources` where the specification has no such node any more.
    """
    with session.services.buying(request or session.host_request, session):
        return await _bring_up(session, avoid, node_type, request, quiet)


async def _bring_up(
    session: Session, avoid: str, node_type: str, request: HostRequest | None, quiet: bool
) -> LiveHost:
    session.services.cluster.require(request or session.host_request)
    if not session.services.cluster.up:
        session.status(f"starting the {session.services.cluster.name} cluster")
    hosts = await session.services.cluster.joined()
    # Not before: Ray reads at its first import which address a driver is to use.
    from ray.exceptions import RayError

    values = await session.services.vault.gather(session)
    for attempt in range(BRING_UP_TRIES):
        workers = await elastic.workers(session, avoid) if session.is_gang else None
        # In the table the epoch changes with take_over: until then a gateway that comes back must
        # find the present host, and sweeps the others away (`adoption.py`).
        session.epoch += 1
        gone = await asyncio.to_thread(gone_of_late, session.services.cluster.cloud)
        handle = hosts.create(
            f"{session.id}-{session.epoch}",
            request or session.host_request,
            memory_bytes=session.memory_bytes,
            arguments={
                "session_id": session.id,
                "store_url": session.services.store_url,
                "folder": str(session.services.ray_dir / "h"),
                "memory_bytes": session.memory_bytes,
                "output_limits": session.services.output_limits,
                "kernel_options": {
                    "keep_files": parse_size(session.request.keep_files or "0B"),
                    **session.services.snapshot_limits,
                    "snapshot_memory": session.services.snapshot_limits["snapshot_memory"]
                    or session.memory_bytes // 10,
                },
            },
            avoid={avoid, *gone, *session.services.leaving} - {""},
            node_type=node_type,
            runtime_env=environments.runtime_env(session),
            workers=workers,
        )
        if attempt == 0 and not quiet:
            own = session.request.environment
            nodes = gangs.asked(session) or "a node"
            installing = f" and installing {own.summary}" if own else ""
            session.status(f"asking for {nodes}{installing}")
        try:
            facts = await handle.start.remote(values)
        except asyncio.CancelledError:
            hosts.kill(handle)
            raise
        except RayError as error:
            # Placed on a node that died before Ray knew: the next try is placed elsewhere.
            log.info("host %s-%s did not start: %s", session.id, session.epoch, error)
            hosts.kill(handle)
            environments.raise_if_broken(session, error)
            last = error
            await asyncio.sleep(1.0)
            continue
        if not quiet:
            where = gangs.place_by(session, facts) or session.place_of(str(facts["instance"]))
            session.status(f"starting on {where}")
        return LiveHost(
            handle,
            session.epoch,
            facts,
            number=0,
            links=session.services.links,
            on_events=session.outcomes.on_events,
        )
    raise SessionFailed(f"no host could be started in {BRING_UP_TRIES} tries: {last}")


def gone_of_late(cloud: LocalCloud) -> list[str]:
    """Nodes that Ray may believe to be there still, and would wait for: a node's end takes it some
    seconds to find out. Blocks."""
    since = now() - timedelta(seconds=RAY_LEARNS_S)
    return [each.id for each in cloud.instances() if each.ended_at and each.ended_at > since]


async def bring_up_elsewhere(session: Session, host: LiveHost, deadline: datetime) -> LiveHost:
    # Drained first, so that Ray does not put the successor beside the one it replaces.
    assert session.services.cluster.hosts is not None
    with contextlib.suppress(Exception):  # a node that is gone cannot be drained, nor chosen
        await session.services.cluster.hosts.drain(str(host.facts["node_id"]), deadline)
    return await bring_up(session, avoid=host.instance)


async def tell_notice(session: Session, host: LiveHost, deadline: datetime | None) -> None:
    left = None if deadline is None else max(0.0, (deadline - now()).total_seconds())
    with contextlib.suppress(Exception):  # it may be gone already
        await host.call("notice", left)


def notice_text(place: str, kind: str, seconds: int) -> str:
    if kind == LIFETIME:
        return f"notice: {place} is as old as it may become and ends in {seconds} s"
    if kind in (REBOOT, REDEPLOY, MAINTENANCE):
        return f"notice: the cloud stops {place} for maintenance in {seconds} s"
    return f"notice: the cloud takes {place} back in {seconds} s"


def risk_text(place: str, kind: str) -> str:
    if kind == REBALANCE:
        return f"the cloud says that it may take {place} back before long: saving now"
    return f"the cloud will make {place} stand still for a moment: saving now"


async def save_now(session: Session, host: LiveHost) -> None:
    """Loops save at their next step; between cells, what was not in the store yet comes there."""
    with contextlib.suppress(Exception):  # it may be gone already
        await host.call("save_now")
    if session.current is None:
        async with session.turn:
            if session.host is host:
                await save_background(session)


async def move_when_idle(session: Session, old: LiveHost) -> None:
    """Switch to the successor between cells; a cell that is cut short does so by itself."""
    successor = session.successor
    assert successor is not None
    await asyncio.wait({successor})
    async with session.turn:
        if session.successor is not successor or successor.cancelled():
            return  # a cell that was cut short has taken it, or an interrupt has cancelled it
        session.successor = None
        if successor.exception() is not None:
            session.detail = str(successor.exception())
        elif session.host is old:
            if old.alive:
                await save_background(session)
                await session.until_safe()
            else:
                await host_lost(session, old)
            await take_over(session, successor.result())
        session.settle()


async def park_if_idle(session: Session) -> None:
    """No cell ran for `idle_timeout`: the node is given back, unless something else runs there.

    Then the session stays, says why, and keeps billing, visibly.
    """
    busy = ""
    if session.host is not None:
        busy = (await session.ask({"what": "activity"}, ACTIVITY_S)).get("busy", "")
    if busy:
        session.detail = f"not parked: {busy}"
        return
    session.detail = ""
    try:
        await session.park()
    except Conflict as error:
        session.detail = f"not parked: {error}"


async def save_background(session: Session) -> None:
    """Put into the store what ran beside the cells, if anything did. The caller has the turn."""
    host = session.host
    if host is None or not host.alive or session.current is not None:
        return
    if not (await session.ask({"what": "activity"}, ACTIVITY_S)).get("doubtful"):
        return
    await save(session, host)


async def save(session: Session, host: LiveHost) -> None:
    """Have the whole state put into the store. The caller has the turn, and no cell runs."""
    execution = Execution(
        f"save-{secrets.token_hex(8)}",
        session.id,
        "save",
        "",
        None,
        {},
        ordinal=session.ordinal + 1,
        first_event=session.journal.last,
    )
    session.services.executions.add(execution)
    session.ordinal = execution.ordinal
    session.known[execution.id] = session.current = execution
    try:
        await session.run_once(execution, host)
    finally:
        session.current = None
        session.settle()  # who asked for it may find that the session stays


async def lost_between_cells(session: Session, host: LiveHost) -> None:
    """A node that died without a notice while nothing ran: the next cell brings another."""
    async with session.turn:
        idle = session.current is None and session.successor is None
        if session.host is host and not host.alive and idle:
            await host_lost(session, host)
            session.set_state(SessionState.PARKED)


async def take_over(session: Session, host: LiveHost) -> None:
    """Restore the last snapshot into `host` and make it the session's."""
    moved = session.host is not None or session.state is SessionState.MOVING
    place_session(session, host)
    previous = session.host
    session.host = host
    session.leaving_ranks.clear()
    if moved:
        session.story("moved", f"moved to {session.place(host)}", node=host.instance)
    await restoring.restore(session, host)
    session.status(f"on {session.place(host)}", ready=True)
    if previous is not None:
        await release(session, previous, billing=False)
    for instance in dict.fromkeys(host.instances):
        leaving = session.services.leaving.get(instance)
        if leaving is not None:  # it had its notice while the session was on its way there
            session.on_notice(instance, leaving.deadline, leaving.kind)
    # With the shape that it was brought up on: a session may be given another one (`reshaping.py`).
    request = session.request.model_dump_json()
    session.save(epoch=host.epoch, host_number=host.number, request=request)


async def release(session: Session, host: LiveHost, *, billing: bool = True) -> None:
    host.lose("released")
    assert session.services.cluster.hosts is not None
    with contextlib.suppress(Exception):
        await asyncio.wait_for(host.handle.stop.remote(), 5)
    session.services.cluster.hosts.kill(host.handle)
    if billing:
        session.services.billing.close_placements(session.id)
    if session.host is host:
        session.host = None


def place_session(session: Session, host: LiveHost) -> None:
    session.services.billing.close_placements(session.id)
    for instance in host.instances:
        session.services.cluster.cloud.records.served(instance)
    session.services.billing.see(session.services.cluster.cloud.instances())
    for instance, count in Counter(host.instances).items():
        share = Decimal(str(round(min(1.0, session.host_request.share * count), 6)))
        session.services.billing.add(Placement(session.id, instance, share, now()))


async def host_lost(session: Session, host: LiveHost) -> None:
    why = host.lost.result()
    place = session.place(host)
    if why != elastic.LEFT:
        gone = f"{place} was {why}" if why == "preempted" else f"{place} is gone: {why}"
        session.story("lost", gone)
    session.services.billing.see(session.services.cluster.cloud.instances())
    session.services.billing.close_placements(session.id)
    assert session.services.cluster.hosts is not None
    session.services.cluster.hosts.kill(host.handle)
    session.host = None
    session.set_state(SessionState.MOVING)
