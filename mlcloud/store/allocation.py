"""Blocks for a file before it is written, on Linux.

ext4 takes a file's blocks page by page as it is written; asked for all of them at once it writes
1.5 to 4 times as fast (16 MiB files into the page cache, `benchmarks/disk.py`). A full disk says so
before anything is written. The file's size stays what was written: after a power loss a file that
was not synced must not look whole.

`os.posix_fallocate` would set the size, and write zeros where the filesystem cannot reserve.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable

LARGE_BYTES = 2**20
KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_FULL = {errno.ENOSPC, errno.EDQUOT}


def reserve(file: int, size: int) -> None:
    """Reserve `size` bytes for an open file. Raises OSError where there is no room for them.

    Where that cannot be done, or is not worth it, nothing happens.
    """
    if size < LARGE_BYTES:
        return
    call = _fallocate()
    if call is not None and call(file, KEEP_SIZE, 0, size) and ctypes.get_errno() in _FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if call is None:
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    found: Callable[[int, int, int, int], int] = call
    return found
