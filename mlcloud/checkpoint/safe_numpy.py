"""numpy's arrays and numbers in a torch file, without numpy's own unpickling.

Training states often hold a few (the best loss, a random state), and torch's safe unpickler takes
none: numpy's `__setstate__` believes whatever dtype a file makes up, pointers included. So the
names that numpy writes lead to stand-ins here while a file is read, which take plain numbers and
texts of fixed length and make an array of their bytes; `plain` puts the arrays in their places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlcloud import errors

_CODE = re.compile(r"\??|[biufcSU][0-9]{1,6}|b1")
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


class Dtype:
    """`numpy.dtype(code, align, copy)`, and its byte order."""

    def __init__(self, code: Any, *rest: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise errors.NotImportable(f"it holds a numpy array of the dtype {str(code)[:40]!r}")
        self.code: str = code
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        order, subarray, names, fields = state[1:5]
        if (subarray, names, fields) != (None, None, None) or order not in "<>|=":
            raise errors.NotImportable("it holds a numpy array of a dtype made of several")
        self.order = order

    def make(self) -> Any:
        import numpy

        return numpy.dtype(self.code).newbyteorder(self.order)


class Array:
    """`numpy.ndarray`, filled by its state."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _read(dtype, data).reshape(shape, order="F" if fortran else "C")


def _array(kind: Any, shape: Any, code: Any) -> Array:
    return Array()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _read(dtype, data)[0]


def _no_bytes() -> bytes:
    """How the old pickle protocol writes `b""`."""
    return b""


def _read(dtype: Any, data: Any) -> Any:
    import numpy

    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise errors.NotImportable("it holds a numpy array of objects")
    return numpy.frombuffer(bytearray(data), dtype.make())


@contextmanager
def readable() -> Iterator[None]:
    """While it lasts, torch's safe unpickler takes numpy's names.

    Where the user has allowed some of them, or torch is too old (2.5), nothing is changed.
    """
    import torch

    listed: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()
    names = [each[1] if isinstance(each, tuple) else str(each.__module__) for each in listed]
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint") or any(
        name.startswith("numpy") for name in names
    ):
        yield
        return
    stand_ins: list[Any] = [
        *((Dtype, "numpy.dtype"), (Array, "numpy.ndarray"), (_no_bytes, "builtins.bytes")),
    ]
    for module in _MODULES:
        stand_ins += [(_array, f"{module}._reconstruct"), (_scalar, f"{module}.scalar")]
    with torch.serialization.safe_globals(stand_ins):
        yield


def plain(value: Any) -> Any:
    """The same containers with numpy's arrays in them."""
    if isinstance(value, Array):
        return value.value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = plain(item)
    elif type(value) is list:
        value[:] = map(plain, value)
    elif type(value) is tuple:
        return tuple(map(plain, value))
    return value
