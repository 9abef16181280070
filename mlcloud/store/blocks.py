"""Parts of a chunk, read and checked without the rest of it.

A chunk's name is the hash of all of it: who wants 1 MiB of 16 would have to read 16. So a writer
may note the digests of a chunk's blocks, xxh3-128 of each 256 KiB, beside its name; a reader then
reads the blocks that its part touches and checks these.

    chunk   │ block 0 │ block 1 │ block 2 │ … │
    part              ├──►  start, size  ◄──┤      blocks 1 to 2 are read

xxh3 notices damage and is several times as fast as blake3, but whoever wants to can find another
content with the same digest: names, and what decides what may be trusted, stay blake3. The digests
lie in, or are named by, a manifest that has its own checksum.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

from mlcloud.store.manifest import ChunkRef

BLOCK_BYTES = 256 * 1024
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `start + into.nbytes` of a chunk, to be put into `into`.

    `blocks`: the digests of all blocks of the chunk, one after the other.
    """

    ref: ChunkRef
    blocks: bytes
    start: int
    into: memoryview

    @property
    def span(self) -> tuple[int, int]:
        """From where to where is read: whole blocks."""
        end = -(-(self.start + self.into.nbytes) // BLOCK_BYTES) * BLOCK_BYTES
        return self.start // BLOCK_BYTES * BLOCK_BYTES, min(end, self.ref.size)


def digests(data: memoryview) -> bytes:
    """The digests of the blocks of a chunk's content."""
    starts = range(0, data.nbytes, BLOCK_BYTES)
    return b"".join(xxhash.xxh3_128_digest(data[at : at + BLOCK_BYTES]) for at in starts)


def agrees(part: Part, data: memoryview) -> bool:
    """Whether `data`, what lies in the part's span, has the digests it should have."""
    first, end = part.span
    if data.nbytes != end - first:
        return False
    at = first // BLOCK_BYTES * DIGEST_BYTES
    wanted = part.blocks[at : at + -(-(end - first) // BLOCK_BYTES) * DIGEST_BYTES]
    return digests(data) == wanted
