"""The same statements in one plain namespace and in a notebook with a session, compared as graphs.

`World.step(code, remote)` runs a statement in the plain namespace and, as a local or a `%%remote`
cell, in the pair. Whatever it raises must be raised in both. `picture(namespace)` describes the
user's names as a graph, the names as its roots: values, and which of them are one object or one
memory. Equal pictures mean that no statement could tell the two apart.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy as np
import pandas as pd

from mlcloud import errors
from tests.values.pair import Pair, execute, notebook

NAMES = ("a", "b", "c", "d", "e")
CLASSES = ("C", "D")
FUNCTIONS = ("f", "g", "h", "make")
ALL = (*NAMES, *CLASSES, *FUNCTIONS, "k")

START = "import copy, functools, dataclasses\nk = 0\n"

# {x}, {y}, {z}: names; {t}: a number. What does not fit the values there are raises in both worlds.
STATEMENTS = (
    "{x} = []",
    "{x} = [{t}]",
    "{x} = {{}}",
    "{x} = {t}",
    "{x} = {y}",
    "{x} = [{y}]",
    "{x} = [{y}, {z}]",
    "{x} = ({y}, [{z}])",
    "{x} = {{'k': {y}}}",
    "{x}.append({t})",
    "{x}.append({y})",
    "{x}[0].append({t})",
    "{x}[0] = {t}",
    "{x}[-1] = {y}",
    "{x}['k'] = {y}",
    "{x}['k'].append({t})",
    "{x}.update(n={t})",
    "{x}.setdefault('k', []).append({t})",
    "{x}.clear()",
    "{x}.pop()",
    "{x} += [{t}]",
    "{x} = {x} + [{t}]",
    "{x}, {y} = {y}, {x}",
    "del {x}",
    "{x} = {y}[0]",
    "{x} = {y}['k']",
    "{x} = {y}.copy()",
    "{x} = copy.deepcopy({y})",
    "{x} = [v for v in {y}]",
    "for {x} in {y}: pass",
    "{x} = {y} is {z}",
    "{x} = np.arange(6.0)",
    "{x} = np.arange(8.0).reshape(2, 4)",
    "{x} = {y}[1:4]",
    "{x} = {y}.T",
    "{x}[0] += {t}",
    "{x}[1:] = {t}",
    "{x} *= 2",
    "{x} = float({y}.sum())",
    "{x} = pd.DataFrame({{'c': [1, 2, 3], 'k': [0.5, 1.5, 2.5]}})",
    "{x}['n'] = {t}",
    "{x} = {y}.assign(k={t})",
    "{x}.loc[0, 'c'] = {t}",
    "{x}.attr = {y}",
    "{x}.attr.append({t})",
    "{x} = {y}.attr",
    "del {x}.attr",
    "class C:\n    n = {t}\n    def __init__(self): self.v = [self.n]\n"
    "    def bump(self):\n        global k\n        k += self.n\n        self.v.append(k)\n"
    "        return self.v",
    "class C:\n    kept = {y}\n    def __init__(self): self.v = {x}\n"
    "    def bump(self): return C, self.kept",
    "@dataclasses.dataclass\nclass D:\n    v: list\n    n: int = {t}\n"
    "    def bump(self): return D([self.n], k)",
    "class D(C):\n    def bump(self):\n        super().bump()\n        return self",
    "C.n = {t}",
    "C.attr = {y}",
    "C.kept.append({t})",
    "{x} = C()",
    "{x} = D([{t}])",
    "{x} = D()",
    "{x} = {y}.bump()",
    "{x} = {y}.bump",
    "{x} = {y}.v",
    "{x} = C",
    "{x} = isinstance({y}, C)",
    "{x} = type({y}) is C",
    "{x} = isinstance({y}, D)",
    "k = {t}",
    "k += {t}",
    "{x} = k",
    "def f(v=None):\n    global k\n    k += 1\n    return k",
    "def f(v=[]):\n    v.append({t})\n    return v",
    "def f(v=None): return {y}",
    "def f(v=None):\n    global {y}\n    {y} = [v]\n    return g()",
    "def g(v=None):\n    {y}.append(k)\n    return {y}",
    "def g(v=None): return f, C",
    "def h(v=None):\n    h.calls = getattr(h, 'calls', 0) + 1\n    return h.calls",
    "def make(v=None):\n    n = [0]\n    def up(v=None):\n        n.append({t})\n        return n\n"
    "    up.n = n\n    return up",
    "def make(v=None):\n    n = 0\n    def up(v=None):\n        nonlocal n\n        n += 1\n"
    "        return n\n    def get(v=None): return n\n    return [up, get]",
    "{x} = make()",
    "{x} = f()",
    "{x} = f({y})",
    "{x} = g()",
    "{x} = h()",
    "{x} = {y}()",
    "{x} = {y}[0]()",
    "{x} = {y}[1]()",
    "{x} = f",
    "{x} = {{f: {y}}}",
    "{x} = {y}[f]",
    "{x} = {y} in {z}",
    "{x} = lambda v=None: {y}",
    "{x} = functools.partial(f, {y})",
    "{x} = functools.lru_cache(lambda v=None: [{t}])",
    "f.calls = {y}",
    "g = f",
    "f = {y}",
    "del f",
    "del C",
    "{x} = object()",
    "{x} = {{1, {t}}}",
    "{x}.add({t})",
    "{x} = iter([{y}, {t}])",
    "{x} = next({y})",
)  # fmt: skip


class World:
    """`plain`, and a notebook (`pair.here`) with its session (`pair.there`)."""

    def __init__(self) -> None:
        self.plain = notebook()
        self.pair = Pair()
        for namespace in (self.plain, self.pair.here):
            namespace.update(np=np, pd=pd)
            execute(START, namespace)
        self.story: list[str] = []

    def step(self, code: str, remote: bool) -> None:
        """Run it in both worlds, and compare."""
        self.story.append(f"{'remote' if remote else 'local '} {code}")
        expected = _outcome(lambda: execute(code, self.plain))
        run = self.pair.remote if remote else self.pair.local
        happened = _outcome(lambda: run(code))
        assert happened == expected, f"{happened}, not {expected}\n{self}"
        wanted, found = picture(self.plain), picture(self.pair.here)
        if wanted != found and repr(wanted) != repr(found):  # NaN is no other than itself
            raise AssertionError(f"{_difference(wanted, found)}\n{self}")

    def __str__(self) -> str:
        return "\n".join(self.story)


def _outcome(run: Any) -> str:
    try:
        run()
    except (errors.NameConflict, errors.NotPicklable) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return type(error).__name__
    return ""


def _difference(wanted: Any, found: Any, path: str = "") -> str:
    """Where two pictures differ first."""
    nested = isinstance(wanted, (tuple, list)) and isinstance(found, (tuple, list))
    if nested and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            if one != other:
                step = one[0] if path == "" and isinstance(one, tuple) else number
                return _difference(one, other, f"{path}/{step}")
    return f"{path}: {wanted!r}\n   was {found!r}"


class _Picture:
    """Objects numbered in the order they are met, each described once."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []
        self.memory: dict[int, tuple[int, int]] = {}

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return f"{value!r}"
        if isinstance(value, tuple):
            return ("tuple", *map(self.of, value))
        if isinstance(value, np.generic):
            return ("scalar", str(value.dtype), value.item())
        if value is self.namespace:
            return "globals"
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            plain = owner is None or isinstance(owner, types.ModuleType)
            return (value.__name__, None if plain else self.of(owner))
        if isinstance(value, types.MethodType):
            return ("method", value.__name__, self.of(value.__self__))
        if id(value) in self.numbers:
            return ("again", self.numbers[id(value)])
        self.numbers[id(value)] = len(self.numbers)
        self.kept.append(value)
        return (type(value).__name__, *self.parts(value))

    def parts(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, list):
            return tuple(map(self.of, value))
        if isinstance(value, dict):
            return tuple((self.of(key), self.of(item)) for key, item in value.items())
        if isinstance(value, (set, frozenset)):
            return tuple(sorted(map(repr, value)))
        if isinstance(value, np.ndarray):
            if not value.size:
                return (value.shape,)
            owner = value
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            memory = owner.__array_interface__["data"][0]
            self.kept.append(owner)
            address = value.__array_interface__["data"][0]
            number, first = self.memory.setdefault(memory, (len(self.memory), address))
            return (number, address - first, value.shape, value.strides, value.tolist())
        if isinstance(value, (pd.DataFrame, pd.Series)):
            return (self.of(value.to_dict()), str(getattr(value, "dtypes", "")))
        if isinstance(value, types.FunctionType):
            return (
                value.__code__.co_code,
                tuple(repr(c) for c in value.__code__.co_consts if not hasattr(c, "co_code")),
                self.of(value.__defaults__),
                self.of(tuple(map(self._content, value.__closure__ or ()))),
                self.of(dict(value.__dict__)),
                value.__globals__ is self.namespace,
            )  # fmt: skip
        if isinstance(value, functools.partial):
            return (self.of(value.func), self.of(value.args))
        if isinstance(value, type):
            if value.__module__ != "__main__":
                return (value.__qualname__,)
            skipped = (
                "__slotnames__",
                "__annotations__",
                "__dict__",
                "__weakref__",
                "__doc__",
                "__firstlineno__",
                "__module__",
            )
            members = {name: each for name, each in vars(value).items() if name not in skipped}
            bases = tuple(map(self.of, value.__bases__))
            return (bases, *((name, self.of(members[name])) for name in sorted(members)))
        if hasattr(value, "__dict__"):
            return (self.of(type(value)), self.of(vars(value)))
        return (self.of(type(value)),)

    def _content(self, cell: Any) -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return None


def picture(namespace: dict[str, Any]) -> list[tuple[str, Any]]:
    """The user's names and what they hold, aliases included."""
    picture = _Picture(namespace)
    return [(name, picture.of(namespace[name])) for name in ALL if name in namespace]
