"""What is under a URL: the files of a bucket's prefix, and in which region the bucket is.

    found = look("s3://bucket/data")     ─► Listing: the filesystem, and an `Entry` for each file
    found.region()                       ─► "eu-central-1", or None where nobody tells

An entry's `mark` is another one when the object is: its ETag where the store has such, else its
size and the time of its last change. fsspec's filesystems call these by many names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlcloud import errors
from mlcloud.cluster.specification.parts import DATA_SCHEMES
from mlcloud.cluster.specification.places import allowed, outside, region_told, store_cloud
from mlcloud.cluster.specification.values import check_url
from mlcloud.store import residency
from mlcloud.store.failures import told

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_MARKS = ("ETag", "etag", "md5Hash", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class Entry:
    """A file: its path below the URL, its key, its bytes, and what tells it from a later one."""

    path: str
    key: str
    size: int
    mark: str


@dataclass(frozen=True)
class Listing:
    """`alone`: the URL is of one file, and not of a folder."""

    url: str
    fs: AbstractFileSystem
    root: str
    entries: Mapping[str, Entry]
    alone: bool

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries.values())

    def region(self) -> str | None:
        """The bucket's region; None where neither the URL nor the store tells it."""
        region = region_told(self.url)
        if region is None:
            with contextlib.suppress(Exception):  # who may not ask is not told
                region = residency.asked(self.fs, self.root)
        return region


def look(url: str) -> Listing:
    """Raises `UsageError` for what is no such URL, `StoreError` where it cannot be listed."""
    try:
        check_url(url, (*DATA_SCHEMES, "memory"))
    except ValueError as error:
        raise errors.UsageError(f"data cannot be at {urlsplit(url).scheme}://…: {error}") from None
    try:
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise errors.StoreError(f"data at {url} cannot be opened: {error}") from error
    root = str(root).rstrip("/")
    try:
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        found = {}
    except Exception as error:  # of any cloud's client
        raise told("list the data at", url, error, f"{type(error).__name__}: {error}") from error
    alone = set(found) == {root}
    entries: dict[str, Entry] = {}
    for key, facts in found.items():
        path = PurePosixPath(key).name if alone else str(key)[len(root) :].lstrip("/")
        if path and not path.endswith("/") and facts.get("type", "file") == "file":
            entries[path] = Entry(path, str(key), int(facts.get("size") or 0), _mark(facts))
    if not entries:
        raise errors.NotFound(f"there is no file at {url}: check the bucket and the prefix")
    _check_paths(url, entries)
    return Listing(url, fs, root, entries, alone)


def check_region(listing: Listing, regions: Iterable[str], cloud: str) -> None:
    """Raises `UsageError` where the bucket is known to be outside of `regions` (none: anywhere).

    `regions` and `cloud` are a specification's (`cluster/specification/places.py`).
    """
    where = tuple(regions)
    if not where:
        return
    of, region = store_cloud(listing.url), listing.region()
    if region is not None and not allowed(region, of, where, cloud):
        raise errors.UsageError(outside(f"the data at {listing.url}", region, of, where, cloud))


def _check_paths(url: str, entries: Mapping[str, Entry]) -> None:
    """Raises `StoreError` for keys that are no paths of files in one folder."""
    for path in entries:
        parts = path.split("/")
        if ".." in parts or "." in parts or "" in parts or "\0" in path or os.path.isabs(path):
            raise errors.StoreError(f"{url} has the key {path!r}, which is no path of a file")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in entries:
                raise errors.StoreError(
                    f"{url} has {'/'.join(parts[:depth])!r} and {path!r}: a file cannot be a "
                    "folder too; give a narrower prefix"
                )


def _mark(facts: Mapping[str, Any]) -> str:
    size = int(facts.get("size") or 0)
    for name in _MARKS:
        if facts.get(name):
            return f"{facts[name]}/{size}"
    when = next((facts[name] for name in _TIMES if facts.get(name)), "")
    return f"{when}/{size}/{facts.get('ino', '')}"
