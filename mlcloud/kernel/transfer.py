"""Envelopes between kernel and wire: what is small travels along, what is large goes by the store.

    Inbox     store ─► memory ─► unpickled in place: each chunk verified as it is read
    send()    pickle's buffers ─► store, and their chunks' names into the answer

The other end is `client/objects.py`; both name a blob's chunks by `objects`: blob digest →
`hash:size` in order. What goes through here is put into the store without waiting for the disk: a
power loss ends the cell that waits for it too, and a snapshot puts again whatever it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlcloud.errors import Damaged
from mlcloud.store import ChunkRef, Store, chunks_of
from mlcloud.values.digests import whole
from mlcloud.values.memory import fresh
from mlcloud.values.messages import Blob, Group, Return

INLINE_BYTES = 64 * 1024


class Inbox:
    """The blobs of one message that did not travel along."""

    def __init__(self, store: Store, objects: dict[str, list[str]]) -> None:
        self._store = store
        self._objects = objects
        self._fetched: dict[int, memoryview] = {}

    def fetch(self, blobs: Iterable[Blob]) -> None:
        """Read these from the store, all their chunks in parallel. Raises `Damaged`."""
        tasks: list[tuple[ChunkRef, memoryview]] = []
        for blob in blobs:
            if blob.data is not None or id(blob) in self._fetched:
                continue
            refs = [_ref(name) for name in self._objects[blob.digest]]
            blob.chunks = tuple(ref.hash for ref in refs)
            if whole(blob.chunks) != blob.digest or sum(ref.size for ref in refs) != blob.size:
                raise Damaged(f"object {blob.digest} does not consist of the chunks named for it")
            memory = self._fetched[id(blob)] = fresh(blob.size)
            start = 0
            for ref in refs:
                tasks.append((ref, memory[start : start + ref.size]))
                start += ref.size
        for _ in self._store.fill(tasks):
            pass

    def take(self, blob: Blob) -> memoryview:
        """The blob's bytes, in memory that is the taker's from now on."""
        self.fetch([blob])
        return self._fetched.pop(id(blob))


def send(answer: Return | Group, store: Store) -> dict[str, Any]:
    """The wire form of what comes back; large blobs are in the store when this returns."""
    large = [blob for blob in answer.blobs() if blob.data is not None and blob.size > INLINE_BYTES]
    refs = iter(store.put_buffers((blob.data for blob in large if blob.data), durable=False))
    objects: dict[str, list[str]] = {}
    for blob in large:
        chunks = [next(refs) for _ in range(chunks_of(blob.size))]
        # Named by what was stored: a thread of the user's may write to it even now.
        blob.digest = whole([ref.hash for ref in chunks])
        objects[blob.digest] = [f"{ref.hash}:{ref.size}" for ref in chunks]
    return {"wire": answer.to_wire(INLINE_BYTES), "objects": objects}


def _ref(name: str) -> ChunkRef:
    digest, _, size = name.partition(":")
    return ChunkRef(digest, int(size))
