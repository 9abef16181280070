"""Tensors and arrays to raw bytes and back: what the codec does not want to know about torch.

A tensor's node in the tree says `dtype` and `shape` and the number of its blob, whose bytes are the
elements in C order. Neither torch nor numpy is imported before the state holds something of theirs.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlcloud import errors

#: numpy's kinds whose bytes are their value: bool, numbers, fixed-length text, times.
_KINDS = "biufcSUMm"


@dataclass
class Blob:
    """`nbytes` bytes, made by `data()` when they are written.

    The closure holds the tensor, so its memory is not given to another one meanwhile.
    """

    nbytes: int
    data: Callable[[], memoryview]


PutBlob = Callable[[tuple[Any, ...] | None, Blob], int]
Refuse = Callable[[str], errors.NotCheckpointable]


def encode(value: Any, put: PutBlob, refuse: Refuse) -> dict[str, Any] | None:
    """The node of a torch or numpy value, or None when it is neither."""
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            return _encode_tensor(torch, value, put, refuse)
        if type(value) is torch.Size:
            return {"$": "size", "v": list(value)}
        if type(value) is torch.dtype:
            return {"$": "dtype", "v": _name(value)}
        if type(value) is torch.device:
            return {"$": "device", "v": str(value)}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.generic):
            if value.dtype.kind not in _KINDS:
                raise refuse(f"has the dtype {value.dtype}")
            data = base64.b64encode(value.tobytes()).decode()
            return {"$": "numpy", "dtype": value.dtype.str, "v": data}
        if isinstance(value, numpy.ndarray):
            return _encode_array(numpy, value, put, refuse)
    return None


def _encode_tensor(torch: Any, value: Any, put: PutBlob, refuse: Refuse) -> dict[str, Any]:
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        # DTensor and the like hold one rank's part; their plain bytes would not be their value.
        raise refuse(
            "is a kind of tensor that is not supported yet (one rank's shard is not its value: "
            "call Checkpoints.save on every rank of an initialized torch.distributed group, with "
            "models and optimizers as entries of the state)"
        )
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise refuse("is a sparse, quantized or meta tensor; make it dense first")

    def data() -> memoryview:
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")

    nbytes = value.numel() * value.element_size()
    flags = (value.is_conj(), value.is_neg())
    shape = list(value.shape)
    place = (value.data_ptr(), str(value.device), _name(value.dtype), flags)
    key = ("torch", *place, tuple(shape), value.stride()) if nbytes else None
    number = put(key, Blob(nbytes, data))
    return {"$": "tensor", "dtype": _name(value.dtype), "shape": shape, "at": number}


def _encode_array(numpy: Any, value: Any, put: PutBlob, refuse: Refuse) -> dict[str, Any]:
    if type(value) not in (numpy.ndarray, numpy.memmap):
        raise refuse("is a subclass of numpy.ndarray, which may hold more than its elements")
    if value.dtype.kind not in _KINDS:
        raise refuse(f"has the dtype {value.dtype}, whose elements have no plain bytes")

    def data() -> memoryview:
        flat = numpy.ascontiguousarray(value).reshape(-1)
        return memoryview(flat.view(numpy.uint8)) if value.nbytes else memoryview(b"")

    pointer = value.__array_interface__["data"][0]
    key = ("numpy", pointer, value.dtype.str, value.shape, value.strides) if value.nbytes else None
    number = put(key, Blob(value.nbytes, data))
    return {"$": "array", "dtype": value.dtype.str, "shape": list(value.shape), "at": number}


def decode(node: dict[str, Any], data: memoryview | None) -> Any:
    """The value of a node that `encode` made. Tensors come back on the CPU."""
    tag = node["$"]
    if tag in ("array", "numpy"):
        import numpy

        dtype = numpy.dtype(node["dtype"])
        if dtype.kind not in _KINDS:
            raise errors.Damaged(f"the checkpoint names the dtype {node['dtype']!r}")
        if tag == "numpy":
            return numpy.frombuffer(base64.b64decode(node["v"], validate=True), dtype)[0]
        if data is None or not data.nbytes:
            return numpy.empty(node["shape"], dtype)
        return numpy.frombuffer(data, dtype).reshape(node["shape"])
    import torch

    if tag == "size":
        return torch.Size(node["v"])
    if tag == "device":
        return torch.device(node["v"])
    wanted = getattr(torch, node["v"] if tag == "dtype" else node["dtype"])
    if not isinstance(wanted, torch.dtype):
        raise errors.Damaged(f"the checkpoint names the dtype {node!r}")
    if tag == "dtype":
        return wanted
    if data is None or not data.nbytes:
        return torch.empty(node["shape"], dtype=wanted)
    return torch.frombuffer(data, dtype=wanted).reshape(node["shape"])


def allocate(size: int) -> memoryview:
    """Writable memory; not zeroed when numpy is there to give it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not size:
        return memoryview(bytearray(size))
    return memoryview(numpy.empty(size, numpy.uint8))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
