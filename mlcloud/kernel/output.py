"""All that one kernel shows, in order: printed text from two pipes, messages from the outlet.

    pipe stdout ─┐
    pipe stderr ─┼─► Output ─► on_text(request id, stream, text), on_message(message)
    outlet ──────┘

Text comes at once when little is printed, and in larger pieces the more there is of it, one each
`BUSY_S` at most. A message with number n was published where both pipes have the mark n
(`marks.py`): the text before it is taken first, the text after it waits for the message.

The kernel's end of a pipe holds `streams.PIPE_BYTES`: while `pause()`d, a cell that prints waits.
What a kernel wrote before it died is in its pipes still, and comes.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcloud.kernel import outlet
from mlcloud.kernel.marks import PARENT, SYNC, Mark, Splitter

NAMES = ("stdout", "stderr")
READ_BYTES = 2**18
HELD_BYTES = 2**20
LINE_S = 0.001  # how long an unfinished line waits for its end
QUIET_S = 0.002  # between two looks at the pipes, at first
BUSY_S = 0.02  # and at most, while there is something at each
LOST_S = 1.0  # a message that has not come by then (an interrupt hit its making) holds nothing up

OnText = Callable[[str, str, str], None]
OnMessage = Callable[[dict[str, Any]], None]


class Output:
    """Made before the kernel starts, so that its pipes exist; `read()` ends when the kernel has."""

    def __init__(self, folder: Path, nonce: bytes) -> None:
        self._pipes = [TextPipe(folder / name, name, nonce) for name in NAMES]
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._room.set()
        self._reading = False
        self._passed = 0
        self._gap = QUIET_S
        self._watched_at = 0.0
        self._line_until = 0.0  # the unfinished line is waited for
        self._timer: asyncio.TimerHandle | None = None
        self._held_since = 0.0

    async def read(
        self, reader: asyncio.StreamReader, on_text: OnText, on_message: OnMessage
    ) -> None:
        """Give everything to these two, in order, until the kernel has ended."""
        for pipe in self._pipes:
            pipe.on_text = on_text
        self._reading = True
        self._watch()
        try:
            while True:
                await self._room.wait()
                try:
                    number, frames = await outlet.read(reader)
                except asyncio.IncompleteReadError:
                    break
                if number > self._passed:
                    for pipe in self._pipes:
                        pipe.take_to(number)
                else:
                    self.look()  # what has been read so far was printed before
                on_message(outlet.parse(frames))
                self._pass(max(number, self._passed))
            for pipe in self._pipes:
                pipe.take_rest()
        finally:
            self.close()

    # --- when to look at the pipes ----------------------------------------------------------------

    def _watch(self) -> None:
        """Look at the pipes when there is something; nothing to do while we shall look anyway."""
        self._timer = None
        if self._reading and not self.paused:
            self._watched_at = time.monotonic()
            for pipe in self._pipes:
                if pipe.held < HELD_BYTES:
                    self._loop.add_reader(pipe.fd, self._readable)

    def _unwatch(self) -> None:
        for pipe in self._pipes:
            self._loop.remove_reader(pipe.fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _readable(self) -> None:
        self._unwatch()
        now = time.monotonic()
        quiet = now - self._watched_at > LINE_S
        self._gap = QUIET_S if quiet else min(2 * self._gap, BUSY_S)
        for pipe in self._pipes:
            pipe.fill()
        if quiet and any(pipe.ends_within_a_line for pipe in self._pipes):
            # `print(a, b)` writes its parts one by one, and we may be faster.
            self._line_until = self._line_until or now + LINE_S
            if now < self._line_until:
                self._timer = self._loop.call_later(LINE_S, self.look)
                for pipe in self._pipes:
                    self._loop.add_reader(pipe.fd, self._readable)
                return
        self.look()

    def look(self) -> None:
        """Give away what is in the pipes now."""
        if not self._reading:
            return
        self._unwatch()
        self._line_until = 0.0
        for pipe in self._pipes:
            pipe.fill()
            pipe.pass_on(self._passed)
        held = any(pipe.held for pipe in self._pipes)
        if not held:
            self._held_since = 0.0
        elif not self._held_since:
            self._held_since = time.monotonic()
        elif time.monotonic() - self._held_since > LOST_S:
            self._pass(max(self._passed, *(pipe.next_number for pipe in self._pipes)))
        if held:
            self._timer = self._loop.call_later(BUSY_S, self.look)
        else:
            self._timer = self._loop.call_later(self._gap, self._watch)

    def _pass(self, number: int) -> None:
        """The messages up to this number have been given away, or will never come."""
        self._passed = number
        self._held_since = 0.0
        for pipe in self._pipes:
            pipe.pass_on(number)

    @property
    def paused(self) -> bool:
        return not self._room.is_set()

    def pause(self) -> None:
        """Read no more for now: there is no room."""
        self._room.clear()
        self._unwatch()

    def resume(self) -> None:
        if self.paused:
            self._room.set()
            self.look()

    def close(self) -> None:
        if self._reading:
            self._unwatch()
        self._reading = False
        for pipe in self._pipes:
            pipe.close()


class TextPipe:
    """One stream's pipe: bytes in, `on_text(request id, name, text)` out."""

    on_text: OnText

    def __init__(self, path: Path, name: str, nonce: bytes) -> None:
        os.mkfifo(path, 0o600)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0  # bytes of text that were read and not given away
        self._name = name
        self._splitter = Splitter(nonce)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parent = ""
        self._waiting: deque[bytes | Mark] = deque()

    @property
    def ends_within_a_line(self) -> bool:
        """Whether what is held does."""
        for part in reversed(self._waiting):
            if isinstance(part, bytes):
                return part[-1:] not in (b"\n", b"\r")
        return False

    @property
    def next_number(self) -> int:
        """Of the message that what waits is waiting for."""
        first = self._waiting[0] if self._waiting else b""
        return int(first.value) if isinstance(first, Mark) and first.kind == SYNC else 0

    def fill(self, limit: int = HELD_BYTES) -> bool:
        """Read what is there, until about `limit` bytes are held. Whether there was anything."""
        found = False
        while self.held < limit:
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                break
            if not data:  # nobody has it open for writing any more
                break
            found = True
            for part in self._splitter.feed(data):
                self._waiting.append(part)
                self.held += len(part) if isinstance(part, bytes) else 0
        return found

    def pass_on(self, passed: int, upto: int = 0) -> bool:
        """Give away what was printed before the first message after number `passed`.

        With `upto`, before message `upto`; then it says whether that one's mark was met.
        """
        text: list[bytes] = []
        owner = self._parent
        met = False
        while self._waiting:
            part = self._waiting[0]
            if isinstance(part, bytes):
                if owner != self._parent:
                    self._give(owner, text, final=True)
                    owner = self._parent
                text.append(part)
                self.held -= len(part)
            elif part.kind == PARENT:
                self._parent = part.value
            elif part.kind == SYNC and int(part.value) > passed:
                number = int(part.value)
                met = bool(upto) and number >= upto
                if met or not upto:
                    break
            self._waiting.popleft()
        self._give(owner, text, final=owner != self._parent)
        return met

    def _give(self, owner: str, text: list[bytes], final: bool = False) -> None:
        decoded = self._decoder.decode(b"".join(text), final)
        text.clear()
        if decoded:
            self.on_text(owner, self._name, decoded)

    def take_to(self, number: int) -> None:
        """Give away all that was printed before message `number` was published.

        Its mark was written before the message was sent, so it is there to be read, unless
        somebody closed the pipe.
        """
        while not self.pass_on(0, upto=number):
            if not self.fill(self.held + READ_BYTES):
                return

    def take_rest(self) -> None:
        """The kernel has ended: all that is left."""
        while self.fill(self.held + READ_BYTES):
            self.pass_on(sys.maxsize)
        self.pass_on(sys.maxsize)
        self._give(self._parent, [], final=True)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
