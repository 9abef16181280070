"""C's own stdout: what it holds back, let out."""

from __future__ import annotations

import ctypes
import functools
import sys

LINE_BUFFERED = 1  # _IOLBF in C


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
