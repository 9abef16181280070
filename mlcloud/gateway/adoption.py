"""A gateway that comes back: what an earlier one started is found, and finished.

    take_up()   unfinished executions from the table, before anything new can be asked
    adopt()     the host by its name, the pump from where the journal ends, then the running cell:
                still running, ended meanwhile, or never begun and so run again

Part of `session.py`, which holds the state; each function works on one session.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mlcloud.gateway import elastic, hosting, secrets
from mlcloud.gateway.execution import Execution
from mlcloud.gateway.hosting import BRING_UP_TRIES
from mlcloud.gateway.livehost import LiveHost
from mlcloud.models import ExecutionState, SessionState

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

LEFTOVERS = 2 * BRING_UP_TRIES
STILL_TOLD_S = 3.0


def take_up(session: Session) -> None:
    """What an earlier gateway left unfinished goes before all that is asked from now on."""
    unfinished = session.services.executions.unfinished(session.id)
    session.known.update({execution.id: execution for execution in unfinished})
    session.current = next((e for e in unfinished if e.state is ExecutionState.RUNNING), None)
    unsafe = session.services.executions.unsafe(session.id, after=0)
    session.known.update({execution.id: execution for execution in unsafe})
    session.unsafe.update(execution.id for execution in unsafe)
    session.queue.extend(e for e in unfinished if e is not session.current)


async def adopt(session: Session, host_number: int) -> None:
    """Find the host that an earlier gateway started, and finish what it was doing."""
    async with session.turn:
        try:
            await adopt_host(session, host_number)
            if session.host is None:
                session.services.billing.close_placements(session.id)
                if session.current is not None:
                    session.outcomes.close_span(session.current, lost=True)
                    session.set_state(SessionState.MOVING)
                    session.story("lost", "the node went away while there was no gateway")
            else:
                for instance in dict.fromkeys(session.host.instances):
                    node = session.services.cluster.cloud.get(instance)
                    if node.notice is not None:  # given to the gateway that is gone
                        session.on_notice(node.id, node.notice.deadline, node.notice.kind)
                    if not node.alive:  # it ended while it was being asked: nobody was told of it
                        session.on_node_end(node.id, node.reason)
            if session.current is not None:
                if session.host is not None and session.request.min_workers is not None:
                    await elastic.go_on_looking(session)
                underway = await is_underway(session, session.current)
                if not underway and session.current.state is ExecutionState.RUNNING:
                    what = "the node went away while there was no gateway"
                    await session.settle_cut_short(session.current, what)
                await session.run_to_end(session.current, underway=underway)
        finally:
            session.current = None
        session.settle()
    if session.unsafe:
        session.spawn(save_what_was_left(session))


async def save_what_was_left(session: Session) -> None:
    """A state was on its way to the store when the gateway died: it had been told of it, and had
    not committed it. It is put there once more, unless its kernel still tells of it."""
    await asyncio.sleep(STILL_TOLD_S)
    async with session.turn:
        host = session.host
        if session.unsafe and host is not None and host.alive and session.current is None:
            await hosting.save(session, host)
            session.settle()


async def adopt_host(session: Session, host_number: int) -> None:
    hosts = await session.services.cluster.joined()
    for ahead in range(1, LEFTOVERS + 1):  # successors that nobody took over
        leftover = hosts.find(f"{session.id}-{session.epoch + ahead}", gang=session.is_gang)
        if leftover is not None:
            hosts.kill(leftover)
    if session.is_gang:
        for kind in ("seat", "hold"):
            await asyncio.to_thread(hosts.sweep, f"{session.id}-{kind}-")
    if not session.epoch:
        return
    handle = hosts.find(f"{session.id}-{session.epoch}", gang=session.is_gang)
    if handle is None:
        return
    try:
        status = await asyncio.wait_for(handle.status.remote(), 15)
    except Exception as error:  # Ray's kinds of dead
        log.info("host %s-%s is gone: %s", session.id, session.epoch, error)
        return
    if not status["alive"] or not status["settled"]:  # or its state was still on its way
        hosts.kill(handle)
        return
    session.host = LiveHost(
        handle,
        session.epoch,
        status,
        number=host_number,
        links=session.services.links,
        on_events=session.outcomes.on_events,
    )
    if session.request.secrets:
        await secrets.recall(session, session.host)
    if status["question"] is not None and status["running"]:
        session.questions.asked(status["running"], status["question"])


async def is_underway(session: Session, execution: Execution) -> bool:
    """Whether the adopted host has the execution, running or ended."""
    host = session.host
    if host is None:
        return False
    ended = host.expect(execution.id)
    asked = asyncio.ensure_future(host.handle.status.remote())
    await asyncio.wait({asked, host.lost}, return_when=asyncio.FIRST_COMPLETED)
    if not asked.done() or asked.exception() is not None:
        return False
    status = asked.result()
    while host.alive and host.number < status["last"] and not execution.ended:
        await asyncio.sleep(0.05)
    if execution.ended or status["running"] == execution.id:
        return True
    host.finished.pop(execution.id, None)
    return ended.done()
