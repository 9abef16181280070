"""Envelopes between kernel and wire: what is small travels along, what is large goes by the store.

The other end is `client/objects.py`; both name a blob's chunks by `objects`: blob digest →
`hash:size` in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlcloud.store import ChunkRef, Store
from mlcloud.values.messages import Blob, Group, Return

INLINE_BYTES = 64 * 1024


def resolver(store: Store, objects: dict[str, list[str]]) -> Callable[[Blob], memoryview]:
    """Reads a blob that did not travel along from the store, verified by hash."""

    def resolve(blob: Blob) -> memoryview:
        refs = []
        for name in objects[blob.digest]:
            digest, _, size = name.partition(":")
            refs.append(ChunkRef(digest, int(size)))
        return store.get_buffer(refs)

    return resolve


def send(answer: Return | Group, store: Store) -> dict[str, Any]:
    """The wire form of what comes back; large blobs are in the store when this returns."""
    objects: dict[str, list[str]] = {}
    for blob in answer.blobs():
        if blob.data is not None and blob.size > INLINE_BYTES and blob.digest not in objects:
            refs = store.put_buffers([blob.data])
            objects[blob.digest] = [f"{ref.hash}:{ref.size}" for ref in refs]
    return {"wire": answer.to_wire(INLINE_BYTES), "objects": objects}
