"""A host in use: the Ray actor, what is known of it, and the pump that reads its events.

The pump is one long poll after another. It ends when the host is lost: because Ray says the actor
died, because its node ended (`lose()` is called by who saw that first), or because nothing was
heard for `SILENCE_S`.

Calls go over the host's link (`links.py`) while there is one, else over Ray, which alone knows
whether a host that does not answer is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from mlcloud.gateway.lease import Lapsed
from mlcloud.gateway.links import HostError, Link, LinkLost, Links

log = logging.getLogger(__name__)

DIAL_AGAIN_S = 30.0
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
        links: Links,
        on_events: Callable[[LiveHost, Events], None],
    ) -> None:
        self.handle = handle
        self.epoch = epoch
        self.facts = facts
        self.number = number
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.finished: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.deaths: list[str] = []  # of its kernels between cells, and why
        self._on_events = on_events
        self._links = links
        self._link = Link()
        self._dialling: asyncio.Task[None] | None = None
        self._dial_at = 0.0
        self._pump = asyncio.create_task(self._run())

    @property
    def instance(self) -> str:
        return str(self.facts["instance"])

    @property
    def instances(self) -> list[str]:
        """The nodes that it is on, by rank: one, unless it is a gang's."""
        ranks = self.facts.get("ranks") or [self.facts]
        return [str(each["instance"]) for each in ranks]

    def node_on(self, instance: str) -> str:
        """Ray's id of a node that it is on."""
        ranks = self.facts.get("ranks") or [self.facts]
        return next(str(each["node_id"]) for each in ranks if each["instance"] == instance)

    @property
    def alive(self) -> bool:
        return not self.lost.done()

    def lose(self, why: str) -> None:
        """Nothing more is expected of this host. The first reason counts."""
        if not self.lost.done():
            self.lost.set_result(why)
        self._pump.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        self._link.close()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the host's. If the link breaks meanwhile, the host may be called twice.

        Raises what Ray raises, or `HostError`.
        """
        if self._link.open:
            with contextlib.suppress(LinkLost):
                return await self._link.call(method, *arguments)
            self._keep_link()
        return await getattr(self.handle, method).remote(*arguments)

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
            self._keep_link()
            try:
                events: Events = await self.call("events", self.number)
            except ActorDiedError as error:
                self.lose(_first_line(error))
                return
            except (RayError, HostError) as error:
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
            except Lapsed:
                await asyncio.sleep(RETRY_S)  # the host keeps them until this head has looked
            except Exception:
                # Most likely the journal's disk is full. The host keeps the events; we try again.
                log.exception("a batch of events could not be journaled; trying again")
                await asyncio.sleep(2.0)

    def _keep_link(self) -> None:
        idle = self._dialling is None or self._dialling.done()
        if idle and self.alive and not self._link.open and time.monotonic() >= self._dial_at:
            self._dial_at = time.monotonic() + DIAL_AGAIN_S
            self._dialling = asyncio.create_task(self._dial())

    async def _dial(self) -> None:
        """Have the host open a link. Where it cannot, or is gone, Ray's calls go on."""
        url, token, link = self._links.offer()
        try:
            refused = await self.handle.dial.remote(url, token)
        except Exception as error:  # Ray's kinds of gone
            refused = str(error)
        finally:
            self._links.withdraw(url)
        if refused:
            log.info("no link with the host on %s: %s", self.instance, refused)
        else:
            self._link = link
            self._dial_at = 0.0


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
