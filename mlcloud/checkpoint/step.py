"""A step of a series: what its manifest says of it, and what reading it gives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint.codec import Decoder, Encoder, plain
from mlcloud.store.manifest import Manifest

KIND = "checkpoint"
FORMAT = 2
SHARDED = 3  # a step of several ranks, or of `torch.distributed.checkpoint`: `sharding`
#: Content longer than this lies in chunks: a manifest stays small enough to list and read many.
INLINE = 64 * 1024


@dataclass(frozen=True)
class CheckpointInfo:
    """A committed step. `new_bytes` is what had to be uploaded of `bytes`."""

    step: int
    bytes: int
    new_bytes: int
    seconds: float
    created: datetime
    metric: float | None = None
    extra: dict[str, Any] | None = None
    complete: bool = False


@dataclass
class Loaded:
    """A step read and verified, decoded, and not yet put anywhere."""

    info: CheckpointInfo
    state: dict[Any, Any]
    random: dict[str, Any]
    start: dict[str, Any] | None
    sharded: bool = False


@dataclass
class Target:
    """A live state, and whether something was read to it already."""

    state: dict[Any, Any]
    touched: bool = False


def info_of(made: Manifest) -> CheckpointInfo:
    """What a manifest tells of its step. Raises Damaged, and StoreError for a newer format."""
    body = made.body
    if isinstance(body.get("format"), int) and body["format"] > SHARDED:
        raise errors.StoreError(
            f"step {made.step} of {made.name!r} was saved by a newer mlcloud (format "
            f"{body['format']}, this one reads up to {SHARDED}): upgrade mlcloud"
        )
    try:
        decoder = Decoder(no_blobs)
        return CheckpointInfo(
            made.step,
            int(body["bytes"]),
            int(body["new_bytes"]),
            float(body["seconds"]),
            made.created,
            decoder.decode(body["metric"]),
            plain(decoder.decode(body["extra"])),
            bool(body["complete"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise errors.Damaged(f"step {made.step} of {made.name!r} is no checkpoint") from error


def encode_note(value: Any, path: str) -> Any:
    encoder = Encoder()
    node = encoder.encode(value, path)
    if encoder.blobs:
        raise errors.NotCheckpointable(
            f"{path} is too large or holds arrays: put them in the state"
        )
    return node


def no_blobs(number: int) -> memoryview:
    raise KeyError(number)
