"""Reading a step: its content, then the segments that are wanted, then the objects.

    manifest ─► content ─┬─ tree ─► what is asked for ─► segments ─► memory of their own ─┐
                         │                                                             decoded
                         └─ live state ─► places of large arrays ─ check ─► read there ◄──┘

Only the segments that what is asked for lies in are read, all at a time and in parallel.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlcloud import errors
from mlcloud.checkpoint import arrays, packing, restore
from mlcloud.checkpoint.codec import Decoder, Outline, plain
from mlcloud.checkpoint.places import places as live_places
from mlcloud.checkpoint.segments import Segment, parts
from mlcloud.checkpoint.step import SHARDED, Loaded, Target, info_of, no_blobs
from mlcloud.store import ChunkRef, Store
from mlcloud.store.manifest import Manifest
from mlcloud.store.progress import Told, shown


@dataclass
class Reader:
    """Of one store. `verify`: by which hashes what is read is checked."""

    store: Store
    verify: Literal["blake3", "xxh3"]

    def read(
        self, made: Manifest, only: Collection[Any] | None = None, into: Target | None = None
    ) -> tuple[Loaded, list[Segment]]:
        """A step, verified and decoded, and the segments it has, which are none of a sharded one.

        `only`: these entries of the state. `into`: whose arrays may be read to directly, once it is
        clear that all fits. Raises Damaged, and UsageError where it does not fit.
        """
        if made.body["format"] == SHARDED:
            return self._read_sharded(made, only), []
        try:
            return self._read(made, only, into)
        except errors.MLCloudError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise errors.Damaged(
                f"{self._where(made)} is no checkpoint that this mlcloud reads: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _read(
        self, made: Manifest, only: Collection[Any] | None, into: Target | None
    ) -> tuple[Loaded, list[Segment]]:
        info, content = info_of(made), made.body["content"]
        if isinstance(content, list):
            text = self.store.get_buffer([ChunkRef.parse(ref) for ref in content])
            content = json.loads(bytes(text))
        names = made.body["segments"]
        digests = content.get("xxh3") or [""] * len(names)
        segments = [Segment.parse(*both) for both in zip(names, digests, strict=True)]
        places = [(int(s), int(o), int(n)) for s, o, n in content["blobs"]]
        tree = content["tree"] if only is None else _only(content["tree"], only)
        wanted = _numbers([tree, content["random"], content.get("start")])
        ready: dict[int, memoryview] = {}
        if into is not None:
            outline = Outline()
            live = live_places(into.state, outline.decode(tree), outline.numbers)
            ready = {
                places[number][0]: view
                for number, view in live.items()
                if view.nbytes == places[number][2] >= packing.SMALL
            }
        needed = {places[number][0] for number in wanted}
        new = {n: arrays.allocate(segments[n].nbytes) for n in needed - ready.keys()}
        total = sum(segments[n].nbytes for n in new.keys() | ready.keys())
        with shown(f"reading step {made.step}", total) as told:
            self._fetch(segments, new, told)
            memory = ready | new

            def blob(number: int) -> memoryview:
                segment, offset, size = places[number]
                part = memory[segment][offset : offset + size]
                if part.nbytes != size:
                    raise ValueError(f"blob {number} ends outside its segment")
                # A packed one gets memory of its own, or it would hold the whole slab.
                if size < packing.SMALL:
                    own = arrays.allocate(size)
                    own[:] = part
                    return own
                return part

            decoder = Decoder(blob)
            state, random = decoder.decode(tree), decoder.decode(content["random"])
            loaded = Loaded(info, state, plain(random), plain(decoder.decode(content.get("start"))))
            if into is not None and ready:
                restore.check(into.state, state, f"step {made.step} of {made.name!r}")
                self._fetch_live(into, segments, ready, told)
            return loaded, segments

    def _read_sharded(self, made: Manifest, only: Collection[Any] | None) -> Loaded:
        from mlcloud.checkpoint import whole
        from mlcloud.checkpoint.sharding import parse

        step = parse(self.store, made.body, self._where(made))
        state, random, start = whole.read(self.store, step, only)
        return Loaded(info_of(made), state, random, start, sharded=True)

    def _fetch_live(
        self,
        into: Target,
        segments: Sequence[Segment],
        memory: dict[int, memoryview],
        told: Told,
    ) -> None:
        """Read to where it belongs what is large, once it is clear that it is there."""
        refs = (ref for number in memory for ref in segments[number].refs)
        # Elsewhere each answer would take as long as a part of the chunk.
        missing = self.store.missing(refs) if self.store.folder else []
        if missing:
            raise errors.Damaged(
                f"chunk {missing[0].hash} of the store at {self.store.url} is missing or cut short"
            )
        into.touched = True
        self._fetch(segments, memory, told)

    def _fetch(
        self, segments: Sequence[Segment], memory: dict[int, memoryview], told: Told
    ) -> None:
        """Read segments, verified, each to its memory."""
        quick = {n for n in memory if self.verify == "xxh3" and segments[n].blocks}
        tasks = [
            task
            for number, view in memory.items()
            if number not in quick
            for task in _tasks(segments[number].refs, view)
        ]
        for size in self.store.fill(tasks):
            told(size)
        checked = (part for number in quick for part in parts(segments[number], memory[number]))
        for size in self.store.read_parts(checked):
            told(size)

    def _where(self, made: Manifest) -> str:
        return f"step {made.step} of {made.name!r} in the store at {self.store.url}"


def _tasks(refs: Sequence[ChunkRef], into: memoryview) -> Iterator[tuple[ChunkRef, memoryview]]:
    at = 0
    for ref in refs:
        yield ref, into[at : at + ref.size]
        at += ref.size


def _only(tree: Any, keys: Collection[Any]) -> Any:
    """The tree of a state with some of its entries."""
    decoder = Decoder(no_blobs)
    return {**tree, "v": [pair for pair in tree["v"] if decoder.decode(pair[0]) in keys]}


def _numbers(node: Any) -> set[int]:
    """The blobs that a tree names."""
    found, todo = set[int](), [node]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo.extend(node)
        elif isinstance(node, dict):
            if "at" in node:
                found.add(int(node["at"]))
            todo.extend(node.values())
    return found
