"""What a namespace holds, in one hash a name, the same in two processes if the values are equal.

    of(namespace)  ─► {name: hash, …}
                      {"aliases": …}   which names hold the same object, or the same memory

Values are walked by what they are made of (an estimator by its attributes, a frame by its columns,
a model by its tensors), not by any pickle, so no way of saving can look right by its own format.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import types
from typing import Any

_DEPTH = 60
_ATOMS = (type(None), bool, int, float, complex, str, bytes, range, slice)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def of(namespace: dict[str, Any]) -> dict[str, str]:
    """A hash for each of the user's names, and one for what they share."""
    values = {
        name: value
        for name, value in sorted(dict.items(namespace))
        if not name.startswith("_") and name not in _NOT_THEIRS and _is_theirs(value)
    }
    found = {name: _hash(value) for name, value in values.items()}
    same: dict[int, list[str]] = {}
    for name, value in values.items():
        if not isinstance(value, (*_ATOMS, type, types.FunctionType, tuple)):
            same.setdefault(_memory(value), []).append(name)
    found["(aliases)"] = str(sorted(names for names in same.values() if len(names) > 1))
    return found


_NOT_THEIRS = {"In", "Out", "get_ipython", "exit", "quit", "open", "kishu", "init_kishu"}


def _is_theirs(value: Any) -> bool:
    return not isinstance(value, types.ModuleType) and not (
        getattr(value, "__module__", "") or ""
    ).startswith(("IPython", "kishu"))


def _memory(value: Any) -> int:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        while isinstance(value.base, numpy.ndarray):
            value = value.base
    return id(value)


def _hash(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    _walk(value, digest.update, {}, 0)
    return digest.hexdigest()


def _walk(value: Any, put: Any, seen: dict[int, int], depth: int) -> None:
    kind = type(value)
    if isinstance(value, _ATOMS) or depth > _DEPTH:
        put(f"{kind.__name__}:{value!r};".encode() if depth <= _DEPTH else b"deep")
        return
    if id(value) in seen:
        put(f"seen {seen[id(value)]};".encode())
        return
    seen[id(value)] = len(seen)
    seen.setdefault(-1, 0)
    _kept.append(value)  # temporary objects must not lend their address to others
    go = functools.partial(_walk, put=put, seen=seen, depth=depth + 1)
    module = kind.__module__.partition(".")[0]
    put(f"{kind.__qualname__}(".encode())
    if isinstance(value, type):
        put(value.__qualname__.encode())
        if value.__module__ == "__main__":
            go({k: v for k, v in vars(value).items() if not k.startswith("__")})
    elif isinstance(value, types.FunctionType):
        _function(value, put, go)
    elif isinstance(value, dict):
        for key, item in value.items():
            go(key)
            go(item)
    elif isinstance(value, (set, frozenset)):
        put(repr(sorted(value, key=repr)).encode())
    elif isinstance(value, (list, tuple)) or kind.__name__ == "deque":
        put(str(len(value)).encode())
        for item in value:
            go(item)
    elif module == "numpy":
        _array(value, put, go)
    elif module == "pandas" and hasattr(value, "to_numpy"):
        _pandas(value, put, go)
    elif module == "torch" and hasattr(value, "detach") and not hasattr(value, "state_dict"):
        _array(value.detach().cpu().numpy(), put, go)
    elif hasattr(value, "state_dict"):
        go(value.state_dict())
    elif module == "scipy" and hasattr(value, "tocsr"):
        for part in (value.tocsr().data, value.tocsr().indices, value.shape):
            go(part)
    elif module in ("matplotlib", "seaborn"):
        _drawing(value, put, go)
    elif module == "sklearn" and kind.__name__ == "Tree":
        go(value.__getstate__())
    elif isinstance(value, types.MethodType):
        go(value.__func__)
        go(value.__self__)
    elif module in ("sklearn", "__main__", "torch") and hasattr(value, "__dict__"):
        go({k: v for k, v in sorted(vars(value).items()) if not k.startswith("__")})
    else:
        put(_ADDRESS.sub("", repr(value)).encode())
    put(b")")


_kept: list[Any] = []


def _array(value: Any, put: Any, go: Any) -> None:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.ndarray):
        put(f"{value.dtype.str}{value.shape}".encode())
        if value.dtype.hasobject:
            go(value.tolist())
        else:
            put(numpy.ascontiguousarray(value).tobytes())
    elif isinstance(value, numpy.generic):
        put(repr(value).encode())
    else:  # generators and the like
        go(value.bit_generator.state) if hasattr(value, "bit_generator") else put(
            _ADDRESS.sub("", repr(value)).encode()
        )


def _pandas(value: Any, put: Any, go: Any) -> None:
    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        go(list(value.columns))
        go(value.index)
        for number in range(value.shape[1]):
            _column(value.iloc[:, number], put, go)
    else:
        if hasattr(value, "index"):
            go(value.index)
        _column(value, put, go)


def _column(value: Any, put: Any, go: Any) -> None:
    pandas = sys.modules["pandas"]
    put(repr(value.dtype).encode())
    try:
        put(pandas.util.hash_pandas_object(value, index=False).to_numpy().tobytes())
    except TypeError:  # what cannot be hashed
        go(list(value))


def _function(value: Any, put: Any, go: Any) -> None:
    code = value.__code__
    put(code.co_code + repr(code.co_names).encode())
    go(list(value.__defaults__ or ()))
    for cell in value.__closure__ or ():
        go(cell.cell_contents)


def _drawing(value: Any, put: Any, go: Any) -> None:
    """A figure by its axes, and these by their titles and their lines' data."""
    value = getattr(value, "figure", value)
    for axes in getattr(value, "axes", ()):
        put(axes.get_title().encode() + repr(tuple(axes.get_position().bounds)).encode())
        put(repr((len(axes.patches), len(axes.texts), len(axes.collections))).encode())
        for line in axes.lines:
            go(line.get_xydata())
