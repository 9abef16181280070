"""stdout and stderr of the remote kernel: each is a pipe that the host reads (`output.py`).

    print ────────────────────────┐
    C, subprocesses (fd 1, fd 2) ─┴─► pipe ─► host

What is written has left the kernel when `write` returns: no thread of the kernel must run for it to
be seen, and a kernel that dies the next moment takes nothing of it along. All that writes to the
same stream shares one pipe, so a subprocess's lines stand where they were written, between the
prints. When the host does not read, the pipe is full and `print` waits, interruptibly, as it would
in a terminal.

In a burst the pieces of a line (`print(a, b)` writes four) are held until the line ends, for
`HOLD_S` at most: one call of the operating system for a line. What is printed after a pause, or
flushed, leaves at once.

`marks.py` says whose the text is: the cell that runs now, or for threads and tasks the one that
started them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

from ipykernel.iostream import OutStream
from jupyter_client.session import extract_header

from mlcloud.kernel.marks import PARENT, SYNC, mark
from mlcloud.kernel.outlet import Outlet

PIPE_BYTES = 2**20  # as much as Linux gives without privileges; what waits in the kernel is bounded
BURST_S = 0.0005  # what follows the last write sooner than this is a burst
HOLD_S = 0.001
QUIET_S = 0.02
MOST_PIECES, MOST_LONG = 16, 64  # all of it fits into select.PIPE_BUF, also as UTF-8


class PipedStream(OutStream):  # type: ignore[misc]  # ipykernel ships no complete types
    """ipykernel's stream, written to the pipe `<folder>/<name>` of the class's `folder`."""

    folder: ClassVar[Path]
    nonce: ClassVar[bytes]
    outlet: ClassVar[Outlet]
    other: PipedStream | None = None  # of stdout and stderr
    pub_thread: Any

    def __init__(
        self, session: Any, pub_thread: Any, name: str, *, watchfd: Any = True, **more: Any
    ) -> None:
        # Blocking, and opened at once: the host has had the other end open since before we began.
        self._pipe = os.open(self.folder / name, os.O_WRONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._marked = ""
        self._writing = threading.RLock()
        self._marked_header: dict[str, Any] = {}
        more["echo"] = None  # it would come back through fd 1
        self._held: deque[str] = deque()
        self._wrote_at = 0.0
        self._bursting = False  # whether the I/O thread lets go of what is held
        self._holds = True
        os.register_at_fork(before=self.flush, after_in_child=self._forked)
        super().__init__(session, pub_thread, name, watchfd="force" if watchfd else False, **more)
        self.write = self._quick_write()  # type: ignore[assignment, method-assign]

    def _forked(self) -> None:
        """In a child there is no I/O thread."""
        self._writing = threading.RLock()
        self._held.clear()
        self._holds = self._bursting = False

    def _setup_stream_redirects(self, name: str) -> None:
        """Called by ipykernel: what subprocesses and C code write goes into the same pipe."""
        self._original_stdstream_fd = getattr(sys, name).fileno()
        self._original_stdstream_copy = os.dup(self._original_stdstream_fd)
        os.dup2(self._pipe, self._original_stdstream_fd)
        self._should_watch = True

    def fileno(self) -> int:
        """fd 1 or 2: `subprocess.run(…, stdout=sys.stdout)` is shown in the cell."""
        fd: int = self._original_stdstream_fd if self._should_watch else self._pipe
        return fd

    def write(self, string: str) -> int:
        return self._write(string)  # each stream has one of its own: `_quick_write`

    def _quick_write(self) -> Callable[[str], int]:
        """`write` for most pieces of a burst: four run a line, so nothing more than it needs."""
        stream, held, header_of = self, self._held, self._parent_header.get

        def write(string: str) -> int:
            if (
                stream._bursting
                and string.__class__ is str
                and string[-1:] != "\n"
                and header_of(None) is stream._marked_header
                and len(held) < MOST_PIECES
                and len(string) < MOST_LONG
                and (held or monotonic() - stream._wrote_at < BURST_S)
            ):
                held.append(string)
                return len(string)
            return stream._write(string)

        return write

    def _write(self, string: str) -> int:
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        header = self.parent_header
        with self._writing:
            outlet = self.outlet
            if outlet.sent != outlet.last:
                outlet.settle()
            if header is not self._marked_header:
                if (parent := header.get("msg_id", "")) != self._marked:
                    self._out("")
                    self._put_for(parent, string.encode("utf-8", "replace"))
                    return len(string)
                self._marked_header = header
            self._out(string)
        return len(string)

    def _out(self, string: str) -> None:
        """To the pipe, after what was held."""
        if self._held:
            string = self._taken() + string
        other = self.other
        if other is not None and other._held:
            other._try_release()
        if not string:
            return
        data = string.encode("utf-8", "replace")
        if (written := os.write(self._pipe, data)) < len(data):
            self._put(data[written:])
        now = monotonic()
        if not self._bursting and now - self._wrote_at < BURST_S:
            self._release_soon()
        self._wrote_at = now

    def _taken(self) -> str:
        """What is held, and held no more. Others may add to it meanwhile."""
        count = len(self._held)
        return "".join([self._held.popleft() for _ in range(count)])

    def _release_soon(self) -> None:
        """A burst has begun: have the I/O thread let go of what is held, while it lasts."""
        if self._holds and self.pub_thread.thread.is_alive():
            self._bursting = True
            self.pub_thread.schedule(lambda: self._io_loop.call_later(HOLD_S, self._release))

    def _release(self) -> None:
        """In the I/O thread."""
        if not self._held and monotonic() - self._wrote_at > QUIET_S:
            self._bursting = False
        if self._held:  # or just now, by who still saw us there
            self._try_release()
            self._bursting = True
        if self._bursting:
            self._io_loop.call_later(HOLD_S, self._release)

    def _try_release(self) -> None:
        """Write what is held, if that is possible at once: nobody waits for the host here."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            if self._held and select.select([], [self._pipe], [], 0)[1]:
                self._put(self._taken().encode("utf-8", "replace"))
                self._wrote_at = monotonic()
        finally:
            self._writing.release()

    def _put_for(self, parent: str, data: bytes) -> None:
        """Text of a thread or task that an earlier cell started."""
        start, back = self._mark(parent), self._mark(self._marked)
        if len(start) + len(data) + len(back) <= select.PIPE_BUF:
            self._put(start + data + back)
            return
        self._put(start)
        try:
            self._put(data)
        finally:
            self._put(back)

    def _put(self, data: bytes) -> None:
        while data:  # more than PIPE_BUF bytes may be taken in parts
            data = data[os.write(self._pipe, data) :]

    def flush(self) -> None:
        """What is held of a line leaves; the rest is in the pipe."""
        if self._held and self.pub_thread is not None:
            with self._writing:
                self._out("")

    def set_parent(self, parent: dict[str, Any]) -> None:
        """What is printed from now on belongs to this request."""
        super().set_parent(parent)
        name = extract_header(parent).get("msg_id", "")
        with self._writing:
            self.flush()
            self._put(self._mark(name))
            self._marked, self._marked_header = name, self.parent_header

    def sync(self, number: int) -> None:
        """The iopub message of this number is published here, between what was and will be
        printed."""
        with self._writing:
            self.flush()
            self._put(mark(self.nonce, SYNC, str(number)))

    @property
    def is_unread(self) -> bool:
        """Whether the host has yet to read what was printed, marks included."""
        self.flush()
        count = ctypes.c_int()
        fcntl.ioctl(self._pipe, termios.FIONREAD, count)
        return count.value > 0

    def _mark(self, parent: str) -> bytes:
        return mark(self.nonce, PARENT, parent)

    def close(self) -> None:
        self.flush()
        if self._should_watch:
            self._should_watch = False
            os.dup2(self._original_stdstream_copy, self._original_stdstream_fd)
            os.close(self._original_stdstream_copy)
        self.pub_thread = None
