"""Memory for what arrives: writable, private, and not zeroed before it is filled.

A value that comes back from pickle lies in this memory and owns it, so nothing is copied on the
way. Fresh memory costs more than copying into it: the system hands it out page by page. Pages of
2 MiB, where the system has them, make that a third.
"""

from __future__ import annotations

import contextlib
import mmap

LARGE = 4 * 2**20
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_PRIVATE = getattr(mmap, "MAP_PRIVATE", None)
_ANONYMOUS = getattr(mmap, "MAP_ANONYMOUS", getattr(mmap, "MAP_ANON", None))


def fresh(size: int) -> memoryview:
    """Writable memory of `size` bytes; it goes back when the last view of it is gone."""
    if size < LARGE or _PRIVATE is None or _ANONYMOUS is None:
        return memoryview(bytearray(size))
    # Private: after a fork the child's writes are its own, as with any other memory.
    memory = mmap.mmap(-1, size, flags=_PRIVATE | _ANONYMOUS)
    if _HUGE is not None:
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(_HUGE)
    return memoryview(memory)
