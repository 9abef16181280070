"""The small files of a session's working directory, saved with its namespace where that is wanted.

    save()        what is new or changed since ─► chunks ─► {path: [chunks, mode]} for the manifest
    bring_back()  the same, written into an empty workspace

Only regular files below the workspace; links are not followed. Together they may have `limit`
bytes: what is beyond, largest first, is named and left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlcloud.store import ChunkRef, Store
from mlcloud.units import format_bytes

PASSED_OVER = frozenset({"__pycache__", ".ipynb_checkpoints", ".git"})


class Files:
    """One workspace. `limit` 0: no file comes along; nor does one that holds a secret, whose name
    `secret_in` tells."""

    def __init__(
        self,
        folder: Path,
        limit: int = 0,
        secret_in: Callable[[bytes], str | None] = lambda data: None,
    ) -> None:
        self.folder = folder
        self._secret_in = secret_in
        self._limit = limit
        self._known: dict[str, tuple[tuple[int, int, int], list[str]]] = {}

    def save(self, store: Store) -> tuple[dict[str, Any], int]:
        """The files by path, and how many bytes had to be written. Raises `StoreError`."""
        if not self._limit:
            return {}, 0
        found = sorted(self._walk(), key=lambda each: each[1].st_size)
        kept: dict[str, list[Any]] = {}
        known: dict[str, tuple[tuple[int, int, int], list[str]]] = {}
        left_out, total, new = [], 0, 0
        held: dict[str, str] = {}
        for path, status in found:
            total += status.st_size
            if total > self._limit:
                left_out.append(path)
                continue
            mark = (status.st_mtime_ns, status.st_size, status.st_ino)
            before = self._known.get(path)
            if before is not None and before[0] == mark:
                chunks = before[1]
            else:
                try:
                    data = (self.folder / path).read_bytes()
                except OSError:  # gone, or not for us to read
                    continue
                if (secret := self._secret_in(data)) is not None:
                    held[path] = secret
                    continue
                refs = store.put_buffers([data])
                new += sum(ref.size for ref in refs if ref.new)
                chunks = [str(ref) for ref in refs]
            known[path] = mark, chunks
            kept[path] = [chunks, stat.S_IMODE(status.st_mode)]
        self._known = known
        told = {"files": kept, "left_out": left_out, "limit": self._limit, "held": held}
        return told, new

    def bring_back(self, saved: dict[str, Any], store: Store) -> dict[str, str]:
        """Write them; for what could not be had, why. Raises `Damaged`."""
        failed: dict[str, str] = {}
        for path, (chunks, mode) in saved.get("files", {}).items():
            target = self.folder / path
            data = store.get_buffer([ChunkRef.parse(text) for text in chunks])
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(mode)
            except OSError as error:
                failed[f"file {path}"] = str(error)
        limit = format_bytes(saved.get("limit", 0))
        why = f"beyond the limit of {limit} (keep_files)"
        failed.update({f"file {path}": why for path in saved.get("left_out", ())})
        for path, secret in saved.get("held", {}).items():
            failed[f"file {path}"] = f"it holds the secret {secret}, and was not saved"
        return failed

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            try:
                entries = list(os.scandir(self.folder / folder))
            except OSError:
                continue
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in PASSED_OVER:
                        waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False)
