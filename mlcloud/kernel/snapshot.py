"""The session's namespace in the store, at cell boundaries: what changed goes, the rest is named
again.

    take()     RemoteSide.dump_groups ─► chunks of the groups that are new ─► a manifest's body
    restore()  a body the gateway verified ─► chunks, each checked by its hash ─► the names, bound
               ─► cells run again for what could not be pickled (`recipes`)

A body names its chunks (`blake3:<hex>:<size>`) and holds no pickle; the gateway commits and signs
it. A group's chunks are found by content: a group that is as it was costs no write. Beside the
names go what cells set elsewhere (`ambient`), the packages they installed, and, if asked for, the
small files of the working directory (`files`).

Which names are looked at says `tracking`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import msgpack

from mlcloud.errors import Collected
from mlcloud.kernel import ambient
from mlcloud.kernel.files import Files
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.outgoing import Outgoing
from mlcloud.kernel.packages import Packages
from mlcloud.kernel.recipes import CellRun, Rebuilding, Recipe
from mlcloud.kernel.transfer import Inbox, Tell
from mlcloud.store import ChunkRef, Store, chunks_of
from mlcloud.values.digests import pieces, whole
from mlcloud.values.messages import Blob, Group, Import, class_id

FORMAT = 1


class Snapshots:
    """Takes and restores one kernel's snapshots. `files`: of its workspace, where they come along.

    `shell`: its IPython, where it has one.
    """

    def __init__(
        self, store: Store, names: RemoteSide, files: Files | None = None, shell: Any = None
    ) -> None:
        self._store = store
        self._names = names
        self._files = files
        self._shell = shell
        self._saved: dict[frozenset[str], dict[str, Any]] = {}  # of the last manifest, by keys
        self._ambient = ""  # its chunk, in the last manifest
        self._packages = Packages()
        self._since: int | None = None  # the store's step when chunks were last known to be there

    @property
    def _workspace(self) -> Any:
        return None if self._files is None else self._files.folder

    def take(self, tell: Tell | None = None, run: CellRun | None = None) -> dict[str, Any]:
        """Put what is new into the store; the body of the manifest to commit.

        `tell` hears how far that is. `run`: the cell that has just ended. Raises `StoreError`,
        `StoreFull`.
        """
        return self.begin(tell, run).body()

    def begin(
        self,
        tell: Tell | None = None,
        run: CellRun | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Taking:
        """As `take`, but what is new is only found. `body()` of the result writes it, in any
        thread, and must have ended before the next `begin`.

        `stop`: asked now and then; where it says so, `Stopped` is raised, and nothing was done.
        """
        dumped = self._names.dump_groups(saved=self._saved.keys(), run=run, stop=stop)
        known = {
            _digest(blob): blob["chunks"]
            for group in self._saved.values()
            for blob in _blobs(group)
        }
        new = {blob.digest: blob for group in dumped.groups for blob in group.blobs()}
        new = {digest: blob for digest, blob in new.items() if digest not in known}
        files, new_bytes = ({}, 0) if self._files is None else self._files.save(self._store)
        found = _Found(
            saved={keys: self._saved[keys] for keys in dumped.unchanged},
            groups={
                frozenset(group.keys): {
                    "names": group.names,
                    "keys": list(group.keys),
                    "payload": _named(group.payload),
                    "buffers": list(map(_named, group.buffers)),
                }
                for group in dumped.groups
            },
            sizes={digest: blob.size for digest, blob in new.items()},
            known=known,
            ambient=msgpack.packb(ambient.capture(self._shell, self._workspace)),
            new_bytes=new_bytes,
            body={
                "format": FORMAT,
                "imports": [entry.to_wire() for entry in dumped.imports],
                "skipped": dumped.skipped,
                "recipes": {
                    name: {
                        "cells": list(recipe.cells),
                        "kind": recipe.kind,
                        "shares": sorted(recipe.shares),
                        **(
                            {"digest": recipe.digest, "why": recipe.why, "bytes": recipe.size}
                            if recipe.digest
                            else {}
                        ),
                    }
                    for name, recipe in self._names.recipes.by_name.items()
                },
                "files": files,
                "state": dumped.state,
                "packages": self._packages.installed(),
            },
        )
        # An empty array has no chunk (`chunks_of`), where `pieces` has an empty piece.
        data = [blob.data for blob in new.values() if blob.data is not None and blob.size]
        outgoing = Outgoing(self._store, [piece for each in data for piece in pieces(each)], tell)
        self._names.dumped()
        return Taking(self, found, outgoing)

    def _body(self, found: _Found, outgoing: Outgoing) -> dict[str, Any]:
        try:
            since = self._store.begin()
            self._still_there(since)
            written = self._written(found, outgoing)
            body = self._describe(found, written)
            if not self._store.keeps(since, body):
                self._gone()
            return {**body, "since": since}
        except BaseException:
            self._names.undumped()
            raise

    def _still_there(self, since: int) -> None:
        """Whether what is only named again was not removed: where something was, look."""
        before, self._since = self._since, since
        if before in (None, since):
            return
        blobs = [blob for group in self._saved.values() for blob in _blobs(group)]
        refs = [ChunkRef.parse(text) for blob in blobs for text in blob["chunks"]]
        if self._store.missing(refs):
            self._gone()

    def _gone(self) -> NoReturn:
        self._saved = {}
        raise Collected(
            "parts of the state saved before were removed from the store: all of it is to be saved "
            "again"
        )

    def _written(self, found: _Found, outgoing: Outgoing) -> dict[str, list[str]]:
        """The chunks of all blobs by digest."""
        written, refs = dict(found.known), outgoing.write()
        began, before = time.perf_counter(), found.new_bytes
        for digest, size in found.sizes.items():
            chunks = written[digest] = []
            for _ in range(chunks_of(size)):
                ref = next(refs)
                found.new_bytes += ref.size if ref.new else 0
                chunks.append(str(ref))
        for _ in refs:  # there is none: so it ends
            pass
        self._names.choice.wrote(found.new_bytes - before, time.perf_counter() - began)
        return written

    def _describe(self, found: _Found, written: dict[str, list[str]]) -> dict[str, Any]:
        before, ambient_before = self._saved, self._ambient
        saved = dict(found.saved)
        for keys, group in found.groups.items():
            for blob in _blobs(group):
                blob["chunks"] = written[blob.pop("digest")]
            saved[keys] = group
        self._ambient, more = self._put_bytes(found.ambient)
        found.new_bytes += more
        recipes = self._names.recipes
        for step, each in recipes.cells.items():
            if str(step) not in recipes.stored:
                # The state before this cell is that of the snapshot before it.
                inputs = [group for group in before.values() if _is_used(group, each)]
                record, more = self._put_bytes(msgpack.packb(asdict(each)))
                found.new_bytes += more
                recipes.stored[str(step)] = {
                    "run": record,
                    "inputs": inputs,
                    "ambient": ambient_before or self._ambient,
                    "seconds": round(each.seconds, 3),
                    "effects": each.effects,
                    # Chunks that the record itself, in a chunk, names: seen by who removes others.
                    "objects": _objects(each.shipment),
                }
        self._saved = saved
        # Classes first: the other groups name them.
        groups = sorted(saved.values(), key=lambda group: not any(map(class_id, group["keys"])))
        return {
            **found.body,
            "groups": groups,
            "cells": dict(recipes.stored),
            "ambient": self._ambient,
            "bytes": sum(blob["size"] for group in groups for blob in _blobs(group)),
            "new_bytes": found.new_bytes,
        }

    def _put_bytes(self, data: bytes) -> tuple[str, int]:
        """A small chunk: its reference, and how much of it is new."""
        ref = self._store.put_chunk(data)
        return str(ref), ref.size if ref.new else 0

    def _get(self, text: str) -> dict[str, Any]:
        record: dict[str, Any] = msgpack.unpackb(
            self._store.get_chunk(ChunkRef.parse(text).hash), strict_map_key=False
        )
        return record

    def restore(self, body: dict[str, Any]) -> Restoring:
        """Bind a snapshot's names. Raises `Damaged` where a chunk is missing or wrong.

        The result has the cells that are to run again, and is to be ended.
        """
        return Restoring(self, body)

    def _restore(self, body: dict[str, Any], restoring: Restoring) -> None:
        failed = self._packages.bring_back(body.get("packages", {}))
        if self._files is not None:
            failed.update(self._files.bring_back(body.get("files", {}), self._store))
        objects: dict[str, list[str]] = {}

        def blob(named: dict[str, Any]) -> Blob:
            refs = [ChunkRef.parse(text) for text in named["chunks"]]
            digest = _digest(named)
            objects[digest] = [ref.short for ref in refs]
            return Blob(digest, named["size"])

        def group(named: dict[str, Any]) -> Group:
            buffers = [blob(buffer) for buffer in named["buffers"]]
            return Group(tuple(named["keys"]), blob(named["payload"]), buffers)

        groups = list(map(group, body["groups"]))
        inbox = Inbox(self._store, objects)
        inbox.fetch(blob for group in groups for blob in group.blobs())
        imports = [Import.from_wire(entry) for entry in body["imports"]]
        restoring.missing = self._names.restore(groups, imports, inbox.take)
        restoring.missing.update({f"package {name}": why for name, why in failed.items()})
        recipes = {
            name: Recipe(
                *(tuple(each["cells"]), each["kind"], frozenset(each["shares"])),
                digest=each.get("digest"),
                why=each.get("why", ""),
                size=each.get("bytes", 0),
            )
            for name, each in body.get("recipes", {}).items()
        }
        runs, inputs = dict[int, CellRun](), dict[int, list[Group]]()
        for step, stored in body.get("cells", {}).items():
            run = runs[int(step)] = CellRun(**self._get(stored["run"]))
            run.effects = stored["effects"]  # of any rank
            inputs[int(step)] = list(map(group, stored["inputs"]))
            restoring.ambient[int(step)] = stored["ambient"]
            if run.shipment is not None:
                objects.update(run.shipment["objects"])
        restoring.recipes = recipes
        restoring.rebuilding = Rebuilding(
            self._names.namespace,
            self._names.classes,
            recipes,
            runs,
            inputs,
            {frozenset(each.keys): each.digest for each in groups},
            inbox.take,
        )
        restoring.rebuilding.also.update(body.get("also", []))

    def _end(self, body: dict[str, Any], restoring: Restoring) -> None:
        self._names.restore_state(body["state"], news=body.get("restored_from") is not None)
        if found := body.get("ambient"):
            ambient.apply(self._get(found), self._shell, self._workspace)
        made = {n: r for n, r in restoring.recipes.items() if n not in restoring.missing}
        self._names.recipes.restored(body.get("cells", {}), made)

    def _randomness(self, text: str) -> None:
        """The random states that a cell found, for its run."""
        ambient.apply(ambient.randomness(self._get(text)))


@dataclass
class _Found:
    """What a snapshot is to be made of: plain data, no object of the user's."""

    saved: dict[frozenset[str], dict[str, Any]]  # as in the manifest before
    groups: dict[frozenset[str], dict[str, Any]]  # new, whose blobs have a digest, not chunks yet
    sizes: dict[str, int]  # of the blobs that are on their way, in this order
    known: dict[str, list[str]]
    ambient: bytes
    new_bytes: int
    body: dict[str, Any]


class Taking:
    """A snapshot on its way into the store.

    taking = snapshots.begin(…)
    taking.body()        writes it: in a thread, or here
    taking.detach(n)     the next cell may begin, and change what was not written yet

    """

    def __init__(self, snapshots: Snapshots, found: _Found, outgoing: Outgoing) -> None:
        self._snapshots, self._found, self._outgoing = snapshots, found, outgoing

    def body(self) -> dict[str, Any]:
        """Write it; the manifest's body. Raises `StoreError`, `StoreFull`."""
        return self._snapshots._body(self._found, self._outgoing)

    def detach(self, limit: int) -> None:
        """Copy what is not written yet, up to `limit` bytes; wait for the rest."""
        self._outgoing.detach(limit)

    def hurry(self) -> None:
        """Somebody waits for it now, and wants to hear how far it is."""
        self._outgoing.awaited = True


class Restoring:
    """A snapshot on its way into an empty namespace.

        for run in restoring.cells():      each finds the names as they were before it
            restoring.failed(run.step, …)  if it failed
        restoring.end()                    ─► what is there, and what is not

    `missing`: what could not be had here, by name, and why.
    """

    recipes: dict[str, Recipe]
    rebuilding: Rebuilding

    def __init__(self, snapshots: Snapshots, body: dict[str, Any]) -> None:
        self._snapshots, self._body = snapshots, body
        self.missing: dict[str, str] = {}
        self.ambient: dict[int, str] = {}
        snapshots._restore(body, self)

    def cells(self) -> Iterator[CellRun]:
        """The cells to run again, in order."""
        for run in self.rebuilding.cells():
            self._snapshots._randomness(self.ambient[run.step])
            yield run

    def failed(self, step: int, error: BaseException | None) -> None:
        """How a cell ended that was run again; None: well."""
        self.rebuilding.failed(step, error)

    def end(self) -> dict[str, Any]:
        """What the kernel has now."""
        self.missing.update(self.rebuilding.missing)
        names = self._body["skipped"].keys() - self.missing.keys() - self.recipes.keys()
        for name in names:
            self.missing[name] = f"it cannot be saved ({self._body['skipped'][name]})"
        self._snapshots._end(self._body, self)
        rebuilt = {n: list(r.cells) for n, r in self.recipes.items() if n not in self.missing}
        count = sum(len(group["names"]) for group in self._body["groups"])
        return {"names": count, "missing": self.missing, "rebuilt": rebuilt}


def _objects(shipment: dict[str, Any] | None) -> list[str]:
    named = (shipment or {}).get("objects", {}).values()
    return [f"blake3:{chunk}" for chunks in named for chunk in chunks]


def _is_used(group: dict[str, Any], run: CellRun) -> bool:
    """Whether a cell may have used this; classes always count."""
    return any(class_id(key) is not None or key in run.wanted for key in group["keys"])


def _blobs(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["payload"], *group["buffers"]]


def _digest(blob: dict[str, Any]) -> str:
    """A blob's name. It is not written: its chunks tell it."""
    return whole([ChunkRef.parse(text).hash for text in blob["chunks"]])


def _named(blob: Blob) -> dict[str, Any]:
    return {"size": blob.size, "digest": blob.digest}
