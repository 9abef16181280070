"""Envelopes between kernel and wire: what is small travels along, what is large goes by the store.

    Inbox     store ─► memory ─► unpickled in place: each chunk verified as it is read
    send()    pickle's buffers ─► store, and their chunks' names into the answer

The other end is `client/objects.py`; both name a blob's chunks by `objects`: blob digest →
`hash:size` in order. What goes through here is put into the store without waiting for the disk: a
power loss ends the cell that waits for it too, and a snapshot puts again whatever it names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from mlcloud.errors import Damaged
from mlcloud.store import ChunkRef, Store, chunks_of
from mlcloud.units import format_bytes
from mlcloud.values.digests import pieces, whole
from mlcloud.values.memory import fresh
from mlcloud.values.messages import Blob, Group, Return

INLINE_BYTES = 64 * 1024
AFTER_S = 0.5
EVERY_S = 0.5

Tell = Callable[[str, bool], None]  # a line for the user that replaces the last; is it over


class Meter:
    """Tells how far a transfer is, from half a second on; a quick one tells nothing.

    `now` is what happens ("the session reads …"), `then` what is so when it is over.
    """

    def __init__(self, now: str, then: str, total: int, tell: Tell | None) -> None:
        self._now, self._then, self._total, self._tell = now, then, total, tell
        self._done = 0
        self._next = time.monotonic() + AFTER_S
        self._told = False

    def add(self, size: int) -> None:
        """Count bytes that are done."""
        self._done += size
        if self._tell is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        self._told = True
        self._tell(f"{self._now}: {format_bytes(self._done)} of {format_bytes(self._total)}", False)

    def end(self) -> None:
        """It is over."""
        if self._told and self._tell is not None:
            self._tell(f"{self._then} ({format_bytes(self._total)})", True)


class Inbox:
    """The blobs of one message that did not travel along."""

    def __init__(
        self, store: Store, objects: dict[str, list[str]], tell: Tell | None = None
    ) -> None:
        self._store = store
        self._objects = objects
        self._tell = tell
        self._fetched: dict[int, memoryview] = {}

    def fetch(self, blobs: Iterable[Blob]) -> None:
        """Read these from the store, all their chunks in parallel. Raises `Damaged`."""
        tasks: list[tuple[ChunkRef, memoryview]] = []
        for blob in blobs:
            if blob.data is not None or id(blob) in self._fetched:
                continue
            refs = [ChunkRef.of_short(name) for name in self._objects[blob.digest]]
            blob.chunks = tuple(ref.hash for ref in refs)
            if whole(blob.chunks) != blob.digest or sum(ref.size for ref in refs) != blob.size:
                raise Damaged(f"object {blob.digest} does not consist of the chunks named for it")
            memory = self._fetched[id(blob)] = fresh(blob.size)
            start = 0
            for ref in refs:
                tasks.append((ref, memory[start : start + ref.size]))
                start += ref.size
        total = sum(ref.size for ref, _ in tasks)
        meter = Meter("the session reads values", "the session has read values", total, self._tell)
        for size in self._store.fill(tasks):
            meter.add(size)
        meter.end()

    def take(self, blob: Blob) -> memoryview:
        """The blob's bytes, in memory that is the taker's from now on."""
        self.fetch([blob])
        return self._fetched.pop(id(blob))


def send(answer: Return | Group, store: Store, tell: Tell | None = None) -> dict[str, Any]:
    """The wire form of what comes back; large blobs are in the store when this returns."""
    large = [
        (blob, blob.data)
        for blob in answer.blobs()
        if blob.data is not None and blob.size > INLINE_BYTES
    ]
    total = sum(blob.size for blob, _ in large)
    meter = Meter("the session stores values", "the session has stored values", total, tell)
    refs = store.put_each((piece for _, data in large for piece in pieces(data)), durable=False)
    objects: dict[str, list[str]] = {}
    for blob, _ in large:
        chunks = []
        for _ in range(chunks_of(blob.size)):
            chunks.append(next(refs))
            meter.add(chunks[-1].size)
        # Named by what was stored: a thread of the user's may write to it even now.
        blob.digest = whole([ref.hash for ref in chunks])
        objects[blob.digest] = [ref.short for ref in chunks]
    meter.end()
    return {"wire": answer.to_wire(INLINE_BYTES), "objects": objects}
