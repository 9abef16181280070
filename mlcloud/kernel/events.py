"""The events of a host, until the gateway has them in its journal.

    add ─► fresh ─► read(after) ─► kept until acknowledged by the next `after`

One long poll is outstanding at any time. It returns at once with what there is; while the gateway
writes that batch to its journal the next one gathers, so batches grow with the load, and when there
is always something, a poll is answered each `BUSY_S` only. What has not been read yet is put
together: text of the same stream becomes one event, an update of a display replaces the one before
it, and what `clear_output` takes away is never sent.

An event is `(number, execution id, kind, blob)`: kind is the Jupyter message type, or one of ours;
blob is msgpack of `{type, content, metadata, buffers, time}`, packed once here and unpacked only by
who reads it. Numbers grow and may have gaps.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

LIMIT = 32 * 2**20  # bytes that may wait before `full`
JOINED_BYTES = 2**18  # of text in one event
BUSY_S = 0.05
FIRST_GAP_S = 0.005
SOON_S = 0.015  # after an answer: then there is more to come, and no hurry
SHOWN = {"stream", "display_data", "execute_result", "update_display_data"}
CLEARED = {*SHOWN, "clear_output"} - {"update_display_data"}  # that may be of another cell
UNHURRIED = {*SHOWN, "clear_output", "mlcloud_omitted", "mlcloud_event"}

Event = tuple[int, str, str, bytes]


@dataclass
class Fresh:
    """An event that nobody has read yet: packed, or the pieces of a stream's text."""

    execution_id: str
    kind: str
    size: int
    blob: bytes = b""
    stream: str = ""
    texts: list[str] = field(default_factory=list)
    display_id: str | None = None
    time: float = 0.0

    def packed(self) -> bytes:
        if self.blob:
            return self.blob
        content = {"name": self.stream, "text": "".join(self.texts)}
        return _packed({"type": "stream", "content": content, "time": self.time})


class Signal:
    """An event that is waited for with a time limit, without a task for each wait."""

    def __init__(self) -> None:
        self.is_set = False
        self._waiting: set[asyncio.Future[None]] = set()

    def set(self) -> None:
        self.is_set = True
        for waiting in self._waiting:
            _wake(waiting)

    def clear(self) -> None:
        self.is_set = False

    async def wait(self, timeout: float) -> None:
        """Until it is set, or the time is over."""
        if self.is_set:
            return
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._waiting.add(waiting)
        timer = loop.call_later(timeout, _wake, waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.discard(waiting)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Events:
    """See the module."""

    def __init__(self) -> None:
        self.last = 0  # the last number given
        self._fresh: list[Fresh] = []
        self._kept: deque[Event] = deque()
        self._bytes = 0
        self._new = Signal()
        self._urgent = Signal()
        self._gap = 0.0
        self._answered = 0.0

    @property
    def full(self) -> bool:
        """Whether to wait before adding more."""
        return self._bytes >= LIMIT

    # --- in ---------------------------------------------------------------------------------------

    def text(self, execution_id: str, stream: str, text: str) -> None:
        """Printed text."""
        last = self._fresh[-1] if self._fresh else None
        if (
            last is not None
            and (last.execution_id, last.stream) == (execution_id, stream)
            and last.size < JOINED_BYTES
        ):
            last.texts.append(text)
            last.size += len(text)
            self._bytes += len(text)
            return
        self._drop_cleared(execution_id)
        event = Fresh(execution_id, "stream", len(text), stream=stream, time=time.time())
        event.texts.append(text)
        self._append(event)

    def add(self, execution_id: str, kind: str, body: dict[str, Any], *, wake: bool = True) -> None:
        """Anything else. `wake` False: another event follows at once, and both travel together."""
        blob = _packed({**body, "time": time.time()})
        event = Fresh(execution_id, kind, len(blob), blob)
        if kind == "update_display_data":
            event.display_id = (body["content"].get("transient") or {}).get("display_id")
            self._drop(
                lambda older: (
                    older.kind == kind
                    and (older.execution_id, older.display_id) == (execution_id, event.display_id)
                ),
                len(self._fresh),
            )
        if kind in SHOWN - {"update_display_data"}:  # which sets off no clearing that waits
            self._drop_cleared(execution_id)
        self._append(event, wake=wake)

    def _append(self, event: Fresh, *, wake: bool = True) -> None:
        self._fresh.append(event)
        self._bytes += event.size
        if wake:
            self._new.set()
            if event.kind not in UNHURRIED:
                self._urgent.set()

    def _drop_cleared(self, execution_id: str) -> None:
        """What was shown before a `clear_output` that takes effect now.

        Not what came before a comm message: that may have begun or ended an Output widget's
        capture, and the clearing is the widget's or the cell's, but not both's.
        """
        for at in reversed(range(len(self._fresh))):
            if self._fresh[at].execution_id != execution_id:
                continue
            if self._fresh[at].kind == "clear_output":
                since = at
                while since and not self._fresh[since - 1].kind.startswith("comm_"):
                    since -= 1
                self._drop(
                    lambda older: older.execution_id == execution_id and older.kind in CLEARED,
                    at,
                    since,
                )
            return

    def _drop(self, which: Callable[[Fresh], bool], before: int, since: int = 0) -> None:
        old = self._fresh[since:before]
        dropped = [event for event in old if which(event)]
        if dropped:
            self._bytes -= sum(event.size for event in dropped)
            self._fresh[since:before] = [event for event in old if not which(event)]

    # --- out --------------------------------------------------------------------------------------

    async def read(self, after: int, wait_s: float) -> list[Event]:
        """What came after number `after`, as soon as there is any; forgets what came before."""
        while self._kept and self._kept[0][0] <= after:
            self._bytes -= len(self._kept.popleft()[3])
        if not self._kept:
            await self._gather(wait_s)
        self.number()
        self._answered = time.monotonic()
        return list(self._kept)

    def number(self) -> int:
        """Number what is there, as if it were read now. Returns the last number."""
        for event in self._fresh:
            blob = event.packed()
            self.last += 1
            self._kept.append((self.last, event.execution_id, event.kind, blob))
            self._bytes += len(blob) - event.size
        self._fresh = []
        self._new.clear()
        self._urgent.clear()
        return self.last

    async def _gather(self, wait_s: float) -> None:
        if not self._new.is_set:
            await self._new.wait(wait_s)
        since = time.monotonic() - self._answered
        if since > SOON_S:
            self._gap = 0.0
            return
        self._gap = min(max(FIRST_GAP_S, 2 * self._gap), BUSY_S)
        if self._gap > since:
            await self._urgent.wait(self._gap - since)


def _packed(body: dict[str, Any]) -> bytes:
    blob: bytes = msgpack.packb(body, default=str)
    return blob
