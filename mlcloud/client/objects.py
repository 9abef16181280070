"""Large values between notebook and gateway, as objects named by the hash of their content.

    upload    pickle's buffers, in pieces of 16 MiB ─► which are not there? ─► only those are sent
    download  pieces ─► straight into the memory that the value will own ─► verified

Nothing is copied on the way, so sending or fetching costs no memory beyond the value. What the
store holds is not sent again, whoever sent it: an upload that broke off or was interrupted goes on
with the next run. The message that needs a blob names its pieces (`objects`: blob digest →
`hash:size` in order); the kernel's end is `kernel/transfer.py`.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from blake3 import blake3

from mlcloud.client.connection import Connection, error_in
from mlcloud.client.progress import Progress
from mlcloud.client.transfer import STEP_BYTES, Count, Piece, Transfer
from mlcloud.errors import Damaged, NotFound
from mlcloud.values.digests import chunk_digests, pieces, whole
from mlcloud.values.memory import fresh
from mlcloud.values.messages import Blob, Group

INLINE_BYTES = 64 * 1024
ASK_AT_ONCE = 5_000


def upload(connection: Connection, groups: Iterable[Group]) -> dict[str, list[str]]:
    """Put what the message will not carry; returns each blob's pieces.

    Raises `ConnectionFailed` when the connection does not come back, and what the store raised.
    """
    objects: dict[str, list[str]] = {}
    every: dict[str, Piece] = {}  # by `hash:size`; a piece that occurs twice is sent once
    names: list[str] = []
    for group in groups:
        for blob in group.blobs():
            if blob.data is None or blob.size <= INLINE_BYTES or blob.digest in objects:
                continue
            digests = blob.chunks or chunk_digests([blob.data])[0]
            cut = [Piece(*pair) for pair in zip(digests, pieces(blob.data), strict=True)]
            objects[blob.digest] = [_name(piece) for piece in cut]
            every.update((_name(piece), piece) for piece in cut)
            names += [name for name in group.names if name not in names]
    if every:
        _send(connection, every, f"sending {_listed(names)}")
    return objects


def put(connection: Connection, data: bytes, what: str) -> list[str]:
    """Put bytes that are no value of the notebook (a wheel); returns their pieces.

    Raises as `upload` does.
    """
    cut = [Piece(*pair) for pair in zip(chunk_digests([data])[0], pieces(data), strict=True)]
    _send(connection, {_name(piece): piece for piece in cut}, f"sending {what}")
    return [_name(piece) for piece in cut]


def _send(connection: Connection, every: dict[str, Piece], title: str) -> None:
    """Send the pieces that are not there."""
    missing = set(_missing(connection, every))
    left = [piece for name, piece in every.items() if name in missing]
    if left:
        total = sum(len(piece.memory) for piece in every.values())
        skipped = total - sum(len(piece.memory) for piece in left)
        with Progress(title, total, done=skipped) as progress:
            _Upload(connection, left, progress).run()


def download(
    connection: Connection, groups: Iterable[Group], objects: dict[str, list[str]]
) -> Inbox:
    """Fetch the blobs that did not travel along. Raises `ConnectionFailed`, `Damaged`.

    What the store has no more, since nobody came for it in days, `take` raises `NotFound` for.
    """
    inbox = Inbox()
    left: list[Piece] = []
    names: list[str] = []
    for group in groups:
        for blob in group.blobs():
            if blob.data is None:
                left += inbox.expect(blob, objects[blob.digest])
                names += [name for name in group.names if name not in names]
    if left:
        try:
            _fetch(connection, left, names)
        except NotFound:
            gone = set(_missing(connection, map(_name, left)))
            inbox.gone.update(name.partition(":")[0] for name in gone)
            if there := [piece for piece in left if _name(piece) not in gone]:
                _fetch(connection, there, names)
    return inbox


def _fetch(connection: Connection, left: list[Piece], names: list[str]) -> None:
    total = sum(len(piece.memory) for piece in left)
    with Progress(f"fetching {_listed(names)}", total) as progress:
        _Download(connection, left, progress).run()


class Inbox:
    """Blobs that arrived, each in memory of its own. `gone`: pieces that the store has no more."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self._memory: dict[int, tuple[Blob, memoryview]] = {}

    def expect(self, blob: Blob, names: list[str]) -> Iterator[Piece]:
        """The pieces of this blob, in the memory they are to come into."""
        parts = [name.partition(":") for name in names]
        blob.chunks = tuple(digest for digest, _, _ in parts)
        sizes = [int(size) for _, _, size in parts]
        if whole(blob.chunks) != blob.digest or sum(sizes) != blob.size:
            raise Damaged(f"object {blob.digest} does not consist of the pieces named for it")
        memory = fresh(blob.size)
        self._memory[id(blob)] = (blob, memory)
        start = 0
        for digest, size in zip(blob.chunks, sizes, strict=True):
            yield Piece(digest, memory[start : start + size])
            start += size

    def take(self, blob: Blob) -> memoryview:
        """The blob's bytes; the memory is the taker's from now on. Raises `NotFound`."""
        if not self.gone.isdisjoint(blob.chunks):
            raise NotFound("the store does not keep it any more; it is in the session still")
        return self._memory.pop(id(blob))[1]


class _Upload(Transfer):
    what = "sending"
    hint = "What arrived is kept: run the cell again and it goes on there."

    def move(self, lane: http.client.HTTPConnection, piece: Piece, count: Count) -> None:
        path = f"/v1/objects/{piece.digest}"
        lane.putrequest("PUT", self.connection.prefix + path, skip_accept_encoding=True)
        for header, value in self.connection.address.headers.items():
            lane.putheader(header, value)
        lane.putheader("Content-Length", str(len(piece.memory)))
        lane.endheaders()
        for start in range(0, len(piece.memory), STEP_BYTES):
            part = piece.memory[start : start + STEP_BYTES]
            lane.send(part)
            count(len(part))
        with lane.getresponse() as answer:
            body = answer.read()
            if answer.status >= 400:
                raise error_in(body, answer.status, f"PUT {path}")

    def remaining(self, pieces: list[Piece]) -> list[Piece]:
        # An answer may have been lost after the piece had arrived.
        missing = set(_missing(self.connection, map(_name, pieces)))
        return [piece for piece in pieces if _name(piece) in missing]


class _Download(Transfer):
    what = "fetching"
    hint = "The value is still in the session: fetch it again."

    def move(self, lane: http.client.HTTPConnection, piece: Piece, count: Count) -> None:
        path = f"/v1/objects/{piece.digest}"
        lane.request("GET", self.connection.prefix + path, headers=self.connection.address.headers)
        with lane.getresponse() as answer:
            if answer.status >= 400:
                raise error_in(answer.read(), answer.status, f"GET {path}")
            if answer.length != len(piece.memory):
                raise Damaged(
                    f"object {piece.digest} has {answer.length} bytes in the store instead of "
                    f"{len(piece.memory)}"
                )
            at = 0
            while at < len(piece.memory):
                got = answer.readinto(piece.memory[at : at + STEP_BYTES])
                if not got:
                    raise http.client.IncompleteRead(b"", len(piece.memory) - at)
                at += got
                count(got)
        if blake3(piece.memory).hexdigest() != piece.digest:
            raise Damaged(
                f"object {piece.digest} is damaged in the store: its content does not match its "
                "name. The value is still in the session"
            )


def _missing(connection: Connection, names: Iterable[str]) -> list[str]:
    """Which of these pieces the store does not hold."""
    waiting = iter(names)
    found: list[str] = []
    while some := list(islice(waiting, ASK_AT_ONCE)):
        answer: dict[str, Any] = connection.post("/v1/objects/missing", {"names": some})
        found += answer["names"]
    return found


def _name(piece: Piece) -> str:
    return f"{piece.digest}:{len(piece.memory)}"


def _listed(names: list[str]) -> str:
    """Names for one line."""
    shown = ", ".join(f"`{name}`" for name in names[:3]) or "classes of the notebook"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
