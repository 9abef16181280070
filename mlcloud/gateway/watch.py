"""The cluster as it changes: one WebSocket for who looks on, `GET /v1/watch`.

    memory ── looked at while somebody follows ──► Board ──► {whole, set: {key: item}, gone: [key]}
              keys: info · session/NAME · node/ID · budget/SESSION · jobs · job/ID

Looked at, and not told by each place that changes something: none can be forgotten, and it costs
nothing while nobody follows. A look is made five times a second, less often where it is long; what
changed in dollars alone, which is every moment, is told every two seconds. Reading counts as no
use: an idle gateway ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from mlcloud.board import Board
from mlcloud.cluster.records import now
from mlcloud.cluster_models import ClusterInfo

if TYPE_CHECKING:
    from mlcloud.gateway.core import Gateway

log = logging.getLogger(__name__)

EVERY_S = 0.2
SHARE = 0.05  # of the loop's time, at most
DOLLARS_S = 2.0
DAY_S = 60.0  # how often what was spent before today is summed
JOBS = 200  # the newest
LONGEST = 4000  # characters of a text: it is for looking on
MONEY = ("usd", "usd_today", "spent_usd")
LISTS = {"nodes", "sessions", "offers", "budgets", "attempts"}

Items = dict[str, dict[str, Any]]


class Watch:
    """Looks while somebody follows."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._board = Board()
        self._followers = 0
        self._looking: asyncio.Task[None] | None = None
        self._told: dict[str, float] = {}  # when an item's dollars were told
        self._before_today = Decimal(0)
        self._day_due = 0.0

    async def follow(self) -> AsyncGenerator[str, None]:
        """Frames as JSON, for ever."""
        self._followers += 1
        if self._looking is None:
            self._look(await self._read())
            self._looking = asyncio.create_task(self._run())
        try:
            async for frame in self._board.follow():
                yield json.dumps(frame.plain())
        finally:
            self._followers -= 1
            if not self._followers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _run(self) -> None:
        while True:
            began = time.perf_counter()
            try:
                self._look(await self._read())
            except Exception:
                log.exception("the cluster could not be looked at, it is tried again")
            await asyncio.sleep(max(EVERY_S, (time.perf_counter() - began) / SHARE))

    def _look(self, items: Items) -> None:
        at = time.monotonic()
        told: Items = {}
        for key, item in items.items():
            before = self._board.items.get(key)
            recent = at - self._told.get(key, 0.0) < DOLLARS_S
            if before == item or (
                before is not None and recent and _without(before) == _without(item)
            ):
                told[key] = before
            else:
                told[key] = item
                self._told[key] = at
        self._board.replace(told)

    async def _read(self) -> Items:
        info = self._gateway.cluster_info()
        if time.monotonic() >= self._day_due:
            self._day_due = time.monotonic() + DAY_S
            today = now().replace(hour=0, minute=0, second=0, microsecond=0)
            spend = await self._gateway.spend(today - timedelta(seconds=60), 86400)
            self._before_today = spend.usd_before_today
        cluster = _plain(info, exclude=LISTS)
        cluster["usd_today"] = str(max(Decimal(0), info.usd - self._before_today))
        items = {"info": cluster}
        items |= {f"session/{each.name}": _plain(each) for each in info.sessions}
        items |= {f"node/{each.id}": _plain(each) for each in info.nodes}
        items |= _budgets(info)
        jobs = sorted(self._gateway.jobs.infos(), key=lambda each: each.created_at)[-JOBS:]
        items |= {"jobs": {"there": True}, **{f"job/{each.id}": _plain(each) for each in jobs}}
        return items


def _budgets(info: ClusterInfo) -> Items:
    """By whose they are; those of sessions that are closed are left out."""
    there = {each.name for each in info.sessions}
    found: Items = {}
    for each in info.budgets:
        if each.session is not None and each.session not in there:
            continue
        whose = each.session or (each.user and f"user:{each.user}") or (each.job or "")
        key = f"budget/{whose}"
        found[key if key not in found else f"{key}/{each.limit}"] = _plain(each)
    return found


async def serve(socket: WebSocket, watch: Watch) -> None:
    """Send frames until whoever follows is gone."""
    sender = asyncio.create_task(_send(socket, watch))
    try:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
    except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError on a closed socket
        pass
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send(socket: WebSocket, watch: Watch) -> None:
    frames = watch.follow()
    try:
        async for frame in frames:
            await socket.send_text(frame)
    finally:
        await frames.aclose()


def _plain(model: BaseModel, exclude: set[str] | None = None) -> dict[str, Any]:
    found = model.model_dump(mode="json", exclude=exclude)
    return {key: _cut(value) for key, value in found.items()}


def _cut(value: Any) -> Any:
    return value if not isinstance(value, str) or len(value) <= LONGEST else f"{value[:LONGEST]} …"


def _without(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in MONEY}
