"""The store's chunks: named by the hash of their content, and read only when they still have it.

Without a key a chunk's name is the blake3 of its content, with one it is keyed, and what lies there
is sealed. What is found damaged here is suspect: the next writer of that content replaces it.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from blake3 import blake3

from mlcloud import errors
from mlcloud.store import sealing
from mlcloud.store.access import Access
from mlcloud.store.blocks import Part, agrees
from mlcloud.store.collector import Collector
from mlcloud.store.keys import KeySource
from mlcloud.store.manifest import ChunkRef
from mlcloud.store.options import OptionsSource

CHUNK_BYTES = 16 * 2**20

Bytes = bytes | bytearray | memoryview

_HASH = re.compile(r"[0-9a-f]{64}")


class Chunks(Access):
    """Put, read and ask for chunks; several at a time, in parallel."""

    _collector: Collector

    def __init__(self, url: str, key: KeySource | None, options: OptionsSource | None) -> None:
        super().__init__(url, key, options)
        # Chunks that were found damaged here: the next writer of that content replaces them.
        self._suspect: set[str] = set()
        self._untold: set[str] = set()

    def naming(self) -> blake3:
        """To be given a chunk's content, in pieces: its `hexdigest` is the chunk's name here."""
        return blake3() if self._keys is None else self._keys.naming()

    def put_chunk(
        self,
        data: Bytes,
        *,
        expected: str | None = None,
        name: str | None = None,
        fresh: bool = False,
        durable: bool = True,
        cached: bool = True,
    ) -> ChunkRef:
        """Store at most 16 MiB, unless they are there; returns their reference.

        `expected`: the hash they must have, else UsageError and nothing is stored.
        `name`: what `naming` made of just this content. `fresh`: it is not expected to be there,
        so that is not asked.
        `durable=False`: a power loss may take them until `settle`, or until they are put again.
        Use it for what a manifest does not name, or not yet: naming it puts it again.
        `cached=False`: write it past the page cache, where that can be done (`direct`).
        """
        view = _flat(data)
        if view.nbytes > CHUNK_BYTES:
            raise errors.UsageError(
                f"a chunk holds at most {CHUNK_BYTES} bytes, not {view.nbytes}; use put_buffers"
            )
        keys = self._keys
        hash_ = self.naming().update(view).hexdigest() if name is None else name
        size = view.nbytes + (0 if keys is None else sealing.OVERHEAD)
        if expected is not None and hash_ != expected:
            raise errors.UsageError(
                f"the content of object {expected} does not match its name; send it again"
            )
        path = chunk_path(hash_)
        self._collector.keep_in_view()
        with self._doing("write"):
            # A chunk of the right size is taken as good: it became visible only when whole. What
            # was found damaged since is written again.
            known = hash_ not in self._suspect and not self._collector.is_condemned(hash_)
            if known and not fresh and self._backend.size(path) == size:
                if durable:
                    self._backend.settle(path)
                return ChunkRef(hash_, view.nbytes)
            if keys is None:
                self._backend.put(path, view, durable=durable, cached=cached)
            else:
                with keys.sealed(hash_, view) as raw:
                    self._backend.put(path, raw, durable=durable, cached=cached)
        with self._lock:
            self._suspect.discard(hash_)
        return ChunkRef(hash_, view.nbytes, new=True)

    def get_chunk(self, hash: str) -> bytes:
        """The chunk's bytes, verified. Raises Damaged when missing, cut short or different."""
        data = self._get(hash, None, None)
        return data if isinstance(data, bytes) else bytes(data)

    def read_chunk(self, hash: str) -> bytes | None:
        """The chunk as it lies there, *unverified*, or None: for who passes it on to a verifier."""
        with self._doing("read"):
            try:
                return bytes(self._backend.read(chunk_path(hash)))
            except FileNotFoundError:
                return None

    def exists(self, hash: str) -> bool:
        """Whether a chunk of this name is there (not whether it is undamaged: see `verify`)."""
        with self._doing("read"):
            return self._backend.size(chunk_path(hash)) is not None

    def missing(self, refs: Iterable[ChunkRef]) -> list[ChunkRef]:
        """Those of these chunks that are not there in their full size, or were found damaged."""

        def absent(ref: ChunkRef) -> ChunkRef | None:
            with self._doing("read"):
                size = self._backend.size(chunk_path(ref.hash))
            # A collector need not have the key, so that it is sealed must not matter here.
            there = size in (ref.size, ref.size + sealing.OVERHEAD)
            return None if there and ref.hash not in self._suspect else ref

        return [ref for ref in self.each(absent, refs) if ref is not None]

    def wanted(self, refs: Iterable[ChunkRef]) -> list[ChunkRef]:
        """Those of these chunks that whoever needs them has to put: missing, or about to go.

        What is not wanted stays for as long as `prune` gives grace, and longer if it is named.
        """
        refs = list(refs)
        self._collector.settled(refs)
        absent = set(self.missing(refs))
        return [r for r in refs if r in absent or self._collector.is_condemned(r.hash)]

    def settle(self, refs: Iterable[ChunkRef]) -> None:
        """Make chunks that were put with `durable=False` survive a power loss."""

        def settle(ref: ChunkRef) -> None:
            with self._doing("write"):
                self._backend.settle(chunk_path(ref.hash))

        for _ in self.each(settle, refs):
            pass

    def put_buffers(self, buffers: Iterable[Bytes], *, durable: bool = True) -> list[ChunkRef]:
        """Store buffers, each split at 16 MiB; returns all references in order.

        A buffer of n bytes takes `chunks_of(n)` references. Slices are views, not copies, and
        `buffers` may be a generator: it is asked for the next only when there is room among the
        few uploads in flight, so not all need to be in memory at once.
        """
        pieces = (view[i : i + CHUNK_BYTES] for view in map(_flat, buffers) for i in _starts(view))
        return list(self.put_each(pieces, durable=durable))

    def put_each(self, chunks: Iterable[Bytes], *, durable: bool = True) -> Iterator[ChunkRef]:
        """Store chunks, in parallel; yields their references in order, each once it is stored."""
        return self.each(lambda chunk: self.put_chunk(chunk, durable=durable), chunks)

    def get_buffer(self, refs: Sequence[ChunkRef], into: Bytes | None = None) -> memoryview:
        """Read chunks, in parallel, into one piece of memory (`into`, or a new bytearray)."""
        total = sum(ref.size for ref in refs)
        view = memoryview(bytearray(total)) if into is None else _flat(into)
        if view.nbytes != total:
            raise errors.UsageError(f"into has {view.nbytes} bytes, the chunks have {total}")
        tasks = []
        start = 0
        for ref in refs:
            tasks.append((ref, view[start : start + ref.size]))
            start += ref.size
        for _ in self.fill(tasks):
            pass
        return view

    def fill(self, tasks: Iterable[tuple[ChunkRef, memoryview]]) -> Iterator[int]:
        """Read chunks, in parallel, each into memory of its size; yields the size of each done."""

        def read(task: tuple[ChunkRef, memoryview]) -> int:
            ref, into = task
            self._get(ref.hash, ref.size, into)
            return ref.size

        return self.each(read, tasks)

    def read_parts(self, parts: Iterable[Part]) -> Iterator[int]:
        """Read parts of chunks, in parallel, into their memory; yields how much each took to read.

        Each is checked by the digests of the blocks that it touches. Raises Damaged. With a key,
        whole chunks are read, since nothing less can be opened: parts of one chunk that follow each
        other take one read, which counts for the first.
        """
        if self._keys is None:
            yield from self.each(self._read_part, parts)
            return
        groups = itertools.groupby(parts, key=lambda part: part.ref)
        for took in self.each(self._read_whole, ((ref, list(group)) for ref, group in groups)):
            yield from took

    def _read_part(self, part: Part) -> int:
        ref, (start, end) = part.ref, part.span
        path, whole = chunk_path(ref.hash), end - start == ref.size
        direct = part.into.nbytes == end - start
        data: bytes | memoryview | None = None
        with self._doing("read"), contextlib.suppress(FileNotFoundError):
            if whole:
                data = self._backend.read(path, part.into if direct else None)
            else:
                data = self._backend.read_range(path, start, end)
        if data is None:
            raise self._damaged(ref.hash, "it is missing")
        view = memoryview(data)
        if not agrees(part, view):
            self._refuse_sealed(ref.hash, path)
            raise self._damaged(ref.hash, "what was read of it does not match its digests")
        if data is not part.into:
            part.into[:] = view[part.start - start : part.start - start + part.into.nbytes]
        return end - start

    def _read_whole(self, task: tuple[ChunkRef, list[Part]]) -> list[int]:
        """Read a chunk, which may be sealed, once for all these parts of it."""
        assert self._keys is not None
        ref, parts = task
        if len(parts) == 1 and parts[0].into.nbytes == ref.size:
            self._get(ref.hash, ref.size, parts[0].into)
        else:
            with self._keys.memory(ref.size) as whole:
                self._get(ref.hash, ref.size, whole)
                for part in parts:
                    part.into[:] = whole[part.start : part.start + part.into.nbytes]
        return [ref.size, *[0] * (len(parts) - 1)]

    def _refuse_sealed(self, hash_: str, path: str) -> None:
        """Raise Sealed where the chunk is, which without a key looks like damage."""
        with self._doing("read"), contextlib.suppress(FileNotFoundError):
            fingerprint = sealing.sealed_with(
                self._backend.read_range(path, 0, sealing.HEADER_BYTES)
            )
            if fingerprint is not None:
                where = f"chunk {hash_} of the store at {self.url}"
                raise sealing.refusal(where, fingerprint, None)

    def _get(self, hash_: str, size: int | None, into: memoryview | None) -> bytes | memoryview:
        """A chunk's content, verified, in `into` (which has its size) or in new memory."""
        if self._keys is None:
            return self._checked(hash_, size, into, into)
        if size is None or not self._backend.in_place:
            return self._checked(hash_, size, into, None)
        with self._keys.memory(size + sealing.OVERHEAD) as room:
            return self._checked(hash_, size, into, room)

    def _checked(
        self, hash_: str, size: int | None, into: memoryview | None, room: memoryview | None
    ) -> bytes | memoryview:
        """As `_get`, reading into `room` if the file has its size."""
        data: bytes | memoryview | None = None
        with self._doing("read"), contextlib.suppress(FileNotFoundError):
            data = self._backend.read(chunk_path(hash_), room)
        if data is None:
            raise self._damaged(hash_, "it is missing")
        # Content of unknown size may look sealed and not be: then its own hash is its name.
        if (
            len(data) != size
            and sealing.sealed_with(data) is not None
            and (size is not None or blake3(data).hexdigest() != hash_)
        ):
            return self._opened(hash_, size, memoryview(data), into)
        if size is not None and len(data) != size:
            why = f"it has {len(data)} bytes instead of {size}"
        elif blake3(data).hexdigest() != hash_:
            why = "its content does not match its hash"
        else:
            if into is None or data is into:
                return data
            into[:] = data
            return into
        raise self._damaged(hash_, why)

    def _opened(
        self, hash_: str, size: int | None, raw: memoryview, into: memoryview | None
    ) -> memoryview:
        """The content of a sealed chunk."""
        where, length = f"chunk {hash_} of the store at {self.url}", raw.nbytes - sealing.OVERHEAD
        if self._keys is None:
            raise sealing.refusal(where, sealing.sealed_with(raw) or "", None)
        if length < 0 or (size is not None and length != size):
            raise self._damaged(hash_, f"it has {raw.nbytes} bytes, and was sealed with others")
        content = memoryview(bytearray(length)) if into is None else into
        if not self._keys.open(where, hash_, raw, content):
            raise self._damaged(hash_, "it is not what its key sealed under this name")
        return content

    def _damaged(self, hash_: str, why: str) -> errors.Damaged:
        with self._lock:
            self._suspect.add(hash_)
            self._untold.add(hash_)
        return errors.Damaged(f"chunk {hash_} of the store at {self.url} is damaged: {why}")

    def is_suspect(self, hash_: str) -> bool:
        """Whether this process found the chunk damaged, and has not written it again since."""
        return hash_ in self._suspect

    def take_suspects(self) -> frozenset[str]:
        """The chunks that were found damaged here since this was asked last: others should know."""
        with self._lock:
            found, self._untold = frozenset(self._untold), set()
        return found

    def distrust(self, hashes: Iterable[str]) -> None:
        """Take chunks for damaged that another process found so."""
        with self._lock:
            self._suspect.update(hashes)


def chunks_of(size: int) -> int:
    """How many chunks a buffer of `size` bytes takes."""
    return -(-size // CHUNK_BYTES)


def _starts(view: memoryview) -> range:
    return range(0, view.nbytes, CHUNK_BYTES)


def _flat(data: Bytes) -> memoryview:
    view = memoryview(data)
    # A view with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def chunk_path(hash_: str) -> str:
    if not _HASH.fullmatch(hash_):
        raise errors.UsageError(f"{hash_[:100]!r} is no blake3 hash (64 hex digits)")
    return f"chunks/{hash_[:2]}/{hash_}"
