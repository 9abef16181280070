"""The items of a save, as bytes: shards of tensors, and what is no tensor.

A shard is written with the dimension first along which it was cut. What is no tensor goes by
`codec`, so that it can be read without pickle; a planner that hands out nothing but bytes of
`torch.save` has them read back here, at once, if they are plain data.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from mlcloud import errors
from mlcloud.checkpoint import regions
from mlcloud.checkpoint.arrays import Blob
from mlcloud.checkpoint.codec import Encoder
from mlcloud.checkpoint.segments import Segment
from mlcloud.checkpoint.sharding import Written

#: What a rank writes: where each blob was put is noted in its `Written`.
Blobs = list[tuple[Written, Blob]]


@dataclasses.dataclass
class Value:
    """A value that may hold objects with a state, as `Checkpoints.save` writes them.

    `path` is what a refusal calls it.
    """

    value: Any
    path: str


def order(item: WriteItem) -> tuple[str, tuple[int, ...]]:
    return item.index.fqn, tuple(item.index.offset or ())


def tensor(item: WriteItem, planner: SavePlanner, blobs: Blobs, group: str) -> Written:
    data = item.tensor_data
    assert data is not None
    nbytes = math.prod(data.chunk.sizes) * data.properties.dtype.itemsize
    cut = [n != whole for n, whole in zip(data.chunk.sizes, data.size, strict=True)]
    axis = cut.index(True) if any(cut) else 0

    def bytes_of() -> memoryview:
        value = planner.resolve_data(item)
        place = f"state[{item.index.fqn!r}]"
        if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise errors.NotCheckpointable(
                f"{place} has shards of the kind {type(value).__name__}, which have no plain bytes"
            )
        assert isinstance(value, torch.Tensor)
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise errors.NotCheckpointable(f"{place} is sparse, quantized or meta: make it dense")
        value = value.detach()
        moved = value.movedim(axis, 0) if value.dim() else value
        flat = moved.cpu().resolve_conj().resolve_neg().contiguous()
        if flat.nbytes != nbytes:
            raise errors.NotCheckpointable(
                f"{place} has {flat.nbytes} bytes where its plan says {nbytes}"
            )
        return regions.memory(flat)

    written = Written(Segment([]), 0, nbytes, axis)
    blobs.append((written, Blob(nbytes, bytes_of, group)))
    return written


def other(item: WriteItem, planner: SavePlanner, blobs: Blobs, group: str) -> Written:
    path = f"state[{item.index.fqn!r}]"
    lookup = getattr(planner, "lookup_object", None)
    if lookup is not None:
        value = lookup(item.index)
    else:
        value = _unpickled(planner.resolve_data(item), path)
    encoder = Encoder()
    if isinstance(value, Value):
        tree = encoder.encode(value.value, value.path)
    else:
        tree = encoder.encode(value, path)
        if _has_object(tree):
            raise errors.NotCheckpointable(
                f"{path} ({type(value).__name__}) is an object with a state: put its state_dict() "
                "into the state, or save by Checkpoints.save"
            )
    written = Written(Segment([]), 0, len(json.dumps(tree)), tree=tree)
    for blob in encoder.blobs:
        place = Written(Segment([]), 0, blob.nbytes)
        written.blobs.append(place)
        blob.group = group
        blobs.append((place, blob))
    return written


def _has_object(node: Any) -> bool:
    if isinstance(node, list):
        return any(map(_has_object, node))
    if not isinstance(node, dict):
        return False
    return node.get("$") == "object" or any(map(_has_object, node.values()))


def _unpickled(data: Any, path: str) -> Any:
    """What a planner without `lookup_object` has pickled just now, if it is plain data."""
    try:
        data.seek(0)
        return torch.load(data, weights_only=True)
    except Exception as error:
        raise errors.NotCheckpointable(f"{path} is no plain data: {error}") from error


def pickled(value: Any) -> io.BytesIO:
    data = io.BytesIO()
    torch.save(value, data)
    data.seek(0)
    return data
