"""Objects into files: by blocks, a few at a time, and taken up again where it was cut short.

    fetch(fs, entries, parts, place)     block ─► parts/<hash>, at its place
                                              └─► parts/<hash>.done, a line a block
                                         all of a file's ─► `place(entry, part)`

Whoever dies in the middle leaves a part with the list of its blocks, for the object of that mark
alone. Since what was written may not be on the disk after a crash of the machine, parts from before
its start are begun anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from mlcloud import errors
from mlcloud.store.failures import is_transient, told
from mlcloud.store.listing import Entry

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BLOCK = 16 << 20
PARALLEL = 8
TRIES = 4
PAUSE_S = 0.3

Told = Callable[[int], object]


class Changed(Exception):
    """An object is another one than was listed."""


def fetch(
    fs: AbstractFileSystem,
    entries: Iterable[Entry],
    parts: Path,
    place: Callable[[Entry, Path], None],
    told_of: Told = lambda count: None,
) -> None:
    """Read these, and call `place` with each that is whole: from any thread, once.

    `told_of` hears of bytes, those of blocks that were here included; on the calling thread.
    Raises `Changed`, `StoreError`.
    """
    parts.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="mlcloud-data") as pool:
        jobs = []
        for entry in entries:
            part = _Part(fs, entry, parts, place)
            told_of(entry.size - sum(size for _, size in part.left))
            if part.left:
                jobs += [pool.submit(part.read, start, size) for start, size in part.left]
            else:
                jobs.append(pool.submit(part.end))
        try:
            for job in as_completed(jobs):
                told_of(job.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Part:
    """One file on its way."""

    def __init__(
        self,
        fs: AbstractFileSystem,
        entry: Entry,
        parts: Path,
        place: Callable[[Entry, Path], None],
    ) -> None:
        self._fs, self._entry, self._place = fs, entry, place
        name = blake3(f"{entry.key}\0{entry.mark}".encode()).hexdigest()[:40]
        self._file, self._done = parts / name, parts / f"{name}.done"
        self._lock = threading.Lock()
        here = self._here()
        blocks = range(0, entry.size, BLOCK)
        self.left = [
            (start, min(BLOCK, entry.size - start)) for start in blocks if start not in here
        ]
        self._waits = len(self.left)

    def _here(self) -> set[int]:
        import psutil

        try:
            if self._file.exists() and self._done.stat().st_mtime > psutil.boot_time():
                lines = self._done.read_text().split("\n")
                return {int(line) for line in lines[:-1]}  # the last may be cut
        except (OSError, ValueError):
            pass
        for path in (self._file, self._done):
            path.unlink(missing_ok=True)
        return set()

    def read(self, start: int, size: int) -> int:
        """One block; the last one also ends the file."""
        data = self._asked(start, size)
        if len(data) != size:
            raise Changed(self._entry.path)
        file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            view, at = memoryview(data), start
            while view:
                written = os.pwrite(file, view, at)
                view, at = view[written:], at + written
        finally:
            os.close(file)
        with self._lock:
            with open(self._done, "a") as done:
                done.write(f"{start}\n")
            self._waits -= 1
            last = not self._waits
        if last:
            self.end()
        return size

    def end(self) -> int:
        """Put the file into its place."""
        file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, self._entry.size)
            os.fsync(file)
        finally:
            os.close(file)
        self._place(self._entry, self._file)
        self._done.unlink(missing_ok=True)
        return 0

    def _asked(self, start: int, size: int) -> bytes:
        key = self._entry.key
        for attempt in range(1, TRIES + 1):
            try:
                data: bytes = self._fs.cat_file(key, start=start, end=start + size)
                return data
            except FileNotFoundError:
                raise Changed(self._entry.path) from None
            except Exception as error:  # of any cloud's client
                if attempt == TRIES or not is_transient(error):
                    brief = f"{type(error).__name__}: {error}"
                    raise told("read", key, error, brief) from error
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
        raise errors.StoreError(f"{key} could not be read")  # not reached


def clean(parts: Path) -> None:
    """Forget what was begun: of objects that are gone."""
    with contextlib.suppress(OSError):
        for path in parts.iterdir():
            path.unlink(missing_ok=True)
