"""Large values between notebook and gateway, as objects named by the hash of their content.

A blob above `INLINE_BYTES` is cut into chunks of at most 16 MiB; chunks the store holds already are
not sent again, so an upload that broke off goes on where it was. The message that needs the blob
names its chunks (`objects`: blob digest → chunk names in order).
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from mlcloud.client.connection import Connection
from mlcloud.errors import Damaged
from mlcloud.values.messages import Blob

INLINE_BYTES = 64 * 1024
CHUNK_BYTES = 16 * 2**20


def upload(connection: Connection, blobs: Iterable[Blob]) -> dict[str, list[str]]:
    """Put what the message will not carry; returns each blob's chunks."""
    objects: dict[str, list[str]] = {}
    for blob in blobs:
        if blob.data is None or blob.size <= INLINE_BYTES or blob.digest in objects:
            continue
        view = memoryview(blob.data).cast("B")
        objects[blob.digest] = [
            _put(connection, view[start : start + CHUNK_BYTES])
            for start in range(0, len(view), CHUNK_BYTES)
        ]
    return objects


def _put(connection: Connection, chunk: memoryview) -> str:
    digest = blake3(chunk).hexdigest()
    path = f"/v1/objects/{digest}"
    if connection.request("HEAD", path, missing_ok=True).status_code == 404:
        connection.request("PUT", path, content=chunk)
    return f"{digest}:{len(chunk)}"


def download(connection: Connection, blob: Blob, objects: dict[str, list[str]]) -> bytearray:
    """A blob that did not travel along, checked chunk by chunk."""
    whole = bytearray(blob.size)
    at = 0
    for name in objects[blob.digest]:
        digest, _, size = name.partition(":")
        data = connection.request("GET", f"/v1/objects/{digest}").content
        if blake3(data).hexdigest() != digest or len(data) != int(size):
            raise Damaged(f"object {digest} came damaged from the gateway; fetch it again")
        whole[at : at + len(data)] = data
        at += len(data)
    return whole
