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
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from mlcloud import errors
from mlcloud.store import manifest as manifests
from mlcloud.store import sealing
from mlcloud.store.chunks import Chunks, chunk_path
from mlcloud.store.collector import GRACE_S, Checked, Collector, Pruned
from mlcloud.store.collector import KIND as SWEEPS
from mlcloud.store.keys import KeySource
from mlcloud.store.manifest import ChunkRef, Manifest, Sign, Verify
from mlcloud.store.options import OptionsSource
from mlcloud.store.progress import shown

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


class Store(Chunks):
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
        super().__init__(url, key, options)
        self._collector = Collector(self)

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
        if since is not None and not self._stays(since, path, raw):
            raise errors.Collected(
                f"step {step} of {kind} {name!r} was not committed: chunks of it, which nobody "
                f"named any more, were removed from the store at {self.url} meanwhile; save again"
            )
        return replace(stored, body=made.body)

    def _stays(self, since: int, path: str, raw: bytes) -> bool:
        """Whether a manifest that was just created is there, with all that it names."""
        checked = self._collector.check(since, raw)
        if checked is Checked.QUIET:
            return True
        with self._doing("commit to"):
            # Its chunks may be there for another's sake, put when a sweep had taken it back.
            if not self._is_ours(path, raw):
                return False
            if checked is Checked.GONE:
                self._backend.delete(path)
        return checked is Checked.THERE

    def keeps(self, since: int, body: dict[str, Any]) -> bool:
        """Whether all chunks that `body` names are there; `since` as for `commit`.

        For who puts chunks, and has somebody else commit them: while it can still put them again.
        """
        return self._collector.check(since, manifests.canonical(body)) is not Checked.GONE

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

    def committed(self, kind: str) -> Iterator[tuple[str, int, float]]:
        """Every committed step of a kind: its name, its number, and when it was written, in seconds
        of the store's own clock. Lists files, and reads none."""
        folder = manifests.folder_of(kind, "_").rpartition("/")[0]
        with self._doing("read"):
            found = list(self._backend.times(folder))
        for path, _, at in found:
            name, _, file = path.removeprefix(folder + "/").rpartition("/")
            step = _STEP_FILE.fullmatch(file)
            if name and step:
                yield name, int(step.group(1)), at

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
                self._backend.delete(chunk_path(chunk[0]))
            return chunk[1]

        yield from self.each(remove, chunks)


def _mark_path(name: str) -> str:
    return f"marks/{manifests.folder_of('marks', name).rpartition('/')[2]}"
