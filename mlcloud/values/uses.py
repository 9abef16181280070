"""The global names that the functions and classes inside a value use, told from their bytecode.

A function that is sent to the session needs those names there too. `closure` asks values that are
not pickled; a `Pickled` lists the code of every function it holds, however deep.
"""

from __future__ import annotations

import dis
import functools
import re
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

_OPERATIONS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"})
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_used: weakref.WeakKeyDictionary[types.CodeType, frozenset[str]] = weakref.WeakKeyDictionary()


def globals_used(code: types.CodeType) -> frozenset[str]:
    """Names read, bound or deleted in the globals; of class bodies inside, all names."""
    found = _used.get(code)
    if found is None:
        names = {
            str(instruction.argval)
            for instruction in dis.get_instructions(code)
            if instruction.opname in _OPERATIONS
        }
        for inner in _inner(code):
            names |= globals_used(inner)
        found = _used[code] = frozenset(names)
    return found


def attributes_used(code: types.CodeType) -> set[str]:
    """Every name in the code that could be an attribute: it tells which submodules it may need."""
    names = set(code.co_names)
    for inner in _inner(code):
        names |= attributes_used(inner)
    return names


def annotations_used(owner: Any) -> set[str]:
    """The names in string annotations, which who asks for type hints looks up in the globals."""
    try:
        # Asking a class for annotations that it does not have gives it some, before Python 3.14.
        known = vars(owner).get("__annotations__") if isinstance(owner, type) else None
        annotations = owner.__annotations__ if known or not isinstance(owner, type) else None
    except Exception:  # Python 3.14 evaluates them here, and they may name what does not exist
        return set()
    texts = [text for text in (annotations or {}).values() if isinstance(text, str)]
    return {name for text in texts for name in _NAME.findall(text)}


def _inner(code: types.CodeType) -> list[types.CodeType]:
    return [const for const in code.co_consts if isinstance(const, types.CodeType)]


def closure(names: Iterable[str], namespace: dict[str, Any]) -> set[str]:
    """The names, and those that the notebook's functions and classes among their values use.

    Only names that `namespace` has. Looked into: functions (and what they wrap and close over),
    classes and their instances, partials, bound methods, the items of lists, tuples and dicts.
    """
    found: set[str] = set()
    seen: set[int] = set()
    waiting = [name for name in names if name in namespace]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            used = _uses(namespace[name], namespace, seen, depth=0)
            waiting += [other for other in used if other in namespace]
    return found


def _uses(value: Any, namespace: dict[str, Any], seen: set[int], depth: int) -> Iterator[str]:
    """The globals used by the code that a value holds."""
    if id(value) in seen or depth > 8 or isinstance(value, (str, bytes, int, float, type(None))):
        return
    seen.add(id(value))
    inner: Iterable[Any] = ()
    if isinstance(value, types.FunctionType):
        if value.__globals__ is namespace:
            yield from globals_used(value.__code__)
        inner = [*_contents(value), *(value.__defaults__ or ()), *vars(value).values()]
    elif isinstance(value, type):
        if value.__module__ == namespace.get("__name__", "__main__"):
            inner = [*value.__bases__, *vars(value).values()]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.MethodType):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, property):
        inner = [value.fget, value.fset, value.fdel]
    elif isinstance(value, (staticmethod, classmethod)):
        inner = [value.__func__]
    elif isinstance(value, (list, tuple)):
        inner = value[:100]
    elif isinstance(value, dict):
        inner = [] if value is namespace else list(value.values())[:100]
    else:
        inner = [type(value), getattr(value, "__wrapped__", None)]
    for part in inner:
        yield from _uses(part, namespace, seen, depth + 1)


def _contents(func: types.FunctionType) -> Iterator[Any]:
    for cell in func.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue
