"""The names of bytes: blake3 of pieces of 16 MiB, and of a whole the hash of its pieces' hashes.

    bytes ─► chunk_digests ─► (d0, d1, …) ─┬─► what is sent, skipped and verified, piece by piece
                                           └─► whole(d0, d1, …), the name of it all

So one pass over the memory gives both: whether a value changed, and which pieces of it the other
side lacks. What is no longer than a piece has one, and its name is its plain blake3.

Large memory is hashed on several threads (blake3 lets the interpreter go). `Known` remembers what
was hashed, or verified while it arrived, so that no memory is hashed twice in one look at it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blake3 import blake3

#: The same as the store's: a piece here is a chunk there.
CHUNK_BYTES = 16 * 2**20
#: Bytes from which threads are worth their start.
PARALLEL_BYTES = 2 * CHUNK_BYTES
THREADS = min(8, os.cpu_count() or 1)
#: Keeps the name of a long value apart from that of a short one that happens to be a list of names.
_CONTEXT = "mlcloud chunks of a value, 2026"

Bytes = bytes | bytearray | memoryview
Chunks = tuple[str, ...]


def pieces(data: Bytes) -> Iterator[memoryview]:
    """Views of the pieces; of nothing, one empty piece."""
    view = flat(data)
    for start in range(0, max(1, view.nbytes), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def chunk_digests(parts: Sequence[Bytes]) -> list[Chunks]:
    """For each part, the blake3 of each of its pieces."""
    split = [list(pieces(part)) for part in parts]
    every = [piece for part in split for piece in part]
    if len(every) > 1 and sum(piece.nbytes for piece in every) >= PARALLEL_BYTES:
        # Made for this one call: a pool that lives on would not survive the user's fork.
        with ThreadPoolExecutor(THREADS, thread_name_prefix="mlcloud-hash") as pool:
            found = iter(list(pool.map(_digest, every)))
    else:
        found = map(_digest, every)
    return [tuple(next(found) for _ in part) for part in split]


def whole(chunks: Sequence[str]) -> str:
    """The name of what consists of these pieces."""
    if len(chunks) == 1:
        return chunks[0]
    joined = bytes.fromhex("".join(chunks))
    return blake3(joined, derive_key_context=_CONTEXT).hexdigest()


def flat(data: Bytes) -> memoryview:
    """The bytes as one row (a view with a zero in its shape cannot be cast)."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _digest(piece: memoryview) -> str:
    return blake3(piece).hexdigest()


class Known:
    """Memory whose pieces' names are known, by its place.

    It holds the memory: as long as this lives, nothing else can come to lie there.
    """

    def __init__(self) -> None:
        self._chunks: dict[tuple[int, int], Chunks] = {}
        self._held: list[Any] = []

    def add(self, data: Bytes, chunks: Chunks) -> None:
        place = _place(data)
        if place is not None and chunks:
            self._chunks[place] = chunks
            self._held.append(data)

    def chunk_digests(self, parts: Sequence[Bytes]) -> list[Chunks]:
        """As the function of this name, without hashing what is known."""
        found = [self._chunks.get(_place(part) or (0, 0)) for part in parts]
        rest = [part for part, chunks in zip(parts, found, strict=True) if chunks is None]
        hashed = iter(chunk_digests(rest))
        result = [next(hashed) if chunks is None else chunks for chunks in found]
        for part, chunks in zip(parts, result, strict=True):
            self.add(part, chunks)
        return result


def _place(data: Bytes) -> tuple[int, int] | None:
    """Address and size of memory that is worth remembering."""
    numpy = sys.modules.get("numpy")
    view = memoryview(data)
    if numpy is None or view.nbytes < 2**16:
        return None
    return numpy.frombuffer(flat(view), numpy.uint8).__array_interface__["data"][0], view.nbytes
