"""Objects: chunks of at most 16 MiB, named by the blake3 of their content, on their way to and from
the store.

    POST /v1/objects/missing   which of these are not there, or would not stay: one question for all
                               that is to be sent
    PUT  /v1/objects/{digest}  body ─► a buffer of this process ─► hashed ─► the store, then visible
    GET  /v1/objects/{digest}  the store ─► body; who asked verifies the hash, as after any wire

A body is taken piece by piece into one of a few buffers that are used again and again, so however
many clients send, the memory is bounded, and a body that is too long ends the request at once.
Hashing and writing run in a thread while the next body arrives. A body that breaks off leaves
nothing. An answer to PUT means: whole, verified, visible to every node. That it also survives a
power loss follows a moment later (`_settle`), so nobody waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.requests import ClientDisconnect

from mlcloud import errors
from mlcloud.models import ObjectNames
from mlcloud.store import CHUNK_BYTES, ChunkRef, Store

log = logging.getLogger(__name__)

BUFFERS = 8
STALLED_S = 60.0
SETTLE_S = 10.0

Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="blake3 of the content.")]


class Objects:
    """The gateway's part in moving chunks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._free = [bytearray() for _ in range(BUFFERS)]  # each gets its memory at first use
        # Once glibc has freed a block of this size it keeps smaller ones instead of giving them
        # back to the system each time. The pieces of a body then come in memory that is already
        # there, which halves what receiving them costs.
        block = bytearray(CHUNK_BYTES)
        del block
        self._turn = asyncio.Semaphore(BUFFERS)
        self._arriving = 0
        self._unsettled: list[ChunkRef] = []
        self._settling: asyncio.Task[None] | None = None

    async def put(self, digest: str, request: Request) -> None:
        """Take a body into the store. Raises `UsageError` when it is not what its name says."""
        announced = int(request.headers.get("content-length", 0))
        if announced > CHUNK_BYTES:
            raise _too_large(announced)
        self._arriving += 1
        try:
            async with self._buffer() as buffer:
                size = await _receive(request, memoryview(buffer))
                ref = await asyncio.to_thread(
                    self._store.put_chunk,
                    memoryview(buffer)[:size],
                    expected=digest,
                    durable=False,
                )
        finally:
            self._arriving -= 1
        if ref.new:
            self._unsettled.append(ref)
            if self._settling is None or self._settling.done():
                self._settling = asyncio.create_task(self._settle())

    @contextlib.asynccontextmanager
    async def _buffer(self) -> AsyncIterator[bytearray]:
        async with self._turn:
            buffer = self._free.pop()
            if not buffer:
                buffer = bytearray(CHUNK_BYTES)
            try:
                yield buffer
            finally:
                self._free.append(buffer)

    async def _settle(self) -> None:
        while self._unsettled:
            # A disk that syncs takes what arrives at half the speed: all of it first, within
            # reason.
            until = time.monotonic() + SETTLE_S
            quiet = 0
            while quiet < 2 and time.monotonic() < until:
                await asyncio.sleep(0.1)
                quiet = 0 if self._arriving else quiet + 1
            refs, self._unsettled = self._unsettled, []
            try:
                await asyncio.to_thread(self._store.settle, refs)
            except errors.StoreError:
                # They are visible and were verified. A snapshot that names one settles it again,
                # and fails if that cannot be done.
                log.exception("%d uploaded chunks may not survive a power loss", len(refs))


async def _receive(request: Request, into: memoryview) -> int:
    """The body's size, once it is all there."""
    at = 0
    stalled = False
    receiver = asyncio.current_task()

    async def watch() -> None:
        """End a body of which nothing comes any more: its buffer is waited for."""
        nonlocal stalled
        seen = -1
        while at != seen:
            seen = at
            await asyncio.sleep(STALLED_S)
        stalled = True
        assert receiver is not None
        receiver.cancel()

    watching = asyncio.create_task(watch())
    try:
        async for piece in request.stream():
            end = at + len(piece)
            if end > CHUNK_BYTES:
                raise _too_large(end)
            into[at:end] = piece
            at = end
    except ClientDisconnect:
        raise errors.UsageError("the body broke off; nothing was stored, send it again") from None
    except asyncio.CancelledError:
        if not stalled:
            raise
        raise errors.UsageError(
            f"nothing of the body came for {STALLED_S:.0f} s; send it again"
        ) from None
    finally:
        watching.cancel()
    return at


def _too_large(size: int) -> errors.UsageError:
    return errors.UsageError(f"an object has at most {CHUNK_BYTES} bytes, not {size}")


def routes(store: Store) -> APIRouter:
    """The routes, to be included where a user's token is required."""
    router = APIRouter(prefix="/objects")
    objects = Objects(store)

    @router.post("/missing")
    async def missing_objects(names: ObjectNames) -> ObjectNames:
        refs = [ChunkRef.of_short(name) for name in names.names]
        missing = await asyncio.to_thread(store.wanted, refs)
        return ObjectNames(names=[ref.short for ref in missing])

    @router.head("/{digest}")
    async def has_object(digest: Digest) -> Response:
        found = await asyncio.to_thread(store.exists, digest)
        return Response(status_code=200 if found else 404)

    @router.get("/{digest}", response_class=Response)
    async def get_object(digest: Digest) -> Response:
        data = await asyncio.to_thread(store.read_chunk, digest)
        if data is None:
            raise errors.NotFound(f"the store has no object {digest}")
        return Response(data, media_type="application/octet-stream")

    @router.put("/{digest}", status_code=204)
    async def put_object(digest: Digest, request: Request) -> None:
        await objects.put(digest, request)

    return router
