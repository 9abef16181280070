"""Objects that belong to a library, and so to no name of the user's, though names reach them.

Two figures both hold `MarkerStyle._tickhoriz_path`, and a pandas object's state its class's
`_metadata` list. Who shares only such an object shares nothing: else each figure would travel, and
be looked at, with every other one.

    of a class      what its attributes hold, and those of its bases
    of its module   for matplotlib: instances of its own classes that its variables hold

and of these instances their own attributes, and arrays in them. It goes no further: a library's
registry holds what is the user's too (matplotlib's open figures).
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_MORE = {"matplotlib": ("matplotlib.units",)}  # where a library keeps what it hands out
# Whose objects hold so much of their library's own that it is looked for beyond classes. Elsewhere
# a module's instance is as likely the user's: two names for it are aliases.
_DEEP = frozenset({"matplotlib", "seaborn"})
_MUTE = (type, types.ModuleType, types.FunctionType)


class Owned:
    """What libraries own, remembered until it changes. `is_immutable`: of a type."""

    def __init__(self, is_immutable: Callable[[type], bool]) -> None:
        self._is_immutable = is_immutable
        # Held here, so that nothing else can come to have an id that is remembered.
        self._classes: dict[type, tuple[list[int], list[Any]]] = {}
        self._modules: dict[str, tuple[int, list[Any]]] = {}

    def by(self, kinds: Iterable[type]) -> set[int]:
        """The ids of what the classes own, and their modules."""
        found = set[int]()
        bases = {base for kind in kinds for base in kind.__mro__ if base.__module__ != "__main__"}
        for base in bases:
            for value in self._of_class(base):
                found.update(_with_parts(value, base.__module__))
        modules = {base.__module__ for base in bases if isinstance(base.__module__, str)}
        modules = {name for name in modules if name.partition(".")[0] in _DEEP}
        libraries = {name.partition(".")[0] for name in modules}
        for name in modules.union(libraries, *(_MORE.get(each, ()) for each in libraries)):
            for value in self._of_module(name):
                found.update(_with_parts(value, name))
        return found

    def _of_class(self, base: type) -> list[Any]:
        values = list(vars(base).values())
        ids = list(map(id, values))  # libraries make some when they are first asked for
        known = self._classes.get(base)
        if known is None or known[0] != ids:
            held = [value for value in values if not self._is_immutable(type(value))]
            known = self._classes[base] = ids, held
        return known[1]

    def _of_module(self, name: str) -> list[Any]:
        module = sys.modules.get(name)
        if module is None or "site-packages" not in str(getattr(module, "__file__", "")):
            return []
        variables = vars(module)
        known = self._modules.get(name)
        if known is None or known[0] != len(variables):
            held = [
                value
                for value in list(variables.values())
                if _is_of(value, name) and not self._is_immutable(type(value))
            ]
            known = self._modules[name] = len(variables), held
        return known[1]


def _with_parts(value: Any, module: Any) -> Iterator[int]:
    yield id(value)
    yield from memory_of(value)
    if not _is_of(value, module):
        return
    if isinstance(value, dict):  # settings, as matplotlib's rcParams
        parts = list(dict.values(value))
        yield from (id(part) for part in parts if _is_of(part, module))
    else:
        try:
            state = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        if type(state) is not dict:
            return
        yield id(state)
        parts = list(state.values())
    for part in parts:
        if type(part) is list or _is_array(part):
            yield id(part)
            yield from memory_of(part)


def _is_of(value: Any, module: Any) -> bool:
    """Whether the value's class is of the same library."""
    kind = type(value)
    if kind in _MUTE or isinstance(value, type) or not isinstance(module, str):
        return False
    of = kind.__module__
    if module.partition(".")[0] not in _DEEP:
        return False
    return isinstance(of, str) and of.partition(".")[0] == module.partition(".")[0]


def _is_array(value: Any) -> bool:
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray"


def memory_of(value: Any) -> Iterator[int]:
    """The addresses by which `Pickled.ids` knows an array's or a tensor's memory."""
    from mlcloud.values import reducers

    if _is_array(value):
        if value.nbytes:
            yield reducers.array_memory(reducers.array_owner(value))
    elif str(type(value).__module__).startswith("torch") and hasattr(value, "untyped_storage"):
        with contextlib.suppress(RuntimeError):  # one around other tensors has none (DTensor)
            yield value.untyped_storage().data_ptr()
