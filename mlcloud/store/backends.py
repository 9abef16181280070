"""Where the bytes lie: a local disk, an object store, or memory, behind one small contract.

The store needs seven operations and one promise. The operations are `read`, `read_range`, `size`,
`put`, `create`, `list` and `delete`, on paths relative to the store's root. The promise: a reader
sees a file whole or not at all, and `create` has exactly one winner however many processes race.
Each kind of place keeps that promise in its own way, so there is one class per way:

    LocalBackend         temp file + fsync, then rename (put) or hard link (create), then fsync of
                         the folder. The plain `os` module: no fsspec between us and the disk.
    ConditionalBackend   S3, GCS, Azure: one PUT is atomic there, and `pipe_file(mode="create")` is
                         a conditional request (`If-None-Match: *`, `ifGenerationMatch=0`,
                         `overwrite=False`) that the server decides.
    MemoryBackend        fsspec's memory://, for tests; `create` under a lock of this process.

Anything else is refused: fsspec's generic "create" asks whether the file exists and then writes,
and two writers that race there both believe they won.

Backends raise plain `OSError`s (`FileExistsError`, `FileNotFoundError`, ENOSPC, …); `Store` turns
them into `mlcloud.errors`. Transient remote errors are tried four times with exponential backoff.
Credentials that have expired are looked for once more where they come from: an environment, a
profile or a function that was renewed meanwhile is taken up without a new process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlcloud import errors
from mlcloud.store import direct
from mlcloud.store.allocation import reserve
from mlcloud.store.failures import (
    is_transient,
    says_beyond,
    says_exists,
    says_expired,
    says_only_no,
)
from mlcloud.store.options import Options
from mlcloud.units import parse_moment

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")
Connect = Callable[[bool], "tuple[AbstractFileSystem, str]"]

#: Protocols whose `pipe_file(mode="create")` is decided by the server.
S3 = {"s3", "s3a"}
CONDITIONAL = {*S3, "gs", "gcs", "az", "abfs", "abfss"}

#: A temp file this old belongs to a process that was killed while it wrote.
STALE_TEMP_S = 24 * 3600.0

# Where filesystems say when a file was written: S3, GCS, Azure, memory.
_TIMES = ("LastModified", "mtime", "updated", "last_modified", "created")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


class Backend(ABC):
    """Files under one root. Paths are relative and use `/`. Safe to call from several threads.

    `parallel` is how many calls at a time are useful here, `uploads` how many chunks are put at a
    time: fewer, where the client copies what it sends.
    """

    parallel: int
    uploads = 4
    clock_s = 2.0  # by which times of files may be too early
    in_place = False  # whether `read` fills `into` without a copy

    @abstractmethod
    def read(self, path: str, into: memoryview | None = None) -> bytes | memoryview:
        """The whole file. With `into`, fill it if the file has exactly its size.

        Returns `into` or new bytes (whose length may differ from `into`'s: the caller checks).
        Raises FileNotFoundError.
        """

    @abstractmethod
    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`; fewer where the file is shorter. Raises FileNotFoundError."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """The file's size in bytes, or None when there is none."""

    @abstractmethod
    def put(
        self, path: str, data: memoryview, *, durable: bool = True, cached: bool = True
    ) -> None:
        """Write or replace the file, atomically.

        It survives a power loss; with `durable=False`, not before `settle`. `cached=False`: nobody
        is about to read it here, so it need not take this machine's time and memory to be at hand.
        """

    @abstractmethod
    def create(self, path: str, data: bytes) -> None:
        """Write the file if there is none, atomically and durably; else FileExistsError.

        May raise FileExistsError although this very call wrote the file (a response was lost and
        the request repeated): the caller reads it back and looks whose it is.
        """

    @abstractmethod
    def list(self, folder: str, *, deep: bool) -> Iterator[tuple[str, int]]:
        """(path, size) of the files in `folder`, or anywhere below it when `deep`.

        A folder that does not exist is empty.
        """

    @abstractmethod
    def times(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """(path, size, when it was written) of all files below it, in seconds of its own clock."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove the file; it is no error when there is none."""

    def settle(self, path: str) -> None:  # noqa: B027  (nothing to do on most backends)
        """Make sure that a file which is there, whoever wrote it, survives a power loss."""


class LocalBackend(Backend):
    """A folder on a disk that has hard links and atomic renames (also NFS, EFS, FSx, Lustre)."""

    parallel = 4
    clock_s = 0.0
    in_place = True

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._cleaned = False

    def read(self, path: str, into: memoryview | None = None) -> bytes | memoryview:
        with open(self.root / path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if into is None or into.nbytes != size:
                return file.readall()
            done = 0
            while done < size:
                count = file.readinto(into[done:])
                if not count:
                    return bytes(into[:done])
                done += count
            return into

    def read_range(self, path: str, start: int, end: int) -> bytes:
        with open(self.root / path, "rb", buffering=0) as file:
            found = bytearray()
            while start < end and (piece := os.pread(file.fileno(), end - start, start)):
                found += piece
                start += len(piece)
            return bytes(found)

    def size(self, path: str) -> int | None:
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def put(
        self, path: str, data: memoryview, *, durable: bool = True, cached: bool = True
    ) -> None:
        final = self.root / path
        temp = self._write_temp(data, durable, cached)
        try:
            _make_dirs(final.parent)
            os.replace(temp, final)
        except BaseException:
            _unlink(temp)
            raise
        if durable:
            _fsync_dir(final.parent)

    def create(self, path: str, data: bytes) -> None:
        final = self.root / path
        temp = self._write_temp(memoryview(data))
        try:
            _make_dirs(final.parent)
            os.link(temp, final)
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise OSError(
                    error.errno,
                    "this filesystem refuses hard links, which a commit needs; use a local disk, "
                    "NFS, or the bucket's own URL",
                    str(final),
                ) from error
            raise
        finally:
            _unlink(temp)
        _fsync_dir(final.parent)

    def list(self, folder: str, *, deep: bool) -> Iterator[tuple[str, int]]:
        for path, size, _ in self._walk(folder, deep=deep):
            yield path, size

    def times(self, folder: str) -> Iterator[tuple[str, int, float]]:
        yield from self._walk(folder, deep=True)

    def _walk(self, folder: str, *, deep: bool) -> Iterator[tuple[str, int, float]]:
        try:
            entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    yield from self._walk(path, deep=True)
                continue
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                yield path, found.st_size, found.st_mtime

    def delete(self, path: str) -> None:
        _unlink(self.root / path)

    def settle(self, path: str) -> None:
        # The writer may not have come to its own fsync yet, or may have left it to us. For a file
        # that is on the disk already this costs next to nothing.
        final = self.root / path
        _fsync(final)
        _fsync_dir(final.parent)

    def _write_temp(self, data: memoryview, durable: bool = True, cached: bool = True) -> Path:
        folder = self.root / "tmp"
        _make_dirs(folder)
        self._clean(folder)
        temp = folder / uuid.uuid4().hex
        try:
            with open(temp, "xb", buffering=0) as file:
                reserve(file.fileno(), data.nbytes)
                done = 0 if cached else direct.write(file.fileno(), data)
                while done < data.nbytes:
                    done += file.write(data[done:])
                if durable:
                    os.fsync(file.fileno())
        except BaseException:
            _unlink(temp)
            raise
        return temp

    def _clean(self, folder: Path) -> None:
        """Once per process: what processes that were killed in the middle of a write left."""
        if self._cleaned:
            return
        self._cleaned = True
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > STALE_TEMP_S:
                    _unlink(Path(entry.path))


class ConditionalBackend(Backend):
    """An object store: a PUT is whole or nothing, and a conditional PUT has one winner."""

    parallel = 8
    attempts = 4

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._fresh = False  # not an instance that was made with earlier credentials
        self._lock = threading.Lock()
        self._fs: tuple[int, AbstractFileSystem, str] | None = None
        self._decides = False  # the server was seen to refuse the second of two creates

    @property
    def fs(self) -> AbstractFileSystem:
        return self._connected()[0]

    def _connected(self) -> tuple[AbstractFileSystem, str]:
        # Asynchronous filesystems do not survive a fork: a child process connects anew.
        pid = os.getpid()
        with self._lock:
            if self._fs is None or self._fs[0] != pid:
                self._fs = (pid, *self._connect(self._fresh))
            return self._fs[1], self._fs[2]

    def _renew(self, old: AbstractFileSystem) -> None:
        """Connect anew, with the credentials of now, unless another thread has done so."""
        with self._lock:
            if self._fs is not None and self._fs[1] is old:
                self._fs, self._fresh = None, True

    def _at(self, path: str) -> str:
        return f"{self._connected()[1].rstrip('/')}/{path}"

    def read(self, path: str, into: memoryview | None = None) -> bytes | memoryview:
        if into is None:
            data: bytes = self._retry(lambda: self.fs.cat_file(self._at(path)))
            return data
        # By its range, or s3fs asks for the size first. One byte more shows a file that is longer.
        try:
            data = self.read_range(path, 0, into.nbytes + 1)
        except Exception as error:
            if not says_beyond(error):
                raise
            data = b""
        if into.nbytes != len(data):
            return data
        into[:] = data
        return into

    def read_range(self, path: str, start: int, end: int) -> bytes:
        found: bytes = self._retry(lambda: self.fs.cat_file(self._at(path), start=start, end=end))
        return found

    def size(self, path: str) -> int | None:
        try:
            return int(self._retry(lambda: self.fs.info(self._at(path)))["size"])
        except FileNotFoundError:
            return None

    def put(
        self, path: str, data: memoryview, *, durable: bool = True, cached: bool = True
    ) -> None:
        # Clients want bytes: one copy of one chunk, for each of the few uploads in flight.
        body = bytes(data)
        self._retry(lambda: self.fs.pipe_file(self._at(path), body))

    def create(self, path: str, data: bytes) -> None:
        self.probe()
        self._retry(lambda: self.fs.pipe_file(self._at(path), data, mode="create"))

    def probe(self) -> None:
        """Once: that this server refuses to create what is there. Raises OSError if it does not.

        Some take the condition's header and ignore it, and two writers would both have committed.
        """
        if self._decides:
            return
        path = f"marks/probe-{uuid.uuid4().hex}"
        try:
            for _ in range(2):
                self._retry(lambda: self.fs.pipe_file(self._at(path), b"?", mode="create"))
        except FileExistsError:
            self._decides = True
            return
        finally:
            with contextlib.suppress(Exception):
                self.delete(path)
        raise OSError(
            errno.ENOTSUP,
            "the server does not refuse to create an object that is there, so two writers could "
            "both believe they committed: use one that supports conditional writes (AWS S3, "
            "Google Cloud Storage, Azure Blob Storage, SeaweedFS do)",
        )

    def list(self, folder: str, *, deep: bool) -> Iterator[tuple[str, int]]:
        for path, entry in self._entries(folder, deep=deep):
            yield path, int(entry["size"])

    def times(self, folder: str) -> Iterator[tuple[str, int, float]]:
        for path, entry in self._entries(folder, deep=True):
            found = next((entry[name] for name in _TIMES if entry.get(name)), None)
            if isinstance(found, int | float):  # memory
                found = datetime.fromtimestamp(found, timezone.utc)
            if isinstance(found, str):  # GCS, in older versions of its client
                found = parse_moment(found)
            if not isinstance(found, datetime):
                raise OSError(errno.ENOTSUP, "it does not say when a file was written", path)
            if found.tzinfo is None:
                found = found.replace(tzinfo=timezone.utc)
            yield path, int(entry["size"]), found.timestamp()

    def _entries(self, folder: str, *, deep: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        root = self._at("")

        def find() -> dict[str, dict[str, Any]]:
            try:
                if not deep:  # `find` with a depth takes a folder that cannot be listed for empty
                    entries = self.fs.ls(root + folder, detail=True)
                    return {str(entry["name"]): entry for entry in entries}
                return dict(self.fs.find(root + folder, detail=True))
            except FileNotFoundError:
                return {}

        prefix = root.lstrip("/")
        for name, entry in sorted(self._retry(find).items()):
            relative = name.lstrip("/").removeprefix(prefix)
            # Some servers list a "folder" as an empty object with its own name.
            if entry.get("type") == "file" and relative.startswith(folder + "/"):
                yield relative, entry

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self.fs.rm_file(self._at(path)))

    def _retry(self, call: Callable[[], T]) -> T:
        attempt, renewed = 1, False
        while True:
            fs: AbstractFileSystem | None = None
            try:
                fs = self._connected()[0]
                return call()
            except Exception as error:
                if says_exists(error):
                    raise FileExistsError(errno.EEXIST, str(error)) from error
                why = self._why(fs, error) if fs and says_only_no(error) else error
                if says_expired(why) and fs and not renewed:
                    renewed = True
                    self._renew(fs)
                    continue
                if attempt == self.attempts or not is_transient(why):
                    raise why from why.__cause__
            time.sleep(min(5.0, 0.2 * 4 ** (attempt - 1)) * (0.5 + random.random()))
            attempt += 1

    def _why(self, fs: AbstractFileSystem, error: Exception) -> Exception:
        """The reason of a refusal that came without one, as those of HEAD requests do."""
        try:
            # A range, since for the whole of a file s3fs asks its size first, by HEAD.
            fs.cat_file(self._at("marks/why"), start=0, end=1)
        except Exception as told:
            if not says_only_no(told) and not isinstance(told, FileNotFoundError):
                return told
        return error


class MemoryBackend(ConditionalBackend):
    """fsspec's memory filesystem, shared by everything in this process."""

    parallel = 1
    attempts = 1
    clock_s = 0.0
    _creating = threading.Lock()

    def create(self, path: str, data: bytes) -> None:
        with self._creating:
            if self.fs.exists(self._at(path)):
                raise FileExistsError(errno.EEXIST, "exists", path)
            self.fs.pipe_file(self._at(path), data)


def open_backend(url: str, options: Options | None = None) -> tuple[Backend, str]:
    """The backend for a URL or a plain path, and the URL in its full form.

    `options` go to the filesystem of a cloud.
    """
    match = re.match(r"^([a-z0-9+.-]+)://", url, re.IGNORECASE)
    protocol = match.group(1).lower() if match else "file"
    rest = url[match.end() :] if match else url
    if not rest.strip("/") and protocol != "memory":
        raise errors.UsageError(f"store {url!r} names no place; write s3://bucket/folder or a path")
    if ":" in rest.split("/")[0].rpartition("@")[0]:
        raise errors.UsageError(
            "a store URL must not hold a password: it is shown and logged. Put the credentials "
            "where the cloud's own tools find them (environment, profile, instance role)"
        )
    if options is not None and protocol not in CONDITIONAL:
        raise errors.UsageError(f"store {url!r} takes no options: they are for a cloud's client")
    if protocol in {"file", "local"}:
        path = os.path.abspath(os.path.expanduser(rest))
        return LocalBackend(path), f"file://{path}"
    if protocol != "memory" and protocol not in CONDITIONAL:
        known = ", ".join(sorted({"file", "memory", *CONDITIONAL}))
        raise errors.UsageError(
            f"store {url!r}: {protocol}:// cannot create a file conditionally, so two writers "
            f"could both believe they committed. Use one of: {known}"
        )

    def connect(fresh: bool) -> tuple[AbstractFileSystem, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise errors.StoreError(f"store {url!r} needs fsspec: pip install fsspec") from error
        try:
            given = {} if options is None else options.now()
            if protocol in S3:
                from mlcloud.store.s3 import options_for

                given = options_for(given)
            if fresh:
                given["skip_instance_cache"] = True
            # Listings must be fresh: another process commits steps while we run.
            fs, root = url_to_fs(url, **given, use_listings_cache=False)
        except ImportError as error:
            raise errors.StoreError(f"store {url!r} cannot be opened: {error}") from error
        return fs, str(root)

    if protocol == "memory":
        return MemoryBackend(connect), url
    if protocol in S3:
        from mlcloud.store.s3 import S3Backend

        return S3Backend(connect), url
    return ConditionalBackend(connect), url


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _fsync_dir(path: Path) -> None:
    if os.name != "nt":  # a folder cannot be opened there, and needs no fsync
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_dirs(path: Path) -> None:
    """`mkdir -p` whose new entries survive a power loss."""
    if path.is_dir():
        return
    _make_dirs(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    _fsync_dir(path.parent)
