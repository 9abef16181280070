"""Pieces on their way: a few connections at once, and on where it was after one broke.

On a slow link one connection moves one piece after the other: what breaks off is never more than
one piece. More are opened when the first piece was fast.

    run() ─┬─ lane ─► one piece after the other, straight from (or into) the memory it belongs to
    waits, ├─ lane        └─ a piece whose connection broke goes back into the queue
    shows  └─ lane
           all lanes ended, pieces left? ─► wait, find the gateway again, ask what is there, go on

The notebook's thread only waits, so an interrupt is answered at once: the lanes' sockets are shut.
What had arrived whole stays where it arrived; a piece is never half there.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mlcloud.client.connection import Connection
from mlcloud.client.progress import Progress
from mlcloud.errors import ConnectionFailed
from mlcloud.units import format_bytes

LANES = 4
FAST_S = 0.5  # a piece that took longer had the whole link: more lanes would only break off more
ATTEMPTS = 6  # in a row, that moved nothing
STEP_BYTES = 2**20  # between two looks at whether to stop
TICK_S = 0.1
END_S = 0.5


class Piece(NamedTuple):
    """A chunk's name, and the memory that it lies in or comes into."""

    digest: str
    memory: memoryview


Count = Callable[[int], None]  # tells bytes moved; raises when the transfer was stopped


class Transfer(ABC):
    """Moves pieces in one direction.

    `what` and `hint` are for the error when it gives up: what broke off, and what to do then.
    """

    what: str
    hint: str

    def __init__(self, connection: Connection, pieces: Iterable[Piece], progress: Progress) -> None:
        self.connection = connection
        self._left = deque(pieces)
        self._progress = progress
        self._total = sum(len(piece.memory) for piece in self._left)
        self._moved = 0  # bytes of whole pieces
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._stopped = False
        self._news = threading.Event()  # a piece was fast, or a lane ended
        self._fast = False
        self._lost: Exception | None = None
        self._refused: Exception | None = None

    @abstractmethod
    def move(self, lane: http.client.HTTPConnection, piece: Piece, count: Count) -> None:
        """Move one piece. Raises OSError or HTTPException when the connection broke."""

    def remaining(self, pieces: list[Piece]) -> list[Piece]:
        """Which of these, whose fate is unknown, must still be moved."""
        return pieces

    def run(self) -> None:
        """Move them all. Raises `ConnectionFailed` when attempts got no further, and at once what
        the gateway refused."""
        failures = 0
        while self._left:
            before = self._moved
            self._round()
            if self._refused is not None:
                raise self._refused
            if self._left:
                failures = self._reconnect(0 if self._moved > before else failures)

    def _reconnect(self, failures: int) -> int:
        """Find the gateway again; returns how many attempts in a row have moved nothing."""
        while True:
            failures += 1
            if failures >= ATTEMPTS:
                raise ConnectionFailed(
                    f"{self.what} broke off at {format_bytes(self._moved)} of "
                    f"{format_bytes(self._total)}, and {ATTEMPTS} attempts got no further "
                    f"({self._lost}). {self.hint}"
                ) from self._lost
            self._progress.note("connection lost, going on where it was")
            time.sleep(min(0.1 * 2**failures, 3.0))
            try:
                self.connection.reopen()
                self._left = deque(self.remaining(list(self._left)))
                return failures
            except ConnectionFailed as error:
                self._lost = error

    # --- the lanes --------------------------------------------------------------------------------

    def _round(self) -> None:
        """Let lanes work until nothing is left or all of them broke."""
        lanes: list[threading.Thread] = []
        try:
            while True:
                most = LANES if self._fast else 1
                while len(lanes) < most and (self._left or not lanes):
                    lanes.append(self._lane(len(lanes)))
                    lanes[-1].start()
                if not any(lane.is_alive() for lane in lanes):
                    return
                self._news.wait(TICK_S)
                self._news.clear()
                self._progress.show()
        except BaseException:
            self._stop(lanes)
            raise

    def _lane(self, number: int) -> threading.Thread:
        return threading.Thread(target=self._work, name=f"mlcloud-lane-{number}", daemon=True)

    def _stop(self, lanes: list[threading.Thread]) -> None:
        self._stopped = True
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError, AttributeError):  # it has no socket (any more)
                    each.sock.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + END_S
        for lane in lanes:
            if lane.ident is not None:
                lane.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        try:
            with self.connection.lane() as lane:
                self._open.add(lane)
                try:
                    while not self._stopped and self._refused is None:
                        try:
                            piece = self._left.popleft()
                        except IndexError:
                            return
                        self._move(lane, piece)
                finally:
                    with self._lock:
                        self._open.discard(lane)
        except (OSError, http.client.HTTPException) as error:
            self._lost = error
        except Exception as error:  # for the thread that waits to raise
            self._refused = error
        finally:
            self._news.set()

    def _move(self, lane: http.client.HTTPConnection, piece: Piece) -> None:
        counted = 0
        began = time.monotonic()

        def count(size: int) -> None:
            nonlocal counted
            if self._stopped:
                raise ConnectionAbortedError("stopped")
            counted += size
            self._progress.add(size)

        try:
            self.move(lane, piece, count)
        except BaseException:
            self._progress.add(-counted)
            self._left.appendleft(piece)
            raise
        with self._lock:
            self._moved += len(piece.memory)
        if not self._fast and time.monotonic() - began < FAST_S:
            self._fast = True
            self._news.set()
