"""A sharded step in JSON: what torch pickles as `.metadata`, without pickle.

    {"format": 3, "chunks": ["blake3:<hash>:<size>", …], "blocks": "…" or ["blake3:…", …],
     "content": {…} or ["blake3:…", …], "digest": "…", "bytes": …, …}   more: `checkpoints`

`blocks` holds the digests of the chunks' blocks (`store.blocks`), one chunk after the other, as
base64 or, when long, in chunks. `content` moves into chunks of its own too:

    {"tensors": {fqn: {"dtype", "size", "shards": [[offsets, sizes, place], …]}},
     "objects": {fqn: {"tree": …, "blobs": [place, …]}},
     "planner": …, "meta": …, "version": …, "world": …}

A place is [first chunk, offset, bytes, axis]: so many bytes after `offset` in the run of chunks
that begins with the first one. They are the shard's elements in C order, after its dimension
`axis` was moved to the front: a shard that has some columns of a matrix is stored column by column,
so that those which another layout wants lie together.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from blake3 import blake3
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from mlcloud import errors
from mlcloud.checkpoint.codec import Decoder, Encoder
from mlcloud.checkpoint.segments import Segment
from mlcloud.checkpoint.step import INLINE, SHARDED
from mlcloud.store import CHUNK_BYTES, ChunkRef, Store, chunks_of
from mlcloud.store.blocks import BLOCK_BYTES, DIGEST_BYTES
from mlcloud.store.manifest import canonical

_META = ("checkpoint_id", "save_id", "load_id", "modules")


@dataclass(frozen=True)
class Chunk:
    """A chunk, and the digests of its blocks."""

    ref: ChunkRef
    blocks: bytes


@dataclass
class Written:
    """Where a rank put an item: what a writer tells the coordinator. `tree`: of an object."""

    run: Segment
    offset: int
    nbytes: int
    axis: int = 0
    tree: Any = None
    blobs: list[Written] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where an item lies: see above. `shape`: of the shard, before its axis was moved."""

    first: int
    offset: int
    nbytes: int
    axis: int
    shape: tuple[int, ...]


@dataclass
class Item:
    """A value that is no tensor: its tree, and where its blobs lie."""

    tree: Any
    blobs: list[Place]


@dataclass
class Sharded:
    """A step's description. `metadata.storage_data` has a `Place` or an `Item` for each index."""

    chunks: list[Chunk]
    metadata: Metadata
    world: int

    def pieces(self, place: Place, start: int, size: int) -> Iterator[tuple[Chunk, int, int]]:
        """(chunk, start in it, bytes) of a part of what lies at a place."""
        at, end = place.offset + start, place.offset + start + size
        while at < end:
            number, inside = divmod(at, CHUNK_BYTES)
            took = min(end - at, CHUNK_BYTES - inside)
            yield self.chunks[place.first + number], inside, took
            at += took


# --- writing --------------------------------------------------------------------------------------


def describe(
    store: Store, metadata: Metadata, results: Sequence[Sequence[WriteResult]]
) -> dict[str, Any]:
    """The part of a step's body that tells what it holds; long parts of it are put as chunks."""
    chunks: list[Chunk] = []
    firsts: dict[int, int] = {}

    def place(of: Written) -> list[int]:
        if id(of.run) not in firsts:
            firsts[id(of.run)] = len(chunks)
            chunks.extend(Chunk(ref, blocks) for ref, blocks in of.run.pairs())
        return [firsts[id(of.run)], of.offset, of.nbytes, of.axis]

    found = {result.index: result.storage_data for each in results for result in each}
    tensors, objects = {}, {}
    for fqn, what in sorted(metadata.state_dict_metadata.items()):
        if isinstance(what, BytesStorageMetadata):
            written = found[MetadataIndex(fqn)]
            objects[fqn] = {"tree": written.tree, "blobs": [place(each) for each in written.blobs]}
            continue
        tensors[fqn] = {
            "dtype": str(what.properties.dtype).removeprefix("torch."),
            "size": list(what.size),
            "shards": [
                [list(s.offsets), list(s.sizes), place(found[MetadataIndex(fqn, s.offsets)])]
                for s in what.chunks
            ],
        }
    encoder = Encoder()
    meta = metadata.storage_meta
    content = {
        "tensors": tensors,
        "objects": objects,
        "planner": encoder.encode(metadata.planner_data, "planner_data"),
        "meta": meta and encoder.encode({n: getattr(meta, n) for n in _META}, "storage_meta"),
        "version": metadata.version,
        "world": len(results),
    }
    if encoder.blobs:
        raise errors.NotCheckpointable("the planner's own data is too large to be saved")
    refs = [chunk.ref for chunk in chunks]
    text, blocks = canonical(content), b"".join(chunk.blocks for chunk in chunks)
    named = [str(ref) for ref in refs]
    digest = blake3(canonical([named, blake3(text).hexdigest()])).hexdigest()
    inline: Any = content
    if len(text) > INLINE:
        more = store.put_buffers([text])
        refs, inline = refs + more, [str(ref) for ref in more]
    inline_blocks: Any = base64.b64encode(blocks).decode()
    if len(blocks) > INLINE // 2:
        more = store.put_buffers([blocks])
        refs, inline_blocks = refs + more, [str(ref) for ref in more]
    return {
        "format": SHARDED,
        "chunks": named,
        "blocks": inline_blocks,
        "content": inline,
        "digest": digest,
        "bytes": sum(ref.size for ref in refs),
        "new_bytes": sum({ref.hash: ref.size for ref in refs if ref.new}.values()),
    }


# --- reading --------------------------------------------------------------------------------------


def parse(store: Store, body: dict[str, Any], where: str) -> Sharded:
    """The description in a step's body. Raises Damaged when it is none."""
    try:
        content, blocks = body["content"], body["blocks"]
        if isinstance(content, list):
            text = store.get_buffer([ChunkRef.parse(ref) for ref in content])
            content = json.loads(bytes(text))
        if isinstance(blocks, list):
            blocks = bytes(store.get_buffer([ChunkRef.parse(ref) for ref in blocks]))
        else:
            blocks = base64.b64decode(blocks, validate=True)
        chunks = _chunks([ChunkRef.parse(text) for text in body["chunks"]], blocks)
        metadata: dict[str, STORAGE_TYPES] = {}
        places: dict[MetadataIndex, Place | Item] = {}
        for fqn, node in content["tensors"].items():
            metadata[fqn], shards = _tensor(node, chunks)
            places |= {MetadataIndex(fqn, offsets): place for offsets, place in shards}
        for fqn, node in content["objects"].items():
            metadata[fqn] = BytesStorageMetadata()
            blobs = [_place(place, chunks) for place in node["blobs"]]
            places[MetadataIndex(fqn)] = Item(node["tree"], blobs)
        decoder = Decoder(lambda number: memoryview(b""))
        planner = decoder.decode(content["planner"])
        if isinstance(planner, dict):  # the order of the state: JSON's keys are sorted
            order = {name: number for number, name in enumerate(planner)}
            last = len(order)
            metadata = dict(sorted(metadata.items(), key=lambda pair: order.get(pair[0], last)))
        meta = content["meta"] and decoder.decode(content["meta"])
        return Sharded(
            chunks,
            Metadata(
                metadata,
                planner,
                places,
                StorageMeta(**meta) if meta else None,
                content["version"],
            ),
            int(content["world"]),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise errors.Damaged(
            f"{where} is no sharded checkpoint that this mlcloud reads: "
            f"{type(error).__name__}: {error}"
        ) from error


def _chunks(refs: list[ChunkRef], blocks: bytes) -> list[Chunk]:
    chunks, at = [], 0
    for ref in refs:
        size = -(-ref.size // BLOCK_BYTES) * DIGEST_BYTES
        chunks.append(Chunk(ref, blocks[at : at + size]))
        at += size
    if at != len(blocks):
        raise ValueError(f"{len(blocks)} bytes of digests instead of {at}")
    return chunks


def _tensor(
    node: dict[str, Any], chunks: list[Chunk]
) -> tuple[TensorStorageMetadata, list[tuple[torch.Size, Place]]]:
    dtype = getattr(torch, node["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{node['dtype']!r} is no dtype")
    size = torch.Size(node["size"])
    made = TensorStorageMetadata(TensorProperties(dtype=dtype), size, [])
    shards = []
    for offsets, sizes, where in node["shards"]:
        shard = torch.Size(sizes)
        place = _place(where, chunks, shard)
        if place.nbytes != math.prod(shard) * dtype.itemsize or len(shard) != len(size):
            raise ValueError(f"a shard of {tuple(shard)} has {place.nbytes} bytes")
        made.chunks.append(ChunkStorageMetadata(torch.Size(offsets), shard))
        shards.append((torch.Size(offsets), place))
    return made, shards


def _place(node: list[int], chunks: list[Chunk], shape: tuple[int, ...] | None = None) -> Place:
    first, offset, nbytes, axis = map(int, node)
    place = Place(first, offset, nbytes, axis, (nbytes,) if shape is None else tuple(shape))
    end = place.offset + place.nbytes
    run = chunks[place.first : place.first + chunks_of(end)]
    if min(node) < 0 or (place.nbytes and sum(chunk.ref.size for chunk in run) < end):
        raise ValueError(f"{place} ends outside its chunks")
    if any(chunk.ref.size != CHUNK_BYTES for chunk in run[:-1]):
        raise ValueError(f"{place} has a chunk that is not full")
    return place
