"""A cluster's jobs beside its sessions, where its gateway has any.

`GET /v1/jobs` is read when a session has changed and while a job runs; a gateway that does not know
the route is not asked again.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from mlcloud.board import Board

EVERY_S = 2.0
OVER = {"done", "failed", "cancelled"}
GLANCE = {"mlcloud-glance": "1"}
LONGEST = 4000


class Jobs:
    """`kick()` after a change; `run` until cancelled."""

    def __init__(self, board: Board, http: httpx.AsyncClient) -> None:
        self._board = board
        self._http = http
        self._changed = asyncio.Event()

    def kick(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        while await self._read():
            running = any(
                key.startswith("job/") and item.get("state") not in OVER
                for key, item in self._board.items.items()
            )
            await asyncio.sleep(EVERY_S)
            if not running:
                await self._changed.wait()
            self._changed.clear()

    async def _read(self) -> bool:
        """False: this gateway has no jobs."""
        try:
            answer = await self._http.get("/v1/jobs", headers=GLANCE)
        except httpx.HTTPError:
            return True  # its WebSocket will say so
        if answer.status_code == 404:
            return False
        found = answer.json() if answer.is_success else None
        jobs = found.get("jobs", []) if isinstance(found, dict) else found
        if isinstance(jobs, list):
            items = {f"job/{each['id']}": _short(each) for each in jobs}
            before = [key for key in self._board.items if key.startswith("job/")]
            self._board.put({"jobs": True, **items}, [key for key in before if key not in items])
        return True


def _short(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value[:LONGEST] if isinstance(value, str) else value for key, value in job.items()}
