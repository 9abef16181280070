"""Memory for what arrives: writable, private, and not filled with zeros before it is filled.

A value that comes back from pickle lies in this memory and owns it, so nothing is copied on the
way. It comes from the system page by page as it is filled, and goes back at once when the value is
gone. (Pages of 2 MiB looked like a gain and were none: on a virtual machine whose host backs such
memory late they took three times as long.)
"""

from __future__ import annotations

import mmap

LARGE = 2**20
_PRIVATE = getattr(mmap, "MAP_PRIVATE", None)
_ANONYMOUS = getattr(mmap, "MAP_ANONYMOUS", getattr(mmap, "MAP_ANON", None))


def fresh(size: int) -> memoryview:
    """Writable memory of `size` bytes; it goes back when the last view of it is gone."""
    if size < LARGE or _PRIVATE is None or _ANONYMOUS is None:
        return memoryview(bytearray(size))
    # Private: after a fork the child's writes are its own, as with any other memory.
    return memoryview(mmap.mmap(-1, size, flags=_PRIVATE | _ANONYMOUS))
