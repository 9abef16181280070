"""Writing past the page cache, on Linux, where the buffer and the filesystem allow it.

Written as usual, a file is copied into the page cache first: pages must be found, and the copy
takes as long as hashing does. Of 512 MiB that were written beside a training, that was 0.2 to 1.4 s
of a core; past the cache it is 0.03 s (`benchmarks/disk.py`). What was written so is read from the
disk again when somebody wants it on this machine, so it is for what nobody is about to read.
"""

from __future__ import annotations

import ctypes
import errno
import os

BLOCK = 4096
LEAST_BYTES = 2**20
FLAG = getattr(os, "O_DIRECT", 0)
_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}


def write(file: int, data: memoryview) -> int:
    """Write what can be so to an open file; returns how many bytes, 0 where it cannot be."""
    size = data.nbytes // BLOCK * BLOCK
    if not FLAG or data.nbytes < LEAST_BYTES or not _is_aligned(data):
        return 0
    import fcntl

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    done = 0
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | FLAG)
        while done < size:
            done += os.write(file, data[done:size])
            if done % BLOCK:  # cut short in a block: the rest as usual
                break
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)
    return done


def _is_aligned(data: memoryview) -> bool:
    if data.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % BLOCK == 0
