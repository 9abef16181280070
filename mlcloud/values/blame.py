"""Where in a value the part is that cannot be pickled: `cfg['lock']`, not "cannot pickle lock".

After a dump failed, the children of the value are dumped one by one, the first that fails is
entered, and so on, a few levels down. Children are items, attributes, and what a function closes
over.
It runs only after a failure, for at most a second and some hundred children per level.
"""

from __future__ import annotations

import itertools
import time
import types
from collections.abc import Iterator
from typing import Any

from mlcloud import errors

DEPTH = 6
CHILDREN = 300
SECONDS = 1.0


def not_picklable(
    value: Any, namespace: dict[str, Any], name: str, reason: BaseException
) -> errors.NotPicklable:
    """The error to raise for `name`, naming the innermost part that fails."""
    path, culprit, why = _find(value, namespace, reason)
    kind = type(culprit)
    where = f"`{name}`" if not path else f"`{name}`, at `{name}{path}`,"
    label = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__", None):
        label = f"{kind.__module__}.{label}"
    holds = f"it holds a {label} ({why})"
    error = errors.NotPicklable(
        f"{where} cannot travel between the notebook and the session: {holds}. Create it in the "
        "remote cell instead, or leave it out of what the cell uses."
    )
    error.holds, error.at = holds, f"{name}{path}"
    return error


def _find(
    value: Any, namespace: dict[str, Any], reason: BaseException
) -> tuple[str, Any, BaseException]:
    """(path below the value, the part that fails, its error)."""
    deadline = time.monotonic() + SECONDS
    path = ""
    seen = {id(value)}
    for _ in range(DEPTH):
        for step, child in itertools.islice(_children(value), CHILDREN):
            if time.monotonic() > deadline:
                return path, value, reason
            if id(child) in seen or child is namespace:
                continue
            error = _failure(child, namespace)
            if error is not None:
                seen.add(id(child))
                path, value, reason = path + step, child, error
                break
        else:
            break
    return path, value, reason


def _failure(value: Any, namespace: dict[str, Any]) -> BaseException | None:
    from mlcloud.values import pickling
    from mlcloud.values.reducers import Classes

    try:
        pickling._dump(value, namespace, Classes(), None)
    except Exception as error:
        return error
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """(how to reach it, child), without running the value's own code."""
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"[{key!r:.40}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(list(value)):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in list(value):
            yield "{…}", item
    elif isinstance(value, types.FunctionType):
        for free, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f".<closure {free}>", cell.cell_contents
            except ValueError:
                continue
        for item in value.__defaults__ or ():
            yield ".<default>", item
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    attributes = getattr(value, "__dict__", None)
    if attributes and not isinstance(value, types.ModuleType):
        for key, item in list(attributes.items()):
            yield f".{key}", item
