"""Regions of stored shards, read into tensors: no more than is wanted, a block at either end.

    region of a shard ─ split ─► spans of bytes ─► parts of chunks ─ read, check ─► target
                                                        │ neighbours in a slab: one read
                                                        └ no contiguous target: by a buffer

A region is a box. Its elements lie in spans of the stored bytes: one, where it takes whole rows;
else one for each row. Spans with less than a block between them are read as one, since blocks are
what is checked. Where the bytes are a contiguous piece of the target in the host's memory they go
straight into it; else by a buffer of at most a chunk, of which a few are in flight.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mlcloud.checkpoint.packing import SMALL
from mlcloud.checkpoint.sharding import Chunk, Place, Sharded
from mlcloud.store import CHUNK_BYTES, Part, Store
from mlcloud.store.blocks import BLOCK_BYTES

LINE_BYTES = 64
PIECE_BYTES = 4 * 2**20  # whole blocks: nothing is read twice
#: (parts to read, what to do when they are read)
Job = tuple[list[Part], Callable[[], None]]


@dataclass
class Region:
    """A box of the shard that lies at `place`, and where it goes, which has the box's shape."""

    place: Place
    offsets: Sequence[int]
    dtype: torch.dtype
    target: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.target.numel() * self.dtype.itemsize


@dataclass
class Span:
    """A piece of a region: elements at `strides` from byte `start` of the place on."""

    place: Place
    start: int
    strides: tuple[int, ...]
    dtype: torch.dtype
    target: torch.Tensor

    @property
    def nbytes(self) -> int:
        """From its first element to its last."""
        reach = (
            (n - 1) * stride for n, stride in zip(self.target.shape, self.strides, strict=True)
        )
        return (1 + sum(reach)) * self.dtype.itemsize

    def put(self, data: torch.Tensor) -> None:
        """Copy from its bytes."""
        found = data.view(self.dtype).as_strided(tuple(self.target.shape), self.strides)
        if not self.place.axis or self.target.dim() < 2:
            self.target.copy_(found)
            return
        # Columns into rows: a cache line of each row at a time, 2 to 7 times as fast as all.
        rows = max(1, LINE_BYTES // self.dtype.itemsize)
        for at in range(0, len(found), rows):
            some = min(rows, len(found) - at)
            self.target.narrow(0, at, some).copy_(found.narrow(0, at, some))

    @property
    def direct(self) -> memoryview | None:
        """The target's memory, where the bytes can go as they are."""
        whole = self.target.numel() * self.dtype.itemsize == self.nbytes
        if not (whole and self.target.dtype == self.dtype and self.target.is_contiguous()):
            return None
        return memory(self.target) if self.target.device.type == "cpu" else None


def read(store: Store, step: Sharded, regions: Iterable[Region]) -> int:
    """Read regions; returns how many bytes were read for them. Raises Damaged."""
    waiting: deque[list[int]] = deque()
    finish: deque[Callable[[], None]] = deque()

    def parts() -> Iterator[Part]:
        for needed, done in _jobs(step, regions):
            waiting.append([len(needed)])
            finish.append(done)
            yield from needed

    total = 0
    for took in store.read_parts(parts()):
        total += took
        waiting[0][0] -= 1
        if not waiting[0][0]:
            waiting.popleft()
            finish.popleft()()
    return total


def memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU."""
    flat = tensor.detach().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def _jobs(step: Sharded, regions: Iterable[Region]) -> Iterator[Job]:
    packed: list[Span] = []
    for region in regions:
        if not region.nbytes:
            continue
        small = region.place.nbytes < SMALL
        for span in _spans(region):
            if small:
                packed.append(span)
            else:
                yield _job(step, span)
    yield from _slabs(step, packed)


def _spans(region: Region) -> Iterator[Span]:
    """The spans of a region, in the order of the stored bytes."""
    axis = region.place.axis
    shape, offsets = (_moved(dims, axis) for dims in (region.place.shape, region.offsets))
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    at = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
    target = region.target.detach()
    if target.dim():
        target = target.movedim(axis, 0)
    size = region.dtype.itemsize
    yield from _split(Span(region.place, at * size, tuple(strides), region.dtype, target), 0)


def _split(span: Span, dim: int) -> Iterator[Span]:
    shape, size = span.target.shape, span.dtype.itemsize
    while dim < len(shape) and shape[dim] == 1:
        dim += 1
    whole = span.target.numel() * size == span.nbytes
    if dim == len(shape) or (whole and span.direct is not None):
        yield span
        return
    step = span.strides[dim] * size
    inner = Span(span.place, span.start, span.strides, span.dtype, span.target.narrow(dim, 0, 1))
    apart = step - inner.nbytes >= BLOCK_BYTES
    if not apart and span.nbytes <= CHUNK_BYTES:
        yield span
        return
    rows = 1 if apart else max(1, CHUNK_BYTES // step)
    for first in range(0, shape[dim], rows):
        part = span.target.narrow(dim, first, min(rows, shape[dim] - first))
        below = Span(span.place, span.start + first * step, span.strides, span.dtype, part)
        yield from _split(below, dim + 1 if rows == 1 else dim)


def _job(step: Sharded, span: Span) -> Job:
    direct = span.direct
    if direct is not None:
        return _parts(step, span, direct), lambda: None
    buffer = torch.empty(span.nbytes, dtype=torch.uint8)
    return _parts(step, span, memory(buffer)), lambda: span.put(buffer)


def _parts(step: Sharded, span: Span, into: memoryview) -> list[Part]:
    parts, at = list[Part](), 0
    for chunk, start, size in step.pieces(span.place, span.start, span.nbytes):
        parts += _cut(Part(chunk.ref, chunk.blocks, start, into[at : at + size]))
        at += size
    return parts


def _cut(part: Part) -> Iterator[Part]:
    """Whole chunks go into their place as they are read; less of one by a copy, so piecewise."""
    at, size = 0, part.into.nbytes
    while at < size:
        took = min(size - at, PIECE_BYTES - (part.start + at) % PIECE_BYTES)
        if size == part.ref.size:
            took = size
        yield Part(part.ref, part.blocks, part.start + at, part.into[at : at + took])
        at += took


def _slabs(step: Sharded, spans: list[Span]) -> Iterator[Job]:
    """Small pieces that share a chunk: those whose blocks meet are read as one."""
    chunks: dict[int, list[Span]] = {}
    for span in spans:
        chunks.setdefault(span.place.first, []).append(span)
    for number, members in sorted(chunks.items()):
        members.sort(key=_begin)
        group: list[Span] = []
        end = 0
        for span in members:
            if group and _begin(span) // BLOCK_BYTES > -(-end // BLOCK_BYTES):
                yield _slab(step.chunks[number], group, end)
                group = []
            end = max(end if group else 0, _begin(span) + span.nbytes)
            group.append(span)
        if group:
            yield _slab(step.chunks[number], group, end)


def _slab(chunk: Chunk, spans: list[Span], end: int) -> Job:
    start = _begin(spans[0])
    buffer = torch.empty(end - start, dtype=torch.uint8)

    def put() -> None:
        for span in spans:
            at = _begin(span) - start
            # A copy, for its alignment: elements of 8 bytes may lie at any byte of the buffer.
            span.put(buffer[at : at + span.nbytes].clone())

    return list(_cut(Part(chunk.ref, chunk.blocks, start, memory(buffer)))), put


def _begin(span: Span) -> int:
    return span.place.offset + span.start


def _moved(dims: Sequence[int], axis: int) -> list[int]:
    found = list(dims)
    return [found.pop(axis), *found] if found else found
