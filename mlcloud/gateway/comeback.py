"""Back to spot: a session that had to be put on an on-demand node returns when spot is to be had.

    every `LOOK_S`: a session that asked for spot, on an on-demand node for `spot_return`
        └─ some spot offer of its shape is not cooling down ─► ask for a host on a spot-only node
               ├─ had within `PATIENCE_S` ─► between two cells: restore there, release the old
               └─ not had ─► tried again later, at twice the interval, an hour at most

The session works on meanwhile, on the node that it has. Nothing is bought but by the provider, so a
try that finds no capacity costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from mlcloud.cluster import attempts
from mlcloud.cluster.offers import Shape, key_of
from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import HostRequest
from mlcloud.errors import MLCloudError
from mlcloud.gateway import hosting

if TYPE_CHECKING:
    from mlcloud.gateway.livehost import LiveHost
    from mlcloud.gateway.session import Session
    from mlcloud.gateway.sessions import Sessions

log = logging.getLogger(__name__)
LOOK_S = 2.0
PATIENCE_S = 300.0
LONGEST = timedelta(hours=1)


@dataclass
class _Wait:
    """One session on one on-demand node."""

    instance: str
    at: datetime
    after: timedelta
    trying: bool = False


class Comeback:
    """Of all sessions of a gateway. `after` 0: never."""

    def __init__(self, sessions: Sessions, after: timedelta) -> None:
        self._sessions = sessions
        self._after = after
        self._waits: dict[str, _Wait] = {}

    async def run(self) -> None:
        while self._after:
            await asyncio.sleep(LOOK_S)
            for session in list(self._sessions):
                try:
                    self._look(session)
                except MLCloudError as error:
                    log.warning("session %s cannot return to spot: %s", session.id, error)

    def _look(self, session: Session) -> None:
        host = session.host
        if host is None or not host.alive or session.successor is not None or session.over:
            return
        if session.is_gang:  # all of it would move for one node's sake
            return
        cloud = session.services.cluster.cloud
        offer = cloud.get(host.instance).offer
        if session.request.market != "spot" or offer.market == "spot":
            self._waits.pop(session.id, None)
            return
        wait = self._waits.get(session.id)
        if wait is None or wait.instance != host.instance:
            wait = self._waits[session.id] = _Wait(host.instance, now() + self._after, self._after)
        if wait.trying or now() < wait.at:
            return
        request = self._sessions.request_of(session.request, "spot-only")
        if self._spot_may_be_had(session, request):
            wait.trying = True
            session.spawn(self._try(session, host, wait, request))

    def _spot_may_be_had(self, session: Session, request: HostRequest) -> bool:
        cluster = session.services.cluster
        offers = cluster.cloud.offers()
        cooling = attempts.cooling(cluster.attempts.recent(), offers)
        shape = Shape(**request.node_type.node_config["shape"])
        return any(
            each.market == "spot"
            and each.dominates(shape)
            and (each.accelerator is None) == (shape.accelerator is None)
            and not (key_of(each) in cooling and now() < cooling[key_of(each)].until)
            for each in offers
        )

    async def _try(
        self, session: Session, old: LiveHost, wait: _Wait, request: HostRequest
    ) -> None:
        try:
            bringing = hosting.bring_up(session, old.instance, request=request, quiet=True)
            new = await asyncio.wait_for(bringing, PATIENCE_S)
        except (asyncio.TimeoutError, MLCloudError) as error:
            log.info("no spot node for %s: %s", session.id, error or "none in time")
            wait.after = min(wait.after * 2, LONGEST)
            wait.at, wait.trying = now() + wait.after, False
            return
        async with session.turn:
            if session.host is not old or not old.alive or session.successor is not None:
                await hosting.release(session, new, billing=False)  # it has moved meanwhile
                return
            await hosting.save_background(session)
            await session.until_safe()
            session.story("spot", "spot is to be had again", node=new.instance)
            await hosting.take_over(session, new)
            session.settle()
