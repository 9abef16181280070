"""The session's namespace in the store, at cell boundaries: what changed goes, the rest is named
again.

    take()     RemoteSide.dump_groups ─► chunks of the groups that are new ─► a manifest's body
    restore()  a body the gateway verified ─► chunks, each checked by its hash ─► the names, bound

A body names its chunks (`blake3:<hex>:<size>`) and holds no pickle; the gateway commits and signs
it. A group's chunks are found by content: a group that is as it was costs no write. What cannot be
pickled is left out with the reason, which the user is told.

Which names are looked at says `tracking`. Rebuilding what cannot be pickled by running its cells
again comes on top of the same format.
"""

from __future__ import annotations

from typing import Any

from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.packages import Packages
from mlcloud.kernel.transfer import Inbox, Meter, Tell
from mlcloud.store import ChunkRef, Store, chunks_of
from mlcloud.values.digests import pieces, whole
from mlcloud.values.messages import Blob, Group, Import, class_id

FORMAT = 1


class Snapshots:
    """Takes and restores one kernel's snapshots."""

    def __init__(self, store: Store, names: RemoteSide) -> None:
        self._store = store
        self._names = names
        self._saved: dict[frozenset[str], dict[str, Any]] = {}  # of the last manifest, by keys
        self._packages = Packages()

    def take(self, tell: Tell | None = None) -> dict[str, Any]:
        """Put what is new into the store; the body of the manifest to commit.

        `tell` hears how far that is. Raises `StoreError`, `StoreFull`.
        """
        dumped = self._names.dump_groups(saved=self._saved.keys())
        saved = {keys: self._saved[keys] for keys in dumped.unchanged}
        known = {
            blob["digest"]: blob["chunks"]
            for group in self._saved.values()
            for blob in _blobs(group)
        }
        written, new_bytes = self._write(dumped.groups, known, tell)
        for group in dumped.groups:
            saved[frozenset(group.keys)] = {
                "names": group.names,
                "keys": list(group.keys),
                "digests": group.digests,
                "payload": _named(group.payload, written),
                "buffers": [_named(buffer, written) for buffer in group.buffers],
            }
        self._saved = saved
        self._names.dumped()
        # Classes first: the other groups name them.
        groups = sorted(saved.values(), key=lambda group: not any(map(class_id, group["keys"])))
        return {
            "format": FORMAT,
            "groups": groups,
            "imports": [entry.to_wire() for entry in dumped.imports],
            "skipped": dumped.skipped,
            "state": dumped.state,
            "packages": self._packages.installed(),
            "bytes": sum(blob["size"] for group in groups for blob in _blobs(group)),
            "new_bytes": new_bytes,
        }

    def _write(
        self, groups: list[Group], known: dict[str, list[str]], tell: Tell | None
    ) -> tuple[dict[str, list[str]], int]:
        """The chunks of all blobs by digest, those not `known` now in the store; and new bytes."""
        written = dict(known)
        new = {blob.digest: blob for group in groups for blob in group.blobs()}
        new = {digest: blob for digest, blob in new.items() if digest not in known}
        total = sum(blob.size for blob in new.values())
        meter = Meter("the session's state is being saved", "the state is saved", total, tell)
        data = [blob.data for blob in new.values() if blob.data is not None]
        refs = self._store.put_each(piece for each in data for piece in pieces(each))
        new_bytes = 0
        for digest, blob in new.items():
            written[digest] = []
            for _ in range(chunks_of(blob.size)):
                ref = next(refs)
                meter.add(ref.size)
                new_bytes += ref.size if ref.new else 0
                written[digest].append(str(ref))
        meter.end()
        return written, new_bytes

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
            news=body.get("restored_from") is not None,
        )
        missing.update({f"package {name}": why for name, why in failed.items()})
        return {"names": sum(len(group.names) for group in groups), "missing": missing}


def _blobs(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["payload"], *group["buffers"]]


def _named(blob: Blob, written: dict[str, list[str]]) -> dict[str, Any]:
    chunks = written[blob.digest]
    # Named by what was stored: a thread of the user's may write to it even now.
    digest = whole([ChunkRef.parse(text).hash for text in chunks])
    return {"digest": digest, "size": blob.size, "chunks": chunks}
