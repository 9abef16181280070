"""Data of a bucket as a local folder, read once and kept on this machine's disk.

    mlcloud.data("s3://bucket/images")  ─► PosixPath('~/.mlcloud/data/<id>/files')

    <id>/files/…       the objects' files, read-only; replaced one by one when an object changes
    <id>/index.json    what is here: each file's mark, and when it was used last
    <id>/parts/…       what is being read, or was when its reader died
    <id>/leases/…      the processes that use it
    <id>.lock          held by who changes it; a second process waits, and finds it done

Together the folders have `cache` bytes at most: those used longest ago go first, and never one that
a process uses. A listing is asked for at each call, so that what is new in the bucket comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from blake3 import blake3

from mlcloud import errors
from mlcloud.store import fetching, progress, residency
from mlcloud.store.listing import Entry, Listing, check_region, look
from mlcloud.units import format_bytes, parse_size

CACHE = "20GB"
ROUNDS = 3

Tell = Callable[[int, int], object]  # bytes that are here, of how many


def data(
    url: str,
    *,
    cache: str | int = CACHE,
    folder: str | os.PathLike[str] | None = None,
    tell: Tell | None = None,
) -> Path:
    """A local folder with the files under `url` (`s3://`, `gs://`, `az://`, `https://`, `file://`).

    For the URL of one object it is that file's path. What is here already is not read again: an
    object is known by its ETag, else by its size and time. `cache` is what all such folders of this
    machine may have on its disk; `folder`, where they are (`MLCLOUD_HOME/data`). `tell` hears how
    far it is, in place of a bar after half a second. The files are read-only: what this returns may
    be another process's too.

    Raises `NotFound` where nothing is there, `DataTooLarge` where it does not fit, `UsageError`
    where the bucket is in a region that the cluster's `regions` do not allow, `StoreError` where it
    cannot be read; called again after that, it goes on where it was.
    """
    from mlcloud.config import Settings
    from mlcloud.store.access import WORKING

    limit = parse_size(cache) if isinstance(cache, str) else int(cache)
    place = Path(folder) if folder is not None else Settings().home / "data"
    with WORKING.now():  # what it does is no effect of the cell's
        return DataCache(place, limit).bring(url, tell)


class DataCache:
    """All data folders of a machine, under `folder`, with `limit` bytes in all."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder.expanduser().resolve()
        self._limit = limit

    def bring(self, url: str, tell: Tell | None = None) -> Path:
        """As `data`."""
        url = url.rstrip("/")
        found = look(url)
        check_region(found, *residency.here())
        if found.size > self._limit:
            raise errors.DataTooLarge(
                f"{url} has {format_bytes(found.size)} in {len(found.entries):,} files, and the "
                f"cache may have {format_bytes(self._limit)}: raise `cache`, or give a narrower "
                "prefix"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        mount = Mount(self.folder, url)
        with mount.locked():
            mount.lease()
            for _ in range(ROUNDS):
                try:
                    self._complete(mount, found, tell)
                    if (again := look(url)).entries == found.entries:
                        break
                    found = again  # it changed meanwhile
                except fetching.Changed:
                    found = look(url)
            else:
                raise errors.StoreError(
                    f"{url} changes faster than it can be read: copy it to a prefix that stays"
                )
            mount.reserve(0)
        return mount.files / next(iter(found.entries)) if found.alone else mount.files

    def _complete(self, mount: Mount, found: Listing, tell: Tell | None) -> None:
        here = mount.here()
        lacking = [entry for path, entry in found.entries.items() if here.get(path) != entry.mark]
        mount.drop(here.keys() - found.entries.keys())
        size = sum(entry.size for entry in lacking)
        if not lacking:
            return
        self._make_room(mount, found.size, size)
        with progress.shown(f"reading {mount.url}", size) as bar:
            done = 0

            def told_of(count: int) -> None:
                nonlocal done
                done += count
                bar(count)
                if tell is not None:
                    tell(done, size)

            try:
                fetching.fetch(found.fs, lacking, mount.parts, mount.place, told_of)
            finally:
                mount.save()
        fetching.clean(mount.parts)

    def _make_room(self, mount: Mount, total: int, new: int) -> None:
        """Remove folders that nobody uses, oldest use first, until `total` bytes fit."""
        import filelock

        with filelock.FileLock(self.folder / "room.lock"):
            others = [
                other
                for path in self.folder.glob("*/index.json")
                if (other := Mount.of(path)) is not None and other.id != mount.id
            ]
            others.sort(key=lambda each: each.used_at)
            left = sum(each.size for each in others)
            free = shutil.disk_usage(self.folder).free
            for other in others:
                if left + total <= self._limit and new < free:
                    break
                size = other.size
                if other.removed():
                    left, free = left - size, free + size
            if left + total > self._limit:
                raise errors.DataTooLarge(
                    f"{mount.url} has {format_bytes(total)}; other data that is in use has "
                    f"{format_bytes(left)}, and the cache may have {format_bytes(self._limit)}: "
                    "raise `cache`"
                )
            if new >= free:
                raise errors.DataTooLarge(
                    f"{format_bytes(new)} of {mount.url} are to be read, and the disk of "
                    f"{self.folder} has {format_bytes(free)} free: give a larger `disk`, or a "
                    "narrower prefix"
                )
            mount.reserve(total)


class Mount:
    """The folder of one URL."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.id = blake3(url.encode()).hexdigest()[:24]
        self._folder = folder / self.id
        self._lock = folder / f"{self.id}.lock"
        self.files, self.parts = self._folder / "files", self._folder / "parts"
        self._leases = self._folder / "leases"
        self._index: dict[str, Any] = self._read()

    @classmethod
    def of(cls, index: Path) -> Mount | None:
        """The one that has this index."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return cls(index.parent.parent, json.loads(index.read_text())["url"])
        return None

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder / "index.json").read_text())
        except (OSError, ValueError):
            found = {"files": {}, "used_at": 0.0}
        return {**found, "url": self.url}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone, also among processes."""
        import filelock

        with filelock.FileLock(self._lock):
            self._index = self._read()
            self.files.mkdir(parents=True, exist_ok=True)
            yield

    # --- files ------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes that it has, or will have."""
        here: int = sum(size for _, size, _ in self._index["files"].values())
        return max(here, int(self._index.get("reserved", 0)))

    @property
    def used_at(self) -> float:
        return float(self._index["used_at"])

    def here(self) -> dict[str, str]:
        """The mark of each file that is here, as it was put here."""
        found: dict[str, str] = {}
        for path, (mark, size, mtime) in self._index["files"].items():
            with contextlib.suppress(OSError):
                facts = (self.files / path).lstat()
                if (facts.st_size, facts.st_mtime_ns) == (size, mtime):
                    found[path] = mark
        return found

    def place(self, entry: Entry, part: Path) -> None:
        """A file that is whole, into its place."""
        target = self.files / entry.path
        for parent in reversed(target.relative_to(self.files).parents[:-1]):
            folder = self.files / parent
            if folder.is_file():  # a key that was a file is a prefix now
                folder.unlink()
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o444)
        os.replace(part, target)
        self._index["files"][entry.path] = [entry.mark, entry.size, target.lstat().st_mtime_ns]

    def drop(self, paths: Any) -> None:
        """Files whose objects are gone."""
        for path in list(paths):
            (self.files / path).unlink(missing_ok=True)
            del self._index["files"][path]
            for parent in (self.files / path).parents:
                if parent == self.files:
                    break
                with contextlib.suppress(OSError):  # it has others
                    parent.rmdir()

    def reserve(self, size: int) -> None:
        """Others must leave so much room, from before the first of it is here."""
        self._index["reserved"] = size
        self.used()

    def used(self) -> None:
        self._index["used_at"] = time.time()
        self.save()

    def save(self) -> None:
        new = self._folder / f"index.{os.getpid()}"
        new.write_text(json.dumps(self._index))
        os.replace(new, self._folder / "index.json")

    # --- who uses it ------------------------------------------------------------------------------

    def lease(self) -> None:
        """This process uses it, as long as it lives."""
        self._leases.mkdir(parents=True, exist_ok=True)
        began = psutil.Process().create_time()
        (self._leases / f"{os.getpid()}-{began:.2f}").touch()

    def is_used(self) -> bool:
        used = False
        with contextlib.suppress(OSError):
            for path in list(self._leases.iterdir()):
                if _lives(path.name):
                    used = True
                else:
                    path.unlink(missing_ok=True)
        return used

    def removed(self) -> bool:
        """Remove it, unless somebody uses it or is about to."""
        import filelock

        try:
            with filelock.FileLock(self._lock, timeout=0):
                if self.is_used():
                    return False
                shutil.rmtree(self._folder, ignore_errors=True)
                return True
        except filelock.Timeout:
            return False


def _lives(lease: str) -> bool:
    pid, _, began = lease.partition("-")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == began
    except (psutil.Error, ValueError):
        return False
