"""The store: content-addressed chunks, and manifests that commit them.

    <url>/chunks/<aa>/<blake3>                      immutable, at most 16 MiB each
    <url>/manifests/<kind>/<name>/<step>.json       the only commit point, written once
    <url>/marks/<name>                              signs of life: small, replaced, never trusted
    <url>/tmp/                                      local disks: files on their way to a name

A writer uploads chunks first, each under the hash of its content, and then creates the manifest
that names them, by a conditional create:

    data ─ split ─ hash ─ exists? ─ upload ──┐ (in parallel, any order, may crash anywhere)
                                             ├─ all there ─ create manifest ─ committed
    data ─ split ─ hash ─ exists? ───────────┘

A process killed anywhere before the last arrow leaves unnamed chunks and nothing else; a step that
has a manifest is whole. Two writers of one step: one wins, the other gets StepExists. A reader
checks the manifest's checksum and each chunk's hash, so damage is always noticed (Damaged).

Nothing here is pickled, and no credential is held: they come from the filesystem's own chain.

Chunks that no manifest names are removed by `prune` (`collector`), while others go on writing: a
writer looks after its commit whether something was removed meanwhile.

With a key (`keys`, `sealing`) chunks and the bodies of manifests are encrypted before they leave
this process; marks, and what commits kinds, names and steps, are not.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, NoReturn, TypeVar

from blake3 import blake3

from mlcloud import errors
from mlcloud.store import manifest as manifests
from mlcloud.store import sealing
from mlcloud.store.backends import open_backend
from mlcloud.store.blocks import Part, agrees
from mlcloud.store.collector import GRACE_S, Collector, Pruned
from mlcloud.store.collector import KIND as SWEEPS
from mlcloud.store.failures import causes, told
from mlcloud.store.keys import KeySource, load_keys
from mlcloud.store.manifest import ChunkRef, Manifest, Sign, Verify
from mlcloud.store.options import Options, OptionsSource
from mlcloud.store.progress import shown

CHUNK_BYTES = 16 * 2**20

Bytes = bytes | bytearray | memoryview
T = TypeVar("T")
R = TypeVar("R")


class Working:
    """How many operations of this process's stores go on now: what they do is not the user's."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def now(self) -> Iterator[None]:
        with self._lock:
            self.count += 1
        try:
            yield
        finally:
            with self._lock:
                self.count -= 1


WORKING = Working()

_HASH = re.compile(r"[0-9a-f]{64}")
_STEP_FILE = re.compile(r"([0-9]{12})\.json")


@dataclass(frozen=True)
class Usage:
    """What lies in a store: counts, and bytes of the chunks.

    `kinds`: the bytes that manifests of each kind name (what several name counts for each of them),
    as far as they are there;
    `unnamed`: those that none does, which `prune` removes.
    """

    chunks: int
    bytes: int
    manifests: int
    kinds: dict[str, int]
    unnamed: int


class Store:
    """Chunks and manifests under one URL.

    Args:
        url: a path, `file://`, `s3://`, `gs://`, `az://`, or `memory://` (tests).
        key: seal what is written, and read what is sealed: 32 bytes, the name of a file that holds
            them, `env:VARIABLE`, a function that gives them, or a list of these, of which the first
            seals and all open (`keys.new_key` makes one). Steps that are not sealed are read too.
        options: for the cloud's own client, a dict or a function that gives one (`options`).

    Methods may be called from several threads. They raise StoreFull when there is no room, Damaged
    when what was read is not what was written, Sealed when it takes a key that was not given,
    CredentialsExpired when the cloud does not take the present ones, and StoreError, with the
    cause, for the rest.
    """

    def __init__(
        self,
        url: str,
        *,
        key: KeySource | None = None,
        options: OptionsSource | None = None,
    ) -> None:
        self._keys = None if key is None else load_keys(key)
        self._options = None if options is None else Options(options)
        self._backend, self.url = open_backend(url, self._options)
        self._lock = threading.Lock()
        # Chunks that were found damaged here: the next writer of that content replaces them.
        self._suspect: set[str] = set()
        self._untold: set[str] = set()
        self._collector = Collector(self)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> NoReturn:
        raise errors.NotPicklable(
            f"a Store is not pickled, since it may hold a key: pass its URL ({self.url}) and open "
            "it where it is used"
        )

    @property
    def folder(self) -> str:
        """Where it lies on this machine; empty for one that is elsewhere."""
        return str(getattr(self._backend, "root", ""))

    @property
    def uploads(self) -> int:
        """How many chunks are best put at a time, by who puts many."""
        return self._backend.uploads

    @property
    def sealed(self) -> str:
        """The fingerprint of the key that what is written here takes to be read, or empty."""
        return "" if self._keys is None else self._keys.fingerprint

    @property
    def by_url(self) -> bool:
        """Whether its URL alone opens it: there is no key, and no options."""
        return self._keys is None and self._options is None

    # --- chunks -----------------------------------------------------------------------------------

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
        path = _chunk_path(hash_)
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
                return bytes(self._backend.read(_chunk_path(hash)))
            except FileNotFoundError:
                return None

    def exists(self, hash: str) -> bool:
        """Whether a chunk of this name is there (not whether it is undamaged: see `verify`)."""
        with self._doing("read"):
            return self._backend.size(_chunk_path(hash)) is not None

    def missing(self, refs: Iterable[ChunkRef]) -> list[ChunkRef]:
        """Those of these chunks that are not there in their full size, or were found damaged."""

        def absent(ref: ChunkRef) -> ChunkRef | None:
            with self._doing("read"):
                size = self._backend.size(_chunk_path(ref.hash))
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
                self._backend.settle(_chunk_path(ref.hash))

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
        path, whole = _chunk_path(ref.hash), end - start == ref.size
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
            data = self._backend.read(_chunk_path(hash_), room)
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

    # --- manifests --------------------------------------------------------------------------------

    def commit(
        self,
        kind: str,
        name: str,
        step: int,
        body: dict[str, Any],
        *,
        sign: Sign | None = None,
        since: int | None = None,
    ) -> Manifest:
        """Commit a step: create its manifest, once and for ever.

        `body` is plain JSON that names its chunks as `str(ChunkRef)`. All of them must be stored
        before this call. Raises StepExists when somebody else committed this step, and Collected
        when chunks of it were removed meanwhile: put them again, and commit again. `since`: what
        `begin` said before the first of them was put, or found to be there; it spares looking
        whether they are there after each prune that this process has seen.
        """
        path = manifests.path_of(kind, name, step)
        made = stored = Manifest(kind, name, step, datetime.now(timezone.utc), body)
        # Collectors need no key, so what they tell each other is not sealed.
        if self._keys is not None and kind != SWEEPS:
            stored = self._keys.close_body(made)
        raw = stored.to_bytes(sign)
        if kind != SWEEPS and since is None:
            since = self._collector.first
        with self._doing("commit to"):
            try:
                self._backend.create(path, raw)
            except FileExistsError as error:
                # Refused, but perhaps by our own first request, whose answer was lost.
                if not self._is_ours(path, raw):
                    raise errors.StepExists(
                        f"step {step} of {kind} {name!r} is already committed in the store at "
                        f"{self.url}; a committed step is never replaced"
                    ) from error
        if since is not None and not self._collector.check(since, raw):
            with self._doing("commit to"):
                self._backend.delete(path)
            raise errors.Collected(
                f"step {step} of {kind} {name!r} was not committed: chunks of it, which nobody "
                f"named any more, were removed from the store at {self.url} meanwhile; save again"
            )
        return replace(stored, body=made.body)

    def keeps(self, since: int, body: dict[str, Any]) -> bool:
        """Whether all chunks that `body` names are there; `since` as for `commit`.

        For who puts chunks, and has somebody else commit them: while it can still put them again.
        """
        return self._collector.check(since, manifests.canonical(body))

    def begin(self) -> int:
        """What `commit` is to be told of the time before something was put (`since`)."""
        first = self._collector.first
        return max(first, self._collector.look().step)

    def manifest(
        self, kind: str, name: str, step: int, *, verify: Verify | None = None
    ) -> Manifest:
        """A committed step, checked. Raises NoCheckpoint when there is none, Damaged when wrong,
        and Sealed when it takes a key that this store was not given.

        With `verify`, the signature is checked before anything else of it is used.
        """
        path = manifests.path_of(kind, name, step)
        with self._doing("read"):
            try:
                raw = bytes(self._backend.read(path))
            except FileNotFoundError as error:
                raise errors.NoCheckpoint(
                    f"the store at {self.url} has no step {step} of {kind} {name!r}"
                ) from error
        return self._parsed(path, raw, kind, name, step, verify)

    def _parsed(
        self, path: str, raw: bytes, kind: str, name: str, step: int, verify: Verify | None = None
    ) -> Manifest:
        where = f"{self.url}/{path}"
        found = manifests.parse(raw, where, kind, name, step, verify)
        if not found.sealed:
            return found
        if self._keys is None:
            raise sealing.refusal(where, found.sealed, None)
        return self._keys.open_body(found, where)

    def read(
        self, kind: str, name: str, step: int, *, verify: Verify | None = None
    ) -> dict[str, Any]:
        """The body that `commit` was given."""
        return self.manifest(kind, name, step, verify=verify).body

    def steps(self, kind: str, name: str) -> list[int]:
        """The committed steps, in order. Whether they are undamaged shows when they are read."""
        folder = manifests.folder_of(kind, name)
        with self._doing("read"):
            found = [path.rpartition("/")[2] for path, _ in self._backend.list(folder, deep=False)]
        return sorted(int(m.group(1)) for m in map(_STEP_FILE.fullmatch, found) if m)

    def latest(self, kind: str, name: str) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(kind, name), default=None)

    def names(self, kind: str, under: str = "") -> list[str]:
        """The names that have a committed step; `under`: this one, and those that begin with
        `<under>/`."""
        folder = manifests.folder_of(kind, "_").rpartition("/")[0]
        within = manifests.folder_of(kind, under) if under else folder
        with self._doing("read"):
            paths = [path for path, _ in self._backend.list(within, deep=True)]
        parts = [path.removeprefix(folder + "/").rpartition("/") for path in paths]
        return sorted({name for name, _, file in parts if name and _STEP_FILE.fullmatch(file)})

    def verify(
        self, kind: str | None = None, name: str | None = None, step: int | None = None
    ) -> list[str]:
        """Read a step and all its chunks; returns what is wrong, in words. Empty: all is well.

        Without a step all of that name, without a name all of that kind, without a kind all there
        is; each chunk once. Raises Sealed where it takes a key that this store was not given.
        """
        if kind is not None and name is not None and step is not None:
            return self._verify(kind, name, step)
        prefix = "manifests/" + "".join(f"{part}/" for part in (kind, name) if part is not None)
        wrong, refs = list[str](), set[ChunkRef]()
        for path, raw in self.read_manifests():
            if not path.startswith(prefix):
                continue
            _, of, *parts, file = path.split("/")
            number = _STEP_FILE.fullmatch(file)
            try:
                if number is not None:
                    place = (of, "/".join(parts), int(number.group(1)))
                    self._parsed(path, raw, *place)
            except errors.Sealed:
                raise
            except errors.MLCloudError as error:
                wrong.append(str(error))
            refs |= manifests.refs_in(raw)
        return wrong + self._problems(refs)

    def _verify(self, kind: str, name: str, step: int) -> list[str]:
        try:
            body = self.read(kind, name, step)
        except errors.Damaged as error:
            return [str(error)]
        return self._problems(manifests.refs_in(manifests.canonical(body)))

    def _problems(self, refs: Iterable[ChunkRef]) -> list[str]:
        ordered, wrong = sorted(refs, key=str), list[str]()
        with shown("verifying", sum(ref.size for ref in ordered)) as told:
            for ref, problem in zip(ordered, self.each(self._problem, ordered), strict=True):
                told(ref.size)
                wrong += [problem] if problem else []
        return wrong

    def _problem(self, ref: ChunkRef) -> str | None:
        try:
            self._get(ref.hash, ref.size, None)
        except errors.Damaged as error:
            return str(error)
        return None

    def _is_ours(self, path: str, raw: bytes) -> bool:
        try:
            return bytes(self._backend.read(path)) == raw
        except FileNotFoundError:  # the other one took it away again
            return False

    # --- marks ------------------------------------------------------------------------------------

    def write_mark(self, name: str, data: bytes) -> None:
        """Write or replace a few bytes under a name: a sign of life, not a commit."""
        with self._doing("write"):
            self._backend.put(_mark_path(name), memoryview(data), durable=False)

    def read_mark(self, name: str) -> bytes | None:
        """What `write_mark` wrote last, or None."""
        with self._doing("read"):
            try:
                return bytes(self._backend.read(_mark_path(name)))
            except FileNotFoundError:
                return None

    # --- room -------------------------------------------------------------------------------------

    def discard(self, kind: str, name: str, step: int) -> None:
        """Remove a step's manifest. Its chunks stay until they are swept."""
        with self._doing("remove a step from"):
            self._backend.delete(manifests.path_of(kind, name, step))

    def size(self) -> tuple[int, int]:
        """Bytes and number of the chunks and manifests, by listing them: no file is read."""
        with self._doing("read"):
            sizes = [
                size
                for folder in ("chunks", "manifests")
                for _, size in self._backend.list(folder, deep=True)
            ]
        return sum(sizes), len(sizes)

    def usage(self) -> Usage:
        """Counts and sizes, by listing everything and reading the manifests."""
        kinds: dict[str, set[str]] = {}
        for path, raw in self.read_manifests():
            names = {ref.hash for ref in manifests.refs_in(raw)}
            kinds.setdefault(path.split("/")[1], set()).update(names)
        kinds.pop(SWEEPS, None)
        named = {name for names in kinds.values() for name in names}
        with self._doing("read"):
            # As they lie there: a sealed one is a little longer than its reference says.
            chunks = {
                path.rpartition("/")[2]: size
                for path, size in self._backend.list("chunks", deep=True)
            }
            own = manifests.folder_of(SWEEPS, "_").rpartition("/")[0] + "/"
            paths = [path for path, _ in self._backend.list("manifests", deep=True)]
            count = sum(not path.startswith(own) for path in paths)
        return Usage(
            len(chunks),
            sum(chunks.values()),
            count,
            {kind: sum(chunks.get(name, 0) for name in kinds[kind]) for kind in sorted(kinds)},
            sum(size for name, size in chunks.items() if name not in named),
        )

    def prune(self, *, grace_s: float = GRACE_S) -> Pruned:
        """Remove chunks that no manifest names, safely while others write to this store.

        Two calls, at least `grace_s` apart: the first marks them, the second removes those that
        are still unnamed and were not written since. With 0 one call does both; who is saving then
        may have to upload once more. Raises `Conflict` where another process prunes.
        """
        return self._collector.prune(grace_s)

    # --- for the collector ------------------------------------------------------------------------

    @property
    def clock_s(self) -> float:
        """By how much the times of `chunks` may be too early."""
        return self._backend.clock_s

    def now(self) -> float:
        """The time by the clock that the store's files have theirs from."""
        with self._doing("write"):
            self._backend.put("marks/clock", memoryview(b"now"), durable=False)
            times = {path: written for path, _, written in self._backend.times("marks")}
            return times["marks/clock"]

    def chunks(self) -> Iterator[tuple[str, int, float]]:
        """(hash, size, when it was written) of all chunks there are."""
        with self._doing("read"):
            for path, size, written in self._backend.times("chunks"):
                yield path.rpartition("/")[2], size, written

    def read_manifests(self) -> Iterator[tuple[str, bytes]]:
        """(path, text) of all manifests, valid or not."""

        def read(path: str) -> tuple[str, bytes] | None:
            with self._doing("read"), contextlib.suppress(FileNotFoundError):
                return path, bytes(self._backend.read(path))
            return None

        with self._doing("read"):
            paths = [path for path, _ in self._backend.list("manifests", deep=True)]
        for found in self.each(read, paths):
            if found is not None:
                yield found

    def remove_manifest(self, path: str) -> None:
        with self._doing("remove a step from"):
            self._backend.delete(path)

    def remove_chunks(self, chunks: Iterable[tuple[str, int]]) -> Iterator[int]:
        """Their sizes, each when it is removed."""

        def remove(chunk: tuple[str, int]) -> int:
            with self._doing("remove chunks from"):
                self._backend.delete(_chunk_path(chunk[0]))
            return chunk[1]

        yield from self.each(remove, chunks)

    # --- plumbing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _doing(self, verb: str) -> Iterator[None]:
        """Turn what filesystems and cloud clients raise into the store's errors."""
        try:
            with WORKING.now():
                yield
        except errors.MLCloudError:
            raise
        except Exception as error:
            hidden = self._options
            brief = f"{type(error).__name__}: {error}"
            made = told(verb, self.url, error, hidden.without_secrets(brief) if hidden else brief)
            # A cloud's client may put into its message what it was given.
            if hidden and any(hidden.hides(str(each)) for each in causes(error)):
                raise made from None
            raise made from error

    def each(
        self, call: Callable[[T], R], items: Iterable[T], *, width: int | None = None
    ) -> Iterator[R]:
        """`map` with a few threads and a bounded number of items in flight; results in order."""
        width = min(self._backend.parallel, width or self._backend.parallel)
        if width == 1:
            yield from map(call, items)
            return
        waiting: deque[Future[R]] = deque()
        pool = ThreadPoolExecutor(width, thread_name_prefix="mlcloud-store")
        try:
            for item in items:
                if len(waiting) > width:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(call, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def join(url: str, *parts: str) -> str:
    """A store URL below another: `join("s3://b/x/", "y") == "s3://b/x/y"`. Parts may not climb."""
    for part in parts:
        for segment in part.strip("/").split("/"):
            if segment in {"", ".", ".."}:
                raise errors.UsageError(f"{part!r} is no place below {url!r}")
        url = url.rstrip("/") + "/" + part.strip("/") if url != "/" else "/" + part.strip("/")
    return url


def chunks_of(size: int) -> int:
    """How many chunks a buffer of `size` bytes takes."""
    return -(-size // CHUNK_BYTES)


def _starts(view: memoryview) -> range:
    return range(0, view.nbytes, CHUNK_BYTES)


def _flat(data: Bytes) -> memoryview:
    view = memoryview(data)
    # A view with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def _chunk_path(hash_: str) -> str:
    if not _HASH.fullmatch(hash_):
        raise errors.UsageError(f"{hash_[:100]!r} is no blake3 hash (64 hex digits)")
    return f"chunks/{hash_[:2]}/{hash_}"


def _mark_path(name: str) -> str:
    return f"marks/{manifests.folder_of('marks', name).rpartition('/')[2]}"
