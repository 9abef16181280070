"""Chunks to and from S3 without copies, by s3fs' own client.

Given the bytes of 16 MiB, aiohttp joins them to the request's head, cuts off what the socket took
and copies the rest to its buffer: four copies of each chunk that is on its way. Asked for all of an
object, it joins what came, and that is copied to its place. So here

    put    memory ─ pieces of 256 KiB, each when the socket has taken the last ─► socket
    read   socket ─ what has come ─► where it belongs

which takes a third of the processor time for a read, two thirds for a put, and next to no memory.
Each is one request: a look for a missing object is not followed by a listing of a folder of its
name, and nothing asks for a size before it reads.

What is sent is signed or summed up by botocore as usual (SHA-256 over http, CRC32 over https too),
so a server refuses what was changed on its way; whoever reads a chunk checks its blake3. (Over http
the CRC32 adds nothing; but without it botocore takes the SHA-256 over https too, which costs three
times as much.)

botocore sends a request again by itself, from the start (`Body.seek`). s3fs' own repetitions are
left out: over https they would go on in the middle of a body. The backend's remain.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from mlcloud.store.backends import ConditionalBackend
from mlcloud.store.failures import says_beyond

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

PIECE_BYTES = 256 * 1024
#: Less than this is sent as it is: a `Body` waits for the server to want it, which takes as long
#: as an answer does.
SMALL_BYTES = 2**20


class S3Backend(ConditionalBackend):
    """A bucket of S3, or of a server that speaks its language."""

    in_place = True
    uploads = 8

    def read(self, path: str, into: memoryview | None = None) -> bytes | memoryview:
        if into is None:
            return self._run(lambda fs, at: _read(fs, at, None, {}), path)
        # One byte more shows a file that is longer.
        part = {"Range": f"bytes=0-{into.nbytes}"}
        try:
            return self._run(lambda fs, at: _read(fs, at, into, part), path)
        except Exception as error:
            if not says_beyond(error):
                raise
            return b""

    def size(self, path: str) -> int | None:
        try:
            found = self._run(lambda fs, at: _call(fs, "head_object", at), path)
        except FileNotFoundError:
            return None
        return int(found["ContentLength"])

    def put(
        self, path: str, data: memoryview, *, durable: bool = True, cached: bool = True
    ) -> None:
        if data.nbytes < SMALL_BYTES:
            super().put(path, data, durable=durable, cached=cached)
        else:
            self._run(lambda fs, at: _put(fs, at, data), path)

    def _run(
        self, make: Callable[[AbstractFileSystem, str], Coroutine[Any, Any, T]], path: str
    ) -> T:
        """Run what `make` makes where the client does, again if that may help."""

        def call() -> T:
            fs = self.fs
            future = asyncio.run_coroutine_threadsafe(make(fs, self._at(path)), fs.loop)
            try:
                return future.result()
            except BaseException:
                # Whoever is interrupted here may change, or use, the memory from now on.
                future.cancel()
                raise

        return self._retry(call)


def options_for(given: dict[str, Any]) -> dict[str, Any]:
    """The user's options, and what is set here unless they, or the environment, say otherwise.

    An answer is not summed up on its way: all that is read here is checked by hashes of our own,
    chunks by their blake3 or xxh3 and manifests by their checksum.
    """
    from botocore.config import Config

    option = "response_checksum_validation"
    known = option in Config.OPTION_DEFAULTS  # not before 1.36
    if not known or f"AWS_{option.upper()}" in os.environ:
        return given
    config = given.get("config_kwargs") or {}
    return {**given, "config_kwargs": {option: "when_required", **config}}


class Body:
    """Memory as botocore and aiohttp take it: to be read, for sums, and to be sent in pieces."""

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._at = memory, 0

    def __len__(self) -> int:
        return self._memory.nbytes

    def read(self, size: int | None = -1) -> memoryview:
        end = len(self) if size is None or size < 0 else min(self._at + size, len(self))
        start, self._at = self._at, end
        return self._memory[start:end]

    def seek(self, to: int, whence: int = 0) -> int:
        self._at = to + (0, self._at, len(self))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for at in range(0, len(self), PIECE_BYTES):
            yield self._memory[at : at + PIECE_BYTES]


async def _put(fs: AbstractFileSystem, path: str, data: memoryview) -> None:
    await _call(fs, "put_object", path, Body=Body(data))


async def _read(
    fs: AbstractFileSystem, path: str, into: memoryview | None, part: dict[str, str]
) -> bytes | memoryview:
    """An object, or a part of it: in `into` if it is as long, else in new memory."""
    answer = await _call(fs, "get_object", path, **part)
    body = answer["Body"]
    try:
        if into is None or answer["ContentLength"] != into.nbytes:
            found: bytes = await body.read()
            return found
        at = 0
        while at < into.nbytes:
            piece = await body.read(into.nbytes - at)
            if not piece:
                raise ConnectionError(f"{path} broke off after {at} of {into.nbytes} bytes")
            into[at : at + len(piece)] = piece
            at += len(piece)
        return into
    finally:
        body.close()


async def _call(fs: AbstractFileSystem, operation: str, path: str, **given: Any) -> Any:
    """One request as s3fs makes it, with the user's options, and its errors."""
    from s3fs.errors import translate_boto_error

    bucket, key, _ = fs.split_path(path)
    await fs.set_session()
    method = getattr(await fs.get_s3(bucket), operation)
    try:
        return await method(**fs._get_s3_method_kwargs(method, Bucket=bucket, Key=key, **given))
    except Exception as error:
        made = translate_boto_error(error)
        if made is error:
            raise
        raise made from error
