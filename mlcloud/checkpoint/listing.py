"""What is in a step, and how two steps differ: for people to look at.

rows(state)        a line for each tensor, array and plain value, by its dotted name
differences(a, b)  the names that are in one only, or have another value
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlcloud.checkpoint.arrays import is_array, sparse_parts

SHOWN = 60  # characters of a plain value


@dataclass(frozen=True)
class Row:
    """One value of a state. `shape` is None for what is no tensor or array; `bytes` then 0."""

    name: str
    kind: str
    shape: tuple[int, ...] | None
    bytes: int
    value: str = ""


@dataclass(frozen=True)
class Difference:
    """One name that differs. `most`: the largest absolute difference, where there is one."""

    name: str
    what: str  # "added", "removed", "changed"
    before: str
    after: str
    most: float | None = None


def rows(state: Any) -> list[Row]:
    """The values of plain data, in their order."""
    return [_row(name, value) for name, value in _leaves(state, "")]


def differences(before: Any, after: Any) -> list[Difference]:
    """How `after` differs from `before`; both are plain data."""
    old, new = dict(_leaves(before, "")), dict(_leaves(after, ""))
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            found.append(Difference(name, "removed", _brief(old[name]), ""))
        elif name not in old:
            found.append(Difference(name, "added", "", _brief(new[name])))
        elif not same(old[name], new[name]):
            most = _most(old[name], new[name])
            found.append(Difference(name, "changed", _brief(old[name]), _brief(new[name]), most))
    return found


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}" if name else str(index))
    else:
        yield name, value


def _row(name: str, value: Any) -> Row:
    if not is_array(value):
        return Row(name, type(value).__name__, None, 0, _brief(value))
    kind = str(value.dtype).removeprefix("torch.")
    nbytes = sum(part.nbytes for part in _parts(value))
    return Row(name, kind, tuple(value.shape), int(nbytes))


def _brief(value: Any) -> str:
    if is_array(value):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def same(a: Any, b: Any) -> bool:
    """Whether two plain values, tensors or arrays are equal in type and every bit."""
    if is_array(a) and is_array(b):
        return (
            type(a) is type(b) and a.dtype == b.dtype and tuple(a.shape) == tuple(b.shape)
        ) and _bytes(a) == _bytes(b)
    if is_array(a) or is_array(b) or type(a) is not type(b):
        return False
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


def _parts(value: Any) -> list[Any]:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.layout is torch.strided:
        return [value]
    return sparse_parts(value)


def _bytes(value: Any) -> bytes:
    """Its memory: NaNs that are the same bits are the same."""
    torch = sys.modules.get("torch")
    made = b""
    for part in _parts(value):
        if torch is not None and isinstance(part, torch.Tensor):
            flat = part.detach().contiguous().reshape(-1)
            part = flat.view(torch.uint8).numpy() if flat.numel() else flat.to(torch.uint8).numpy()
        made += part.tobytes()
    return made


def _most(a: Any, b: Any) -> float | None:
    if not (is_array(a) and is_array(b)) or tuple(a.shape) != tuple(b.shape):
        return None
    try:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(a, torch.Tensor):
            most = (b.double() - a.double()).abs().max()
        else:
            most = abs(b.astype("f8") - a.astype("f8")).max()
        return float(most)
    except (TypeError, ValueError, RuntimeError):  # complex numbers, texts, nothing in them
        return None
