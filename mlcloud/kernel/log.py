"""The full log of an execution that printed more than was shown: text in the store, in segments.

    add(text) ─► compressed piece by piece, in memory ─► keep() ─► chunk, manifest ─► …
                                                                   logs/<session>/<execution>/<n>

Until it is known that the log is needed it is small, compressed, and only here; what was printed
from the first line on is then its first segment. Each segment is a gzip file of its own, so that
the chunks one after the other are one too. A log ends at its limit, with a line that says so.

`read_segment` is the other end, used by the gateway.
"""

from __future__ import annotations

import gzip
import zlib
from typing import Any
from urllib.parse import quote

from mlcloud.store import ChunkRef, Store

KIND = "logs"
PIECE_CHARS = 2**18  # compressed at once
SEGMENT_CHARS = 8 * 2**20
EARLY_BYTES = 2 * 2**20  # what is compressed and not kept is at most so large
GZIP = 31


def log_name(session_id: str, execution_id: str) -> str:
    """The log's name in the store, whatever the client chose as its id."""
    return f"{session_id}/x{quote(execution_id, safe='')[:190].replace('%', '=')}"


class OutputLog:
    """One execution's log. `segments()` gives what to store; the caller stores it, in order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chars = 0
        self._kept = False
        self._texts: list[str] = []
        self._waiting = 0  # characters in `_texts`
        self._compressor = zlib.compressobj(1, wbits=GZIP)
        self._segment: list[bytes] = []
        self._in_segment = 0
        self._ready: list[bytes] = []

    @property
    def kept(self) -> bool:
        return self._kept

    @property
    def ready(self) -> int:
        """How many segments wait to be stored."""
        return len(self._ready)

    @property
    def unsaved(self) -> bool:
        """Whether there is text that belongs into the store and was not taken for it yet."""
        return self._kept and bool(self._ready or self._in_segment or self._texts)

    def add(self, text: str) -> None:
        room = self._limit - self._chars
        if room <= 0:
            return
        if len(text) >= room:
            text = text[:room] + (
                f"\n[mlcloud: the log ends here, at {self._limit:,} characters; more was printed. "
                "MLCLOUD_OUTPUT_LOG sets how long a log may be]\n"
            )
        self._chars += len(text)
        self._texts.append(text)
        self._waiting += len(text)
        if self._waiting >= PIECE_CHARS:
            self._compress()
        if self._in_segment >= SEGMENT_CHARS and self._kept:
            self.cut()
        elif sum(map(len, self._segment)) > EARLY_BYTES:
            self.keep()

    def keep(self) -> None:
        """It is needed: from now on there are segments to store."""
        if not self._kept:
            self._kept = True
            self.cut()

    def cut(self) -> None:
        """End the segment, so that all that was added can be read."""
        self._compress()
        if self._kept and self._in_segment:
            self._segment.append(self._compressor.flush())
            self._ready.append(b"".join(self._segment))
            self._compressor = zlib.compressobj(1, wbits=GZIP)
            self._segment, self._in_segment = [], 0

    def _compress(self) -> None:
        if self._texts:
            data = "".join(self._texts).encode("utf-8", "replace")
            self._segment.append(self._compressor.compress(data))
            self._in_segment += self._waiting
            self._texts, self._waiting = [], 0

    def take(self) -> list[bytes]:
        """The segments to be stored now."""
        ready, self._ready = self._ready, []
        return ready


def store_segments(store: Store, name: str, segments: list[bytes]) -> None:
    """Put these after those that are there. Raises `StoreError`, `StoreFull`."""
    step = (store.latest(KIND, name) or 0) + 1
    for number, segment in enumerate(segments, step):
        refs = store.put_buffers([segment])
        store.commit(KIND, name, number, {"chunks": [str(ref) for ref in refs]})


def segments_of(store: Store, name: str) -> list[int]:
    """The numbers of a log's segments; none where there is no log."""
    return store.steps(KIND, name)


def read_segment(store: Store, name: str, number: int) -> bytes:
    """A segment's text as UTF-8. Raises `Damaged` where it cannot be read."""
    body: dict[str, Any] = store.read(KIND, name, number)
    return gzip.decompress(store.get_buffer([ChunkRef.parse(text) for text in body["chunks"]]))
