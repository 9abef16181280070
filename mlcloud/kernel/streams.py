"""stdout and stderr of the remote kernel: each is a pipe that the host reads (`output.py`).

    print ────────────────────────┐
    C, subprocesses (fd 1, fd 2) ─┴─► pipe ─► host

What is written has left the kernel when `write` returns: no thread of the kernel must run for it to
be seen, and a kernel that dies the next moment takes nothing of it along. All that writes to the
same stream shares one pipe, so a subprocess's lines stand where they were written, between the
prints. When the host does not read, the pipe is full and `print` waits, interruptibly, as it would
in a terminal.

`marks.py` says whose the text is: the cell that runs now, or for threads and tasks the one that
started them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import select
import sys
import termios
import threading
from pathlib import Path
from typing import Any, ClassVar

from ipykernel.iostream import OutStream
from jupyter_client.session import extract_header

from mlcloud.kernel.marks import PARENT, SYNC, mark

PIPE_BYTES = 2**20  # as much as Linux gives without privileges; what waits in the kernel is bounded
LINE_BUFFERED = 1  # _IOLBF in C


class PipedStream(OutStream):  # type: ignore[misc]  # ipykernel ships no complete types
    """ipykernel's stream, written to the pipe `<folder>/<name>` of the class's `folder`."""

    folder: ClassVar[Path]
    nonce: ClassVar[bytes]
    settle: ClassVar[Any]  # called without arguments: waits until what was published has left
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
        os.register_at_fork(after_in_child=self._renew_lock)
        more["echo"] = None  # it would come back through fd 1
        super().__init__(session, pub_thread, name, watchfd="force" if watchfd else False, **more)

    def _renew_lock(self) -> None:
        self._writing = threading.RLock()

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
        try:
            data = string.encode("utf-8", "replace")
        except AttributeError:
            what = type(string)
            raise TypeError(f"write() argument must be str, not {what}") from None
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        parent = self.parent_header.get("msg_id", "")
        self.settle()
        with self._writing:
            if parent != self._marked:
                self._put_for(parent, data)
            elif (written := os.write(self._pipe, data)) < len(data):
                self._put(data[written:])
        return len(string)

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
        """Nothing waits: what was written is in the pipe."""

    def set_parent(self, parent: dict[str, Any]) -> None:
        """What is printed from now on belongs to this request."""
        super().set_parent(parent)
        name = extract_header(parent).get("msg_id", "")
        with self._writing:
            self._put(self._mark(name))
            self._marked = name

    def sync(self, number: int) -> None:
        """The iopub message of this number is published here, between what was and will be
        printed."""
        with self._writing:
            self._put(mark(self.nonce, SYNC, str(number)))

    @property
    def is_unread(self) -> bool:
        """Whether the host has yet to read what is in the pipe, marks included."""
        count = ctypes.c_int()
        fcntl.ioctl(self._pipe, termios.FIONREAD, count)
        return count.value > 0

    def _mark(self, parent: str) -> bytes:
        return mark(self.nonce, PARENT, parent)

    def close(self) -> None:
        if self._should_watch:
            self._should_watch = False
            os.dup2(self._original_stdstream_copy, self._original_stdstream_fd)
            os.close(self._original_stdstream_copy)
        self.pub_thread = None


@functools.cache
def _c_stdout() -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    """C's own stdout and the library it is of; None where they cannot be found."""
    try:
        libc = ctypes.CDLL(None)
        name = "__stdoutp" if sys.platform == "darwin" else "stdout"
        return libc, ctypes.c_void_p.in_dll(libc, name)
    except (OSError, ValueError):
        return None


def line_buffer_c() -> None:
    """C holds back what goes to a pipe: from now on until the line's end, as in a terminal."""
    found = _c_stdout()
    if found is not None:
        found[0].setvbuf(found[1], None, LINE_BUFFERED, 0)


def flush_c() -> None:
    """What C holds of an unfinished line. Of this stream only: flushing all of them would wait for
    a C thread that reads from one."""
    found = _c_stdout()
    if found is not None:
        found[0].fflush(found[1])
