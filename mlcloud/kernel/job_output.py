"""What the items of a job's worker print, by item: Python, C code and subprocesses.

    print ─► Printing.write ─► what is in the pipes, then its own text ─┐
    C, subprocesses ─► fd 1, fd 2 ─► pipes ─► drained ──────────────────┴─► pieces ─► take() ─► told

All that one item writes keeps its order: before a `print`, and at the item's end, the pipes are
read empty in the thread that prints; a thread reads them meanwhile, so that they never fill up.
Values of the job's secrets are taken out where a piece is told; what may be a value's beginning
waits for the rest, up to `HOLD_S`.
"""

from __future__ import annotations

import codecs
import faulthandler
import io
import os
import select
import sys
import threading
import time
from typing import Any

from mlcloud.kernel.c_stdio import flush_c, line_buffer_c
from mlcloud.values.secrets import Secrets

LOG_BYTES = 1_000_000  # of one item
PIECE_CHARS = 8_000
HOLD_S = 3.0
READ = 2**16
MOST_READS = 16  # at once: a child may write without an end
NO_ITEM = -1  # threads that go on between two

Piece = list[Any]  # item, stream, text


class Output:
    """Of one worker."""

    def __init__(self) -> None:
        self.secrets = Secrets()
        self._lock = threading.RLock()
        self._item = NO_ITEM
        self._sizes: dict[int, int] = {}
        self._pieces: list[Piece] = []
        self._held: dict[tuple[int, str], tuple[str, float]] = {}  # beginnings, and since when
        self._pipes: list[_Pipe] = []

    def redirect(self) -> None:
        """From now on, this process's stdout and stderr are the items'."""
        kept = os.dup(2)
        os.set_inheritable(kept, False)
        faulthandler.enable(file=kept)  # a crash is told where Ray looks for it
        sys.stdout.flush()
        sys.stderr.flush()
        self._pipes = [_Pipe("stdout", 1), _Pipe("stderr", 2)]
        line_buffer_c()
        sys.stdout, sys.stderr = Printing(self, "stdout", 1), Printing(self, "stderr", 2)
        threading.Thread(target=self._read, name="mlcloud-output", daemon=True).start()

    def _read(self) -> None:
        while True:
            select.select([each.end for each in self._pipes], [], [])
            self.drain()

    def drain(self) -> None:
        """What C code and subprocesses have written so far."""
        with self._lock:
            for pipe in self._pipes:
                if text := pipe.read():
                    self._add(pipe.name, text)

    def add(self, stream: str, text: str) -> None:
        """After all that was written before it."""
        with self._lock:
            self.drain()
            self._add(stream, text)

    def _add(self, stream: str, text: str) -> None:
        item = self._item
        size = self._sizes.get(item, 0)
        if size > LOG_BYTES:
            return
        self._sizes[item] = size + len(text)
        if size + len(text) > LOG_BYTES:
            text += f"\n… more than {LOG_BYTES:,} characters were printed: the rest is left out\n"
        last = self._pieces[-1] if self._pieces else None
        if last and last[:2] == [item, stream] and len(last[2]) < PIECE_CHARS:
            last[2] += text
        else:
            self._pieces.append([item, stream, text])

    # --- items ------------------------------------------------------------------------------------

    def begin(self, item: int) -> None:
        with self._lock:
            self._item = item

    def end(self) -> None:
        """All that the item has written is there."""
        flush_c()
        with self._lock:
            self.drain()
            self._sizes.pop(self._item, None)
            self._item = NO_ITEM

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def take(self) -> list[Piece]:
        """What can be told, oldest first."""
        with self._lock:
            pieces, self._pieces = self._pieces, []
            return self._masked(pieces) if self.secrets else pieces

    def _masked(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces of one stream of an item are one text: a value may be cut by their ends."""
        told: list[Piece] = []
        texts: dict[tuple[int, str], str] = {}
        for item, stream, text in pieces:
            texts[item, stream] = texts.get((item, stream), "") + text
        for (item, stream), text in texts.items():
            masked = self.secrets.mask(text)
            begun = self.secrets.begun(masked) if item == self._item else 0
            beginning = masked[len(masked) - begun :]
            before, since = self._held.pop((item, stream), ("", 0.0))
            if before != beginning:
                since = time.monotonic()
            if begun and time.monotonic() - since < HOLD_S:
                self._held[item, stream] = (beginning, since)
                self._pieces.append([item, stream, beginning])
                masked = masked[: len(masked) - begun]
            if masked:
                told.append([item, stream, masked])
        return told


class _Pipe:
    """In the place of a file descriptor; `end` is the one to read from."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.end, write = os.pipe()
        os.set_blocking(self.end, False)
        os.dup2(write, fd)  # inherited by subprocesses
        os.close(write)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self) -> str:
        found = ""
        for _ in range(MOST_READS):
            try:
                data = os.read(self.end, READ)
            except BlockingIOError:
                break
            found += self._decoder.decode(data)
            if len(data) < READ:
                break
        return found


class Printing(io.TextIOBase):
    """`sys.stdout` of the items."""

    encoding = "utf-8"

    def __init__(self, output: Output, name: str, fd: int) -> None:
        self._output, self._name, self._fd = output, name, fd
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        if text:
            if os.getpid() == self._pid:
                self._output.add(self._name, str(text))
            else:  # a child that was forked
                os.write(self._fd, str(text).encode("utf-8", "replace"))
        return len(text)

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False
