"""Columns of strings, written as one text and numbers instead of string by string.

    parts(array)  ─► (build_texts, …), or None where it holds something else
    build_texts() ─► the array again

A column is looked at whenever a cell mentions its frame, and 100,000 strings take pickle 20 ms each
time. So: the different values and a number a row where these are few, else all of them in one text;
`None` and NaN among them as marks. And what was written of an array is kept together with the
references that it held, for as long as the array lives: while it still holds the same objects, and
strings cannot change, it need not be written again. That takes 0.1 ms.
"""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections import OrderedDict
from typing import Any

FROM = 64  # elements of an array from which this pays
KEPT_BYTES = 64 * 2**20  # at most, of what was written and of references
_FEW = 1000  # of so many elements, how many are different says how it is written
_KINDS = frozenset({str, type(None), float})

Parts = tuple[Any, ...]


class _Kept:
    """What was written of arrays that are still there, the last used at the end."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[int, tuple[Any, Any, Parts, int]] = OrderedDict()
        self._bytes = 0

    def get(self, array: Any) -> Parts | None:
        import numpy as np

        known = self._by_id.get(id(array))
        if known is None or known[0]() is not array or known[1].shape != array.shape:
            return None
        if not np.array_equal(_references(array), _references(known[1])):
            return None
        self._by_id.move_to_end(id(array))
        return known[2]

    def add(self, array: Any, parts: Parts) -> None:
        key = id(array)
        self._forget(key)
        held = array.copy(order="K")  # the strings too: no other can come to lie where one was
        size = held.nbytes + sum(len(part) for part in _bytes(parts))
        if size > KEPT_BYTES // 2:
            return
        try:
            gone = weakref.ref(array, lambda _: self._forget(key))
        except TypeError:
            return
        self._by_id[key] = gone, held, parts, size
        self._bytes += size
        while self._bytes > KEPT_BYTES:
            self._forget(next(iter(self._by_id)))

    def _forget(self, key: int) -> None:
        known = self._by_id.pop(key, None)
        if known is not None:
            self._bytes -= known[3]


_kept = _Kept()


class _References:
    """An object array's memory as numbers."""

    def __init__(self, array: Any) -> None:
        self.__array_interface__ = {
            **array.__array_interface__,
            "typestr": "<u8",
            "descr": [("", "<u8")],
        }
        self._array = array


def _references(array: Any) -> Any:
    import numpy as np

    return np.asarray(_References(array))


def _bytes(parts: Parts) -> list[bytes]:
    flat = itertools.chain.from_iterable(p if type(p) is tuple else (p,) for p in parts[1])
    return [part for part in flat if type(part) is bytes]


def parts(array: Any) -> Parts | None:
    """Reduce an object array of strings; None for one of something else."""
    import numpy as np

    if array.size < FROM or type(array) is not np.ndarray:
        return None
    if (known := _kept.get(array)) is not None:
        return known
    order: Any = "F" if array.flags.fnc else "C"
    row: Any = array.ravel(order)
    values = row.tolist()
    kinds = set(map(type, values))
    if not kinds <= _KINDS or str not in kinds:
        return None
    marks = None
    if kinds != {str}:
        where = [0 if type(v) is str else 1 if v is None else 2 for v in values]
        if any(v == v for v in values if type(v) is float):
            return None
        marks = _small(np.array(where, np.uint64))
        values = [v if type(v) is str else "" for v in values]
        row = None
    codes, step = None, -(-len(values) // _FEW)
    sample = values[::step]
    if 2 * len(set(sample)) < len(sample):
        numbers, values = _numbered(values, row)
        codes = _small(numbers)
    try:
        text = "".join(values).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    lengths = _small(np.fromiter(map(len, values), np.uint64, len(values)))
    more = () if marks is None else (marks,)
    made = build_texts, (text, lengths, codes, array.shape, order, *more)
    _kept.add(array, made)
    return made


def _numbered(values: list[str], row: Any) -> tuple[Any, list[str]]:
    """Of each value which it is, and the different ones in the order of their first places."""
    import numpy as np

    pandas = sys.modules.get("pandas")
    if pandas is not None and row is not None:
        codes, different = pandas.factorize(row)  # the same, by a table of its own
        return codes.astype(np.uint64), different.tolist()
    numbers = dict(zip(dict.fromkeys(values), itertools.count()))
    found = np.fromiter(map(numbers.__getitem__, values), np.uint64, len(values))
    return found, list(numbers)


def _small(numbers: Any) -> tuple[str, bytes]:
    """Numbers in as few bytes as the largest needs."""
    import numpy as np

    kind = np.min_scalar_type(numbers.max())
    return kind.str, numbers.astype(kind).tobytes()


def build_texts(
    text: bytes,
    lengths: tuple[str, bytes],
    codes: tuple[str, bytes] | None,
    shape: tuple[int, ...],
    order: Any,
    marks: tuple[str, bytes] | None = None,
) -> Any:
    """The array of strings again."""
    import numpy as np

    joined = text.decode()
    ends = np.frombuffer(lengths[1], lengths[0]).cumsum(dtype=np.int64).tolist()
    array = np.empty(len(ends), object)
    array[:] = [joined[i:k] for i, k in zip([0, *ends[:-1]], ends, strict=True)]
    if codes is not None:
        array = array[np.frombuffer(codes[1], codes[0])]
    if marks is not None:
        where = np.frombuffer(marks[1], marks[0])
        array[where == 1] = None
        array[where == 2] = math.nan
    return array.reshape(shape, order=order)
