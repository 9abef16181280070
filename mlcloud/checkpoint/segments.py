"""Segments to chunks and back: what is the same as last time is neither hashed by name nor sent.

    piece of 16 MiB ─ digests of its blocks (xxh3) ─► known? ─ yes ─► the chunk it was then
                                                         └── no ──► blake3 ─► the store

xxh3 is as fast as memory is read, blake3 takes four times as long, and the store would have to be
asked whether it has the chunk. What is known lies under the step that was saved or read last, and
only as long as nobody has begun to prune the store since.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from mlcloud.store import CHUNK_BYTES, ChunkRef, Part, Store
from mlcloud.store.blocks import BLOCK_BYTES, DIGEST_BYTES, digests
from mlcloud.store.progress import Told

#: So many chunks are on their way to a disk, beside a training.
BESIDE = 2
PER_CHUNK = CHUNK_BYTES // BLOCK_BYTES * DIGEST_BYTES


@dataclass
class Segment:
    """A run of chunks, and the digests of all their blocks (empty: none are known)."""

    refs: list[ChunkRef]
    blocks: bytes = b""

    @property
    def nbytes(self) -> int:
        return sum(ref.size for ref in self.refs)

    def pairs(self) -> Iterator[tuple[ChunkRef, bytes]]:
        """Each chunk with its digests."""
        for number, ref in enumerate(self.refs):
            yield ref, self.blocks[number * PER_CHUNK : (number + 1) * PER_CHUNK]

    def text(self) -> str:
        """The digests, for a manifest."""
        return base64.b64encode(self.blocks).decode()

    @classmethod
    def parse(cls, refs: Sequence[str], text: str = "") -> Segment:
        """Raises Damaged or ValueError."""
        made = cls([ChunkRef.parse(ref) for ref in refs], base64.b64decode(text, validate=True))
        count = sum(-(-ref.size // BLOCK_BYTES) for ref in made.refs)
        if made.blocks and len(made.blocks) != count * DIGEST_BYTES:
            raise ValueError("a segment has more or fewer blocks than digests")
        return made


class Known:
    """The chunks of the step before, by their digests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._since = -1
        self._refs: dict[bytes, ChunkRef] = {}
        self._firsts: set[bytes] = set()  # the digests of their first blocks

    def learn(self, segments: Iterable[Segment], since: int) -> None:
        """These chunks are named by a step that was there after `since` (`Store.begin`)."""
        self._refs = {
            blocks: ChunkRef(ref.hash, ref.size)  # no longer new
            for segment in segments
            for ref, blocks in segment.pairs()
            if blocks
        }
        self._firsts = {blocks[:DIGEST_BYTES] for blocks in self._refs}
        self._since = since

    def forget(self) -> None:
        self._refs, self._firsts = {}, set()

    def write(
        self,
        buffers: Iterable[memoryview],
        since: int,
        *,
        beside: bool = False,
        told: Told = lambda done: None,
    ) -> list[Segment]:
        """Store each buffer. Those chunks are trusted to be there that were since `since`.

        `beside`: a training goes on, which is to have this machine's cores and caches. `told` gets
        the bytes that are stored.
        """
        if self._since != since:
            self.forget()
        segments: list[Segment] = []

        def pieces() -> Iterator[memoryview]:
            for buffer in buffers:
                segments.append(Segment([]))
                counts.append(-(-buffer.nbytes // CHUNK_BYTES))
                for at in range(0, buffer.nbytes, CHUNK_BYTES):
                    yield buffer[at : at + CHUNK_BYTES]

        counts: list[int] = []
        current = 0
        put = partial(self._put, cached=not beside)
        width = BESIDE if beside and self._store.folder else self._store.uploads
        for ref, blocks in self._store.each(put, pieces(), width=width):
            while len(segments[current].refs) == counts[current]:
                current += 1
            told(ref.size)
            segments[current].refs.append(ref)
            segments[current].blocks += blocks
        return segments

    def _put(self, piece: memoryview, *, cached: bool) -> tuple[ChunkRef, bytes]:
        first = digests(piece[:BLOCK_BYTES])
        if first not in self._firsts:  # then none of it is known: both hashes, block by block
            name, blocks = self._store.naming(), b""
            for at in range(0, piece.nbytes, BLOCK_BYTES):
                block = piece[at : at + BLOCK_BYTES]
                blocks += digests(block)
                name.update(block)
            # A step was before this one, and has nothing like it: another will hardly have it, and
            # to ask a cloud takes a tenth of the time of sending it.
            fresh = bool(self._refs) and not self._store.folder
            named = name.hexdigest()
            return self._store.put_chunk(piece, name=named, fresh=fresh, cached=cached), blocks
        blocks = digests(piece)
        ref = self._refs.get(blocks)
        if ref is None or ref.size != piece.nbytes or self._store.is_suspect(ref.hash):
            ref = self._store.put_chunk(piece, cached=cached)
        return ref, blocks


def parts(segment: Segment, into: memoryview) -> Iterator[Part]:
    """To read all of a segment, checked by its digests."""
    at = 0
    for ref, blocks in segment.pairs():
        yield Part(ref, blocks, 0, into[at : at + ref.size])
        at += ref.size
