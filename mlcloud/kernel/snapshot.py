"""The session's namespace in the store, at cell boundaries: what changed goes, the rest is named
again.

    take()     RemoteSide.dump_groups ─► chunks of the groups that are new ─► a manifest's body
    restore()  a body the gateway verified ─► chunks, each checked by its hash ─► the names, bound

A body names its chunks (`blake3:<hex>:<size>`) and holds no pickle; the gateway commits and signs
it. A group's chunks are found by content: a group that is as it was costs no write. Groups larger
than `MAX_BYTES`, and what cannot be pickled, are left out with the reason, which the user is told.

This form looks at every name after every cell. Finding the change by tracking access, and
rebuilding what cannot be pickled by running its cells again, come on top of the same format.
"""

from __future__ import annotations

from typing import Any

from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.packages import Packages
from mlcloud.kernel.transfer import Inbox
from mlcloud.store import ChunkRef, Store
from mlcloud.values.messages import Blob, Group, Import

FORMAT = 1
MAX_BYTES = 256 * 2**20


class Snapshots:
    """Takes and restores one kernel's snapshots."""

    def __init__(self, store: Store, names: RemoteSide) -> None:
        self._store = store
        self._names = names
        self._written: dict[str, list[str]] = {}
        self._packages = Packages()

    def take(self) -> dict[str, Any]:
        """Put what is new into the store; the body of the manifest to commit.

        Raises `StoreError`, `StoreFull`.
        """
        dumped = self._names.dump_groups(MAX_BYTES)
        new_bytes = 0
        written: dict[str, list[str]] = {}
        groups = []
        for group in dumped.groups:
            for blob in group.blobs():
                if blob.digest in self._written:
                    written[blob.digest] = self._written[blob.digest]
                elif blob.digest not in written:
                    assert blob.data is not None
                    refs = self._store.put_buffers([blob.data])
                    written[blob.digest] = [str(ref) for ref in refs]
                    new_bytes += sum(ref.size for ref in refs if ref.new)
            groups.append(
                {
                    "names": group.names,
                    "keys": list(group.keys),
                    "digests": group.digests,
                    "payload": _named(group.payload, written),
                    "buffers": [_named(buffer, written) for buffer in group.buffers],
                }
            )
        self._written = written
        return {
            "format": FORMAT,
            "groups": groups,
            "imports": [entry.to_wire() for entry in dumped.imports],
            "skipped": dumped.skipped,
            "state": dumped.state,
            "packages": self._packages.installed(),
            "bytes": sum(group.size for group in dumped.groups),
            "new_bytes": new_bytes,
        }

    def restore(self, body: dict[str, Any]) -> dict[str, Any]:
        """Bind a snapshot's names. Raises `Damaged` where a chunk is missing or wrong.

        `missing` in the result: what could not be had here, by name, and why.
        """
        failed = self._packages.bring_back(body.get("packages", {}))
        objects: dict[str, list[str]] = {}

        def blob(named: dict[str, Any]) -> Blob:
            refs = [ChunkRef.parse(text) for text in named["chunks"]]
            objects[named["digest"]] = [f"{ref.hash}:{ref.size}" for ref in refs]
            return Blob(named["digest"], named["size"])

        groups = [
            Group(
                tuple(group["keys"]),
                blob(group["payload"]),
                [blob(buffer) for buffer in group["buffers"]],
                group["digests"],
            )
            for group in body["groups"]
        ]
        inbox = Inbox(self._store, objects)
        inbox.fetch(blob for group in groups for blob in group.blobs())
        missing = self._names.restore(
            groups,
            [Import.from_wire(entry) for entry in body["imports"]],
            state=body["state"],
            resolve=inbox.take,
        )
        missing.update({f"package {name}": why for name, why in failed.items()})
        return {"names": sum(len(group.names) for group in groups), "missing": missing}


def _named(blob: Blob, written: dict[str, list[str]]) -> dict[str, Any]:
    return {"digest": blob.digest, "size": blob.size, "chunks": written[blob.digest]}
