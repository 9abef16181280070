"""A host in use: the Ray actor, what is known of it, and the pump that reads its events.

The pump is one long poll after another. It ends when the host is lost: because Ray says the actor
died, because its node ended (`lose()` is called by who saw that first), or because nothing was
heard for `SILENCE_S`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

SILENCE_S = 30.0
RETRY_S = 0.25

Events = list[tuple[int, str, str, bytes]]


class LiveHost:
    """`number` is the last of the host's events that was handled; `on_events` handles a batch."""

    def __init__(
        self,
        handle: Any,
        epoch: int,
        facts: dict[str, Any],
        *,
        number: int,
        on_events: Callable[[LiveHost, Events], None],
    ) -> None:
        self.handle = handle
        self.epoch = epoch
        self.facts = facts
        self.number = number
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.finished: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._on_events = on_events
        self._pump = asyncio.create_task(self._run())

    @property
    def instance(self) -> str:
        return str(self.facts["instance"])

    @property
    def alive(self) -> bool:
        return not self.lost.done()

    def lose(self, why: str) -> None:
        """Nothing more is expected of this host. The first reason counts."""
        if not self.lost.done():
            self.lost.set_result(why)
        self._pump.cancel()

    def expect(self, execution_id: str) -> asyncio.Future[dict[str, Any]]:
        """A future of the execution's end: the content of its `finished` or `kernel_died` event."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.finished[execution_id] = future
        return future

    def resolve(self, execution_id: str, content: dict[str, Any]) -> None:
        future = self.finished.pop(execution_id, None)
        if future is not None and not future.done():
            future.set_result(content)

    async def _run(self) -> None:
        from ray.exceptions import ActorDiedError, RayError

        heard = time.monotonic()
        while True:
            try:
                events: Events = await self.handle.events.remote(self.number)
            except ActorDiedError as error:
                self.lose(_first_line(error))
                return
            except RayError as error:
                # Unavailable is not dead: the link may come back, and the host keeps its events.
                if time.monotonic() - heard > SILENCE_S:
                    self.lose(f"not heard of for {SILENCE_S:.0f} s: {_first_line(error)}")
                    return
                await asyncio.sleep(RETRY_S)
                continue
            heard = time.monotonic()
            try:
                new = [event for event in events if event[0] > self.number]
                if new:
                    self._on_events(self, new)
                    self.number = new[-1][0]
                    await asyncio.sleep(0)  # who follows the journal comes first
            except Exception:
                # Most likely the journal's disk is full. The host keeps the events; we try again.
                log.exception("a batch of events could not be journaled; trying again")
                await asyncio.sleep(2.0)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
