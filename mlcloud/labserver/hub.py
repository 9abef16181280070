"""What the page follows: every known cluster, each by one WebSocket to its gateway, however many
pages look on.

    gateway ══ /v1/watch ══► Line ──► Board of that cluster ─┬─► page
                              └────► Board of all clusters ──┴─► page

Lines are kept while a page is there. One that is lost is tried again each second where only a file
is read, and after 1, 2 … 15 s elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException

from mlcloud.board import Board
from mlcloud.client.connection import Address
from mlcloud.config import Settings
from mlcloud.errors import ConnectionFailed
from mlcloud.labserver import places

log = logging.getLogger(__name__)

LOOK_S, LONGEST_S = 1.0, 15.0
FRAME_BYTES = 64 * 2**20
GLANCE = {"mlcloud-glance": "1"}  # looking on is no use of the cluster
LONGEST = 4000  # characters of what is said of a cluster


class Hub:
    """`known` has an item for each cluster; `boards` what is in it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ways = places.Ways(settings)
        self.known = Board()
        self.boards: dict[str, Board] = {}
        self._lines: dict[str, Line] = {}
        self._doing: dict[str, asyncio.Task[None]] = {}
        self._coming: set[str] = set()
        self.failed: dict[str, str] = {}  # why it did not come up or go down, until it does
        self._pages = 0
        self._finding: asyncio.Task[None] | None = None

    def enter(self) -> None:
        """A page is there."""
        self._pages += 1
        if self._finding is None:
            self._find()
            self._finding = asyncio.create_task(self._keep_finding())

    def leave(self) -> None:
        self._pages -= 1
        if not self._pages and self._finding is not None:
            self._finding.cancel()
            self._finding = None
            for line in self._lines.values():
                line.close()
            self._lines.clear()
            self._coming.clear()
            self.known.replace({})
            for board in self.boards.values():  # whoever comes next is shown nothing old
                board.replace({})

    def board(self, name: str) -> Board:
        return self.boards.setdefault(name, Board())

    def say(self, name: str, **facts: Any) -> None:
        """What is known of a cluster: `up`, `problem`, `doing`."""
        before = self.known.items.get(name)
        if before is not None:
            cut = {k: v[:LONGEST] if isinstance(v, str) else v for k, v in facts.items()}
            self.known.put({name: {**before, **cut}})

    def hasten(self, name: str) -> None:
        """It is there now, or gone: do not wait for the next look."""
        if name in self._lines:
            self._lines[name].wake.set()

    def act(self, name: str, what: Callable[..., None], doing: str) -> bool:
        """Bring a cluster up or take it down, told on `known`. False: it is in the middle of one.

        Two windows may press at once: the second is told of the first.
        """
        places.place(name, self.settings)
        return self._begin(name, what, doing)

    def act_anew(self, name: str, what: Callable[..., None], doing: str) -> bool:
        """The same for a cluster that nobody here need know yet. Where it fails before it is one,
        what went wrong stays on `known`, until `dismiss`."""
        if name not in self.known.items:
            self._coming.add(name)
            self.known.put({name: _item(name, "file")})
        return self._begin(name, what, doing)

    def dismiss(self, name: str) -> None:
        """What came of a file is read."""
        doing = self._doing.get(name)
        if name in self._coming and (doing is None or doing.done()):
            self._coming.discard(name)
            self.known.put({}, [name])

    def _begin(self, name: str, what: Callable[..., None], doing: str) -> bool:
        running = self._doing.get(name)
        if running is not None and not running.done():
            return False
        self._doing[name] = asyncio.create_task(self._act(name, what, doing))
        return True

    async def _act(self, name: str, what: Callable[..., None], doing: str) -> None:
        loop = asyncio.get_running_loop()
        self.failed.pop(name, None)
        self.say(name, doing=doing, problem="")

        def say(text: str) -> None:
            loop.call_soon_threadsafe(lambda: self.say(name, doing=f"{doing}: {text.strip()}"))

        try:
            await asyncio.to_thread(what, name, self.settings, say)
        except Exception as error:
            log.warning("%s %s: %s", name, doing, error)
            self.failed[name] = places.explained(error)
            self.say(name, doing="", problem=self.failed[name])
        else:
            self.say(name, doing="", problem="")
        self.hasten(name)

    async def _keep_finding(self) -> None:
        while True:
            await asyncio.sleep(2 * LOOK_S)
            self._find()

    def _find(self) -> None:
        """Clusters that were brought up meanwhile, and those that are gone."""
        there = {each.name: each for each in places.places(self.settings)}
        for name in [name for name in self._lines if name not in there]:
            self._lines.pop(name).close()
            self.board(name).replace({})
        for name, each in there.items():
            if name not in self._lines:
                coming = self.known.items.get(name) if name in self._coming else None
                self._coming.discard(name)
                self.known.put({name: {**(coming or _item(name, each.kind)), "kind": each.kind}})
                self._lines[name] = Line(self, each)
        stay = there.keys() | self._coming
        self.known.put({}, [name for name in self.known.items if name not in stay])


def _item(name: str, kind: places.Kind) -> dict[str, Any]:
    return {"name": name, "kind": kind, "up": False, "problem": "", "doing": ""}


class Line:
    """The way to one cluster's gateway, kept."""

    def __init__(self, hub: Hub, place: places.Place) -> None:
        self._hub = hub
        self._place = place
        self.wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        pause = LOOK_S
        while True:
            try:
                if self._place.kind == places.EMBEDDED:
                    address = self._place.look()
                else:
                    address = await asyncio.to_thread(self._place.look)
                if address is not None and await self._follow(address):
                    pause = LOOK_S
                problem = ""
            except asyncio.CancelledError:
                raise
            except Exception as error:
                problem = self._hub.failed.get(self._place.name) or _problem(error, self._place)
            self._hub.board(self._place.name).replace({})
            acting = (self._hub.known.items.get(self._place.name) or {}).get("doing")
            if acting or not problem:
                self._hub.say(self._place.name, up=False)
            else:
                self._hub.say(self._place.name, up=False, problem=problem)
            self.wake.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wake.wait(), pause)
                pause = LOOK_S
            if self._place.kind != places.EMBEDDED:
                pause = min(2 * pause, LONGEST_S)

    async def _follow(self, address: Address) -> bool:
        """Until it is lost; True if it had been reached. Raises what is wrong."""
        name, board = self._place.name, self._hub.board(self._place.name)
        url = f"ws{address.url.removeprefix('http')}/v1/watch"
        try:
            socket = await connect(
                url,
                additional_headers={**address.headers, **GLANCE},
                ssl=address.tls,
                max_size=FRAME_BYTES,
                proxy=None,
                open_timeout=10,
            )
        except ConnectionRefusedError:
            return False  # its file outlived it
        try:
            async for text in socket:
                frame = json.loads(text)
                if frame["whole"]:
                    board.replace(frame["set"])
                    self._hub.failed.pop(name, None)
                    self._hub.say(name, up=True, problem="")
                else:
                    board.put(frame["set"], frame["gone"])
        except WebSocketException:
            pass
        finally:
            await socket.close()
        return True


def _problem(error: Exception, place: places.Place) -> str:
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status in (401, 403):
            return (
                "its gateway does not take this server's token: it was renewed, or the cluster was "
                "made anew. "
                + (
                    "Set MLCLOUD_TOKEN and start Jupyter again"
                    if place.kind == "url"
                    else "It is tried again by itself"
                )
            )
        return f"its gateway answers {status}: it may be an older mlcloud, which cannot be watched"
    if isinstance(error, (OSError, InvalidHandshake, asyncio.TimeoutError)):
        error = ConnectionFailed(f"its gateway does not answer ({error or 'no answer in time'})")
    return places.explained(error)
