"""Sharded states: `torch.distributed.checkpoint` on the store, by its own planners.

    dcp.save(state, storage_writer=checkpoints.writer(step))
    dcp.load(state, storage_reader=checkpoints.reader())

    all ranks     look at the store (`begin`) ─► plan ──┐
    coordinator                        who writes what ─┴─► scatter
    all ranks     pack ─► upload, in parallel ─► where it lies ──┐
    coordinator                             one manifest, once ──┴─► committed

A save in which a rank fails or dies commits nothing. Each tensor below 1 MiB goes into a slab with
others of its part of the state (parameters, optimizer), so that a part that did not change is the
same chunks again. What is no tensor is written by `codec`: nothing is pickled. Stock planners want
bytes of `torch.save` for it, so the reader makes these from the decoded value: what `torch.load`
gets was written in this process.

Every read is checked. `dcp` raises `CheckpointException` on all ranks when one of them fails; its
`failures` hold our errors (`Damaged`, …). What was loaded into is then partly overwritten.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from mlcloud import errors
from mlcloud.checkpoint import items, packing, regions
from mlcloud.checkpoint.codec import Decoder
from mlcloud.checkpoint.regions import Region
from mlcloud.checkpoint.segments import Known, Segment
from mlcloud.checkpoint.sharding import Item, Place, Sharded, describe, parse
from mlcloud.checkpoint.step import KIND, SHARDED
from mlcloud.store import Store
from mlcloud.store.manifest import Manifest


@runtime_checkable
class TakesValues(Protocol):
    """A planner that takes decoded values, so that they need not become `torch.save`'s bytes."""

    def load_value(self, read_item: ReadItem, value: Any) -> None: ...


@dataclasses.dataclass
class Told:
    """What ranks and coordinator tell each other in their plans."""

    step: int | None
    suspects: frozenset[str] = frozenset()
    since: int | None = None


class StoreWriter(StorageWriter):
    """Writes one step; use a new one for each (`Checkpoints.writer`).

    Args:
        note: what else is in the manifest's body.
        frozen: names of tensors that do not change, which get slabs of their own.
        known: what need not be put again.
        committed: is called on the coordinator when the step is committed.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        step: int,
        *,
        note: dict[str, Any] | None = None,
        frozen: frozenset[str] = frozenset(),
        known: Known | None = None,
        committed: Callable[[], object] | None = None,
    ) -> None:
        self.store, self.name, self.step = store, name, int(step)
        self.made: Manifest | None = None
        self.new_bytes = 0
        self._note = {"metric": None, "extra": None, "complete": False} | (note or {})
        self._frozen, self._committed = frozen, committed
        self._known = Known(store) if known is None else known
        self.segments: list[Segment] = []
        self._since: int | None = None  # of this rank, and of the first of all
        self._asked: int | None = None
        self._began = time.monotonic()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self.step = _step(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return str(checkpoint_id).isdecimal()

    def storage_meta(self) -> StorageMeta | None:
        return None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("use_collectives", True):
            raise errors.UsageError(
                "use_collectives=False would commit one step from each rank: leave it out"
            )
        self._began, self.made, self.new_bytes = time.monotonic(), None, 0
        # Before any rank puts anything: none does before the plans were gathered.
        self._since = self.store.begin()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        told = Told(self.step, self.store.take_suspects(), self._since)
        return dataclasses.replace(plan, storage_data=told)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """All ranks save the same step, and what one found damaged all of them write again."""
        told = [plan.storage_data for plan in plans if isinstance(plan.storage_data, Told)]
        _agree({each.step for each in told})
        suspects = frozenset[str]().union(*(each.suspects for each in told))
        # What a rank knows to be there was there when it looked.
        self._asked = min(each.since for each in told if each.since is not None)
        return [dataclasses.replace(plan, storage_data=Told(self.step, suspects)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if isinstance(plan.storage_data, Told):
            self.store.distrust(plan.storage_data.suspects)
        paths = plan.planner_data if isinstance(plan.planner_data, dict) else {}
        blobs: items.Blobs = []
        results = []
        for item in sorted(plan.items, key=items.order):
            fqn = item.index.fqn
            path = paths.get(fqn, (fqn,))
            # Slabs of their own for each entry of the state, and for what is not trained of it.
            part = str(path[0]) if len(path) > 1 else ""
            group = f"{part} frozen" if fqn in self._frozen else part
            write = items.other if item.type == WriteItemType.BYTE_IO else items.tensor
            written = write(item, planner, blobs, group)
            results.append(WriteResult(item.index, written.nbytes, written))
        assert self._since is not None
        layout = packing.plan([blob for _, blob in blobs])
        data = packing.buffers(layout, [blob for _, blob in blobs])
        self.segments = self._known.write(data, self._since)
        for (written, _), (segment, offset, _) in zip(blobs, layout.places, strict=True):
            written.run, written.offset = self.segments[segment], offset
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def learn(self) -> None:
        """This rank's chunks are named by a step now."""
        if self._since is not None:
            self._known.learn(self.segments, self._since)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        body = describe(self.store, metadata, results)
        body |= self._note | {"seconds": time.monotonic() - self._began}
        try:
            self.made = self.store.commit(KIND, self.name, self.step, body, since=self._asked)
            self.new_bytes = body["new_bytes"]
        except errors.StepExists:
            self.made = self._settle(body["digest"])
        if self._committed is not None:
            self._committed()

    def _settle(self, digest: str) -> Manifest:
        """The step that was there, if it is the same. A damaged one is removed."""
        try:
            found = self.store.manifest(KIND, self.name, self.step)
            problems = self.store.verify(KIND, self.name, self.step)
        except errors.Damaged as error:
            problems = [str(error)]
        if problems:
            self.store.discard(KIND, self.name, self.step)
            raise errors.Collected(
                f"step {self.step} of {self.name!r} was there and damaged ({problems[0]}); it has "
                "been removed: save again"
            )
        if found.body.get("digest") == digest:
            return found
        raise errors.StepExists(
            f"step {self.step} of {self.name!r} in the store at {self.store.url} was committed "
            "before, with other content; it stays as it is. Save under another step or name"
        )


class StoreReader(StorageReader):
    """Reads a step, with `step=None` the newest (`Checkpoints.reader`).

    `bytes_read` counts what this rank read of the chunks, `bytes_needed` what it wanted.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        step: int | None = None,
        *,
        described: Sharded | None = None,
    ) -> None:
        self.store, self.name, self.step = store, name, step
        self.bytes_read = self.bytes_needed = 0
        self._asked, self._known = step, described
        self._error: errors.MLCloudError | None = None
        self._sharded: Sharded | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._asked = _step(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return str(checkpoint_id).isdecimal()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self.bytes_read = self.bytes_needed = 0
        self._error, self.step = None, self._asked
        # dcp takes an error here for "there is none", and buries it: it is raised by the next call.
        try:
            self.step = newest(self.store, self.name) if self.step is None else self.step
            self._sharded = self._known or sharded(self.store, self.name, self.step)
            return self._sharded.metadata
        except errors.MLCloudError as error:
            self._error = error
            return Metadata({})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        if self._error is not None:
            raise self._error

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return dataclasses.replace(plan, storage_data=Told(self.step))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        _agree({plan.storage_data.step for plan in plans if isinstance(plan.storage_data, Told)})
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        step = self._sharded
        assert step is not None
        places = cast(dict[MetadataIndex, Place | Item], step.metadata.storage_data)
        tensors: list[tuple[ReadItem, torch.Tensor]] = []
        values: list[tuple[ReadItem, Item, list[memoryview]]] = []

        def wanted() -> Iterator[Region]:
            for item in plan.items:
                place = places[item.storage_index]
                if isinstance(place, Item):
                    made = [torch.empty(blob.nbytes, dtype=torch.uint8) for blob in place.blobs]
                    values.append((item, place, [regions.memory(each) for each in made]))
                    for blob, memory in zip(place.blobs, made, strict=True):
                        yield Region(blob, (0,), torch.uint8, memory)
                    continue
                what = step.metadata.state_dict_metadata[item.storage_index.fqn]
                assert isinstance(what, TensorStorageMetadata)
                target = planner.resolve_tensor(item).detach()
                tensors.append((item, target))
                region = Region(place, item.storage_offsets, what.properties.dtype, target)
                self.bytes_needed += region.nbytes
                yield region

        self.bytes_read += regions.read(self.store, step, wanted())
        for item, target in tensors:
            planner.commit_tensor(item, target)
        for item, place, blobs in values:
            value = Decoder(blobs.__getitem__).decode(place.tree)
            if isinstance(planner, TakesValues):
                planner.load_value(item, value)
            else:
                planner.load_bytes(item, items.pickled(value))
        done: Future[None] = Future()
        done.set_result(None)
        return done


def newest(store: Store, name: str) -> int:
    """The newest step. Raises NoCheckpoint."""
    step = store.latest(KIND, name)
    if step is None:
        raise errors.NoCheckpoint(f"no step of {name!r} in the store at {store.url}")
    return step


def sharded(store: Store, name: str, step: int) -> Sharded:
    """A step's description. Raises NoCheckpoint, Damaged; UsageError for one that is whole."""
    body = store.read(KIND, name, step)
    where = f"step {step} of {name!r} in the store at {store.url}"
    if body.get("format") != SHARDED:
        raise errors.UsageError(
            f"{where} was saved by one process, whole: read it by Checkpoints.load or restore"
        )
    return parse(store, body, where)


# --- steps ----------------------------------------------------------------------------------------


def _agree(steps: set[int | None]) -> None:
    if len(steps) > 1:
        raise errors.UsageError(
            f"the ranks are at different steps ({', '.join(map(str, sorted(map(str, steps))))}): "
            "pass the same step on all of them"
        )


def _step(checkpoint_id: str | os.PathLike[str]) -> int:
    if not str(checkpoint_id).isdecimal():
        raise errors.UsageError(
            f"checkpoint_id={checkpoint_id!r}: for a store it is the number of the step"
        )
    return int(str(checkpoint_id))
