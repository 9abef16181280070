"""Tensors and arrays to raw bytes and back: what the codec does not want to know about torch.

A tensor's node in the tree says `dtype` and `shape` and the number of its blob, whose bytes are the
elements in C order. Sparse tensors are their parts, indices and values. Neither torch nor numpy is
imported before the state holds something of theirs.
"""

from __future__ import annotations

import base64
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlcloud import errors

#: numpy's kinds whose bytes are their value: bool, numbers, fixed-length text, times.
_KINDS = "biufcSUMm"
#: The parts of sparse tensors, in the order of their constructors.
_PARTS = {
    "sparse_coo": ("_indices", "_values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


@dataclass
class Blob:
    """`nbytes` bytes, made by `data()` when they are written.

    The closure holds the tensor, so its memory is not given to another one meanwhile.

    `group`: small blobs of one group lie together (`packing`). `device`: where the bytes are.
    `put`: copies them to memory of that size, where that is quicker than by `data`; a copy from a
    GPU may still be on its way when it returns.
    """

    nbytes: int
    data: Callable[[], memoryview]
    group: str = ""
    device: str = "cpu"
    put: Callable[[memoryview], None] | None = None

    def copy_to(self, memory: memoryview) -> None:
        """Copy the bytes there."""
        if self.put is not None:
            self.put(memory)
        else:
            memory[:] = self.data()


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
            dtype = _spell_dtype(numpy, value.dtype, refuse)
            data = base64.b64encode(without_padding(numpy, value)).decode()
            return {"$": "numpy", "dtype": dtype, "v": data}
        if isinstance(value, numpy.dtype):
            return {"$": "npdtype", "dtype": _spell_dtype(numpy, value, refuse)}
        if isinstance(value, numpy.ndarray):
            return _encode_array(numpy, value, put, refuse)
    return None


def _encode_tensor(torch: Any, value: Any, put: PutBlob, refuse: Refuse) -> dict[str, Any]:
    if type(value) in (
        torch.nn.parameter.UninitializedParameter,
        torch.nn.parameter.UninitializedBuffer,
    ):
        return {"$": "lazy", "of": type(value).__name__, "dtype": _name(value.dtype)}
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        # DTensor and the like hold one rank's part; their plain bytes would not be their value.
        raise refuse(
            "is a kind of tensor that is not supported yet (one rank's shard is not its value: "
            "call Checkpoints.save on every rank of an initialized torch.distributed group, with "
            "models and optimizers as entries of the state)"
        )
    if value.is_quantized:
        raise refuse("is a quantized tensor; save its int_repr(), scale and zero point")
    if value.is_meta:
        raise refuse("is a meta tensor, which has no values")
    if value.layout is not torch.strided:
        layout = _name(value.layout)
        if layout not in _PARTS:
            raise refuse(f"has the layout {layout}; make it dense first")
        parts = [_encode_tensor(torch, part, put, refuse) for part in sparse_parts(value)]
        node = {"$": "sparse", "layout": layout, "shape": list(value.shape), "parts": parts}
        return node | ({"coalesced": value.is_coalesced()} if layout == "sparse_coo" else {})

    def data() -> memoryview:
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")

    def copy(memory: memoryview) -> None:
        flat = value.detach().resolve_conj().resolve_neg()
        target = torch.frombuffer(memory, dtype=torch.uint8)
        if flat.is_contiguous():
            target.copy_(flat.reshape(-1).view(torch.uint8), non_blocking=True)
        else:
            target.view(flat.dtype).reshape(flat.shape).copy_(flat, non_blocking=True)

    nbytes = value.numel() * value.element_size()
    flags = (value.is_conj(), value.is_neg())
    shape = list(value.shape)
    place = (value.data_ptr(), str(value.device), _name(value.dtype), flags)
    key = ("torch", *place, tuple(shape), value.stride()) if nbytes else None
    blob = Blob(nbytes, data, device=value.device.type, put=copy if nbytes else None)
    number = put(key, blob)
    return {"$": "tensor", "dtype": _name(value.dtype), "shape": shape, "at": number}


def _encode_array(numpy: Any, value: Any, put: PutBlob, refuse: Refuse) -> dict[str, Any]:
    if type(value) not in (numpy.ndarray, numpy.memmap):
        raise refuse("is a subclass of numpy.ndarray, which may hold more than its elements")
    dtype = _spell_dtype(numpy, value.dtype, refuse)

    def data() -> memoryview:
        return memoryview(without_padding(numpy, value)) if value.nbytes else memoryview(b"")

    pointer = value.__array_interface__["data"][0]
    key = ("numpy", pointer, str(dtype), value.shape, value.strides) if value.nbytes else None
    number = put(key, Blob(value.nbytes, data))
    return {"$": "array", "dtype": dtype, "shape": list(value.shape), "at": number}


def frozen(value: Any) -> set[int]:
    """Where the parameters of a module lie that no gradient is wanted of: they do not change."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.nn.Module):
        return set()
    return {each.data_ptr() for each in value.parameters() if not each.requires_grad}


def decode(node: dict[str, Any], data: memoryview | None) -> Any:
    """The value of a node that `encode` made. Tensors come back on the CPU."""
    tag = node["$"]
    if tag in ("array", "numpy", "npdtype"):
        import numpy

        dtype = _read_dtype(numpy, node["dtype"])
        if tag == "npdtype":
            return dtype
        if tag == "numpy" and not dtype.itemsize:
            return numpy.zeros((), dtype)[()]
        if tag == "numpy":
            return numpy.frombuffer(base64.b64decode(node["v"], validate=True), dtype)[0]
        if data is None or not data.nbytes:
            return numpy.empty(node["shape"], dtype)
        return numpy.frombuffer(data, dtype).reshape(node["shape"])
    torch: Any = importlib.import_module("torch")
    if tag == "size":
        return torch.Size(node["v"])
    if tag == "device":
        return torch.device(node["v"])
    wanted = getattr(torch, node["v"] if tag == "dtype" else node["dtype"])
    if not isinstance(wanted, torch.dtype):
        raise errors.Damaged(f"the checkpoint names the dtype {node!r}")
    if tag == "lazy":
        kind = torch.nn.parameter.UninitializedBuffer
        if node["of"] == "UninitializedParameter":
            kind = torch.nn.parameter.UninitializedParameter
        return kind(dtype=wanted, device="cpu")
    if tag == "dtype":
        return wanted
    if data is None or not data.nbytes:
        return torch.empty(node["shape"], dtype=wanted)
    # Not by its own type: for some, torch ends the process there.
    return torch.frombuffer(data, dtype=torch.uint8).view(wanted).reshape(node["shape"])


def memory_of(value: Any, like: Any) -> memoryview | None:
    """The memory of a live tensor or array that holds just what `like`, of the same form, would.

    None where it is on another device, has gaps, another type or shape, or cannot be written.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        plain = type(value) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        if not plain or not isinstance(like, torch.Tensor) or value.layout is not torch.strided:
            return None
        if value.device.type != "cpu" or value.dtype != like.dtype or value.shape != like.shape:
            return None
        if not value.is_contiguous() or value.is_conj() or value.is_neg() or not value.numel():
            return None
        return memoryview(value.detach().reshape(-1).view(torch.uint8).numpy())
    if numpy is not None and type(value) is numpy.ndarray and isinstance(like, numpy.ndarray):
        if value.dtype != like.dtype or value.shape != like.shape or not value.nbytes:
            return None
        if not value.flags.c_contiguous or not value.flags.writeable:
            return None
        return memoryview(value.reshape(-1).view(numpy.uint8))
    return None


def address(memory: memoryview) -> int:
    """Where it begins."""
    import numpy

    at: int = numpy.frombuffer(memory, numpy.uint8).__array_interface__["data"][0]
    return at


def sparse_parts(value: Any) -> list[Any]:
    """The dense tensors that a sparse one is made of."""
    value = value.detach()
    return [getattr(value, name)() for name in _PARTS[_name(value.layout)]]


def decode_sparse(node: dict[str, Any], parts: list[Any]) -> Any:
    """A sparse tensor of its parts. Raises where indices are outside of it."""
    torch: Any = importlib.import_module("torch")
    shape, checks = torch.Size(node["shape"]), {"check_invariants": True}
    if node["layout"] == "sparse_coo":
        coalesced = bool(node["coalesced"])
        return torch.sparse_coo_tensor(*parts, shape, is_coalesced=coalesced, **checks)
    if node["layout"] not in _PARTS:
        raise errors.Damaged(f"the checkpoint names the layout {node['layout']!r}")
    layout = getattr(torch, node["layout"])
    return torch.sparse_compressed_tensor(*parts, shape, layout=layout, **checks)


def is_array(value: Any) -> bool:
    """Whether it is a tensor or an array, with a shape."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return not torch.nn.parameter.is_lazy(value)
    return numpy is not None and isinstance(value, numpy.ndarray)


def takes(target: Any, saved: Any) -> bool:
    """Whether a live tensor or array can take another's values exactly, in shape and type."""
    if tuple(target.shape) != tuple(saved.shape):
        return False
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(target, torch.Tensor):
        if not isinstance(saved, torch.Tensor) or target.layout is not saved.layout:
            return False
        wide, narrow = target.dtype, saved.dtype
        if wide == narrow:
            return True
        if wide.is_floating_point != narrow.is_floating_point or wide.is_complex != (
            narrow.is_complex
        ):
            return False
        try:
            return bool(torch.promote_types(wide, narrow) == wide)
        except RuntimeError:  # of 8-bit floats it knows no wider ones
            return False
    return (
        numpy is not None
        and isinstance(saved, numpy.ndarray)
        and bool(numpy.can_cast(saved.dtype, target.dtype, "safe"))
        and (saved.dtype.kind == target.dtype.kind)
    )


def allocate(size: int) -> memoryview:
    """Writable memory; not zeroed when numpy is there to give it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not size:
        return memoryview(bytearray(size))
    return memoryview(numpy.empty(size, numpy.uint8))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def without_padding(numpy: Any, value: Any) -> Any:
    """The bytes of an array in C order; between the fields of records zeros, not what was there."""
    whole = numpy.ascontiguousarray(value).reshape(-1)
    if whole.dtype.names is not None:
        clean = numpy.zeros(whole.shape, whole.dtype)
        _fill(clean, whole)
        whole = clean
    return whole.view(numpy.uint8)


def _fill(into: Any, records: Any) -> None:
    for name in records.dtype.names:
        if into[name].dtype.names is not None:
            _fill(into[name], records[name])
        else:
            into[name] = records[name]


def _spell_dtype(numpy: Any, dtype: Any, refuse: Refuse) -> Any:
    """numpy's own spelling: a string, or for structured types a list as in .npy files."""
    if dtype.kind in _KINDS:
        return dtype.str
    try:
        if dtype.kind != "V" or dtype.hasobject:
            raise ValueError
        spelled = numpy.lib.format.dtype_to_descr(dtype)
        # Types that others add to numpy, such as ml_dtypes', are spelled as mere bytes.
        if numpy.lib.format.descr_to_dtype(spelled) != dtype:
            raise ValueError
    except (ValueError, TypeError):
        raise refuse(f"has the dtype {dtype}, whose elements have no plain bytes") from None
    return spelled


def _read_dtype(numpy: Any, spelled: Any) -> Any:
    def tuples(each: Any) -> Any:  # JSON made lists of them
        title_or_name = each[0] if isinstance(each[0], str) else tuple(each[0])
        kind = [tuples(field) for field in each[1]] if isinstance(each[1], list) else each[1]
        return (title_or_name, kind, *(tuple(shape) for shape in each[2:]))

    if isinstance(spelled, str):
        dtype = numpy.dtype(spelled)
    else:
        dtype = numpy.lib.format.descr_to_dtype([tuples(field) for field in spelled])
    if dtype.hasobject or dtype.kind not in _KINDS + "V":
        raise errors.Damaged(f"the checkpoint names the dtype {spelled!r}")
    return dtype
