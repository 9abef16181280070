"""Gangs that go on with as many workers as there are, between a fewest and a most.

Each worker that may be there has a *seat*: a reservation for one in Ray, so that Ray brings its
node. A gang begins with the seats that are taken when it begins; those that are still free stay
asked for, while a cell runs.

    seats, `most` of them ─► all taken, or the fewest and nobody in `patience` ─► the gang
    a free seat is taken, and the gang has run for a while ─┐
    a notice to one of its nodes ───────────────────────────┴─► the ranks are told
        ─► they save after the same step and leave (`left`)
        ─► seats anew, none on the nodes that go ─► another gang

Ray's own elastic training counts nodes that are being drained as there, and starts anew for each
notice by itself: here no seat is on a node with a notice, and notices that come while a gang is
being made anew make it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Any

from mlcloud.gateway import hosting
from mlcloud.gateway.livehost import LiveHost
from mlcloud.models import SessionState

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

MAX_RUNS = 10_000  # a run ends with each change of size
LEFT = "its ranks have saved and left, to go on in another number"
LOOK_S = 0.1
FIRST_PATIENCE_S = 20.0  # nodes that start do not all start in the same time
PATIENCE_S = 1.5
GROW_AFTER_S = 20.0  # a gang that has just begun is left alone
GATHER_S = 5.0  # seats that are taken one after the other make it begin anew once
LEAVES_S = 600.0  # what the ranks are told; they leave at their next step


async def workers(session: Session, avoid: str = "") -> int:
    """How many the next gang is to have. Their seats are given up for it."""
    request = session.request
    if request.min_workers is None:
        return request.workers
    await session.seats.ask(request.workers, avoid)
    loop = asyncio.get_running_loop()
    again = session.current is not None and session.current.runs > 0
    patience = PATIENCE_S if again else FIRST_PATIENCE_S
    enough: float | None = None
    while True:
        taken = await session.seats.taken()
        if taken >= request.min_workers:
            enough = loop.time() if enough is None else enough
            if taken == request.workers or loop.time() > enough + patience:
                break
        await asyncio.sleep(LOOK_S)
    await session.seats.give_up(taken)
    if taken < request.workers:
        session.spawn(_grow(session))
    return taken


async def go_on_looking(session: Session) -> None:
    """For more workers of a gang that an earlier gateway made."""
    missing = session.request.workers - len(session.host.instances if session.host else ())
    if missing > 0:
        await session.seats.ask(missing, "")
        session.spawn(_grow(session))


def left(session: Session, host: LiveHost, content: dict[str, Any]) -> None:
    """The ranks have saved, and wait for their end."""
    if session.request.min_workers is not None and host is session.host and host.alive:
        session.story(
            "left",
            f"all ranks saved after step {content['step']} and go on in another number",
            step=content["step"],
        )
        host.lose(LEFT)
        session.spawn(hosting.lost_between_cells(session, host))


async def _grow(session: Session) -> None:
    """Watch the seats that are free; make the gang anew when some are taken."""
    loop = asyncio.get_running_loop()
    while session.host is None or not session.host.alive:  # it is on its way
        if session.over or session.current is None:
            await session.seats.give_back()
            return
        await asyncio.sleep(LOOK_S)
    host, began, first = session.host, loop.time(), None
    while session.host is host and host.alive and session.current is not None:
        await asyncio.sleep(LOOK_S * 5)
        taken = await session.seats.taken()
        if not taken:
            continue
        first = loop.time() if first is None else first
        gathered = taken == session.seats.count or loop.time() > first + GATHER_S
        if gathered and loop.time() > began + GROW_AFTER_S:
            more = f"{taken} more worker{'s' * (taken > 1)}"
            session.story("grows", f"there is room for {more}", workers=taken)
            session.set_state(SessionState.MOVING)
            with contextlib.suppress(Exception):  # it may be gone already
                await host.call("notice", LEAVES_S)
            return
    if session.host is host and session.current is None:  # they would bill for nothing
        await session.seats.give_back()


class Seats:
    """Of one session: single places, each reserved by itself."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names: list[str] = []

    @property
    def count(self) -> int:
        return len(self._names)

    async def ask(self, count: int, avoid: str) -> None:
        """So many, none on a node that goes away. Those that there were are given back."""
        await self.give_back()
        session = self._session
        services = session.services
        hosts = await services.cluster.joined()
        gone = await asyncio.to_thread(hosting.gone_of_late, services.cluster.cloud)
        away = {avoid, *gone, *services.leaving} - {""}
        for _ in range(count):
            name = f"{session.id}-seat-{secrets.token_hex(4)}"
            hosts.hold(name, session.host_request, session.memory_bytes, 1, away)
            self._names.append(name)

    async def taken(self) -> int:
        """How many Ray has found a place for."""
        if not self._names:
            return 0
        hosts = await self._session.services.cluster.joined()
        ready = await asyncio.to_thread(hosts.held, self._names)
        self._names.sort(key=lambda name: name not in ready)
        return len(ready)

    async def give_up(self, count: int) -> None:
        """The first of them: a gang takes these places."""
        mine, self._names = self._names[:count], self._names[count:]
        await self._let_go(mine)

    async def give_back(self) -> None:
        mine, self._names = self._names, []
        await self._let_go(mine)

    async def _let_go(self, names: list[str]) -> None:
        if names:
            hosts = await self._session.services.cluster.joined()
            for name in names:
                await asyncio.to_thread(hosts.let_go, name)
