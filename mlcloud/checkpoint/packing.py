"""Blobs to segments: many small blobs share one, each large blob has its own.

A store pays for each write, so two hundred small optimizer states must not be two hundred files;
and an unchanged weight should be found again in the next step, so large blobs are cut at places of
their own. Hence: blobs below 1 MiB are packed, in order, into slabs of at most one chunk; the
others are a segment each. The layout follows from sizes and groups alone.

Blobs of different groups share no slab: what is frozen, what is trained and what an optimizer
remembers change at different times, and a slab that is the same in the next step is not uploaded.
Each entry of a state has groups of its own, so that it can be read without the others; but for
those that are arrays themselves, which may be hundreds (`save(model.state_dict(), step)`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlcloud.checkpoint.arrays import Blob
from mlcloud.store import CHUNK_BYTES

SMALL = 2**20
#: Elements of any type, and vector loads, are aligned at multiples of this.
ALIGN = 64


@dataclass
class Segment:
    """What is stored as one run of chunks: blobs by number, with their offsets."""

    size: int = 0
    blobs: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Layout:
    """`places[n]` is (segment, offset, bytes) of blob n."""

    places: list[tuple[int, int, int]]
    segments: list[Segment]


def plan(blobs: Sequence[Blob]) -> Layout:
    """Where each blob goes."""
    layout = Layout([], [])
    slabs: dict[str, int] = {}
    for number, blob in enumerate(blobs):
        size, slab = blob.nbytes, slabs.get(blob.group)
        if size >= SMALL:
            layout.segments.append(Segment(size, [(number, 0)]))
            layout.places.append((len(layout.segments) - 1, 0, size))
            continue
        offset = 0
        if slab is not None:
            offset = -(-layout.segments[slab].size // ALIGN) * ALIGN
        if slab is None or offset + size > CHUNK_BYTES:
            layout.segments.append(Segment())
            slab, offset = len(layout.segments) - 1, 0
            slabs[blob.group] = slab
        layout.segments[slab].size = offset + size
        layout.segments[slab].blobs.append((number, offset))
        layout.places.append((slab, offset, size))
    return layout


def buffers(layout: Layout, blobs: Sequence[Blob]) -> Iterator[memoryview]:
    """The segments' bytes, in order, made one at a time."""
    for segment in layout.segments:
        if segment.size >= SMALL and len(segment.blobs) == 1:
            yield blobs[segment.blobs[0][0]].data()
            continue
        slab = memoryview(bytearray(segment.size))
        for number, offset in segment.blobs:
            slab[offset : offset + blobs[number].nbytes] = blobs[number].data()
        yield slab
