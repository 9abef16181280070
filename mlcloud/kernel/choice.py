"""Whether a value goes into the store, or is made again by its cell: by what either takes.

A cell of `np.zeros(…)`, `rng.random(…)` and arithmetic on stored arrays gives the same bytes again
(`is_repeatable`), on any node. Where it took less time than its value's bytes take to come from the
store, as fast as that was found to be, nothing is written. Of no other code is that known: what
`normal` or a matrix product gives depends on the processor, `read_csv` on a file. All of that is
stored.

Above `snapshot_max` the cells are all there is: what would lead beyond it is made again by them,
whatever they are, unless they reached outside; the user is told which names these are.
"""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mlcloud import parsing
from mlcloud.kernel.recipes import CellRun, Recipe, is_same
from mlcloud.units import format_bytes, format_seconds
from mlcloud.values.messages import class_id
from mlcloud.values.scan import Scan

FROM_BYTES = 2**20
FIRST_RATE = 200e6  # bytes a second, until something was written
RATE_FROM = 4 * 2**20  # bytes whose writing tells how fast the store is

_EXACT = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod),
    *(ast.BitAnd, ast.BitOr, ast.BitXor, ast.LShift, ast.RShift),
)
_PLAIN = (int, float, complex, bool, str, bytes, type(None), range, slice)
_STATEMENTS = (ast.Assign, ast.AnnAssign, ast.Expr, ast.Import, ast.ImportFrom, ast.Pass)
_FUNCTIONS = {
    "numpy": (
        *("zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "full_like", "arange"),
        *("linspace", "eye", "identity", "tile", "repeat", "array", "asarray", "concatenate"),
        *("stack", "vstack", "hstack", "meshgrid", "indices", "tri", "tril", "triu", "reshape"),
    ),
    "numpy.random": ("default_rng", "RandomState"),
    "torch": ("zeros", "ones", "full", "arange", "eye", "zeros_like", "ones_like"),
}
_SEEDED = ("default_rng", "RandomState")  # with an argument only
_METHODS = {
    "array": ("reshape", "astype", "copy", "transpose", "ravel", "flatten", "repeat", "swapaxes"),
    "generator": ("random", "integers", "uniform", "permutation", "rand", "randint", "bytes"),
}
_ATTRIBUTES = ("T", "shape", "size", "ndim", "dtype", "nbytes", "real", "imag", "flat")


@dataclass
class Chosen:
    """Names that are not stored: the digest of each, and why."""

    digests: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


class Choice:
    """Of one namespace. `most`: bytes that its snapshots may have; None: any number."""

    def __init__(self, namespace: dict[str, Any], most: int | None = None) -> None:
        self._namespace, self.most = namespace, most
        self._rate = FIRST_RATE
        self._sizes: dict[frozenset[str], int] = {}

    def wrote(self, size: int, seconds: float) -> None:
        """So many bytes took the store so long."""
        if size >= RATE_FROM and seconds > 0:
            self._rate += 0.5 * (size / seconds - self._rate)

    def of(
        self, run: CellRun, scan: Scan, known: dict[str, Recipe], stored: Collection[str]
    ) -> Chosen:
        """Which of the names that were looked at after this cell are not to be stored.

        `known`: those that were not; `stored`: the names in the snapshot before.
        """
        chosen = Chosen()
        large = any(each.size >= FROM_BYTES for each in scan.pickled.values())
        if self.most is None and not large:
            return chosen
        groups = [
            frozenset(key for key in group if class_id(key) is None)
            for group in scan.groups([*scan.pickled, *scan.failed])
        ]
        bound: set[str] | None = None
        for group in groups:
            if len(group) != 1 or not group <= scan.pickled.keys():
                continue
            (name,) = group
            pickled, recipe = scan.pickled[name], known.get(name)
            same = recipe is not None and is_same(self._namespace[name], recipe.here)
            if recipe is not None and recipe.digest and same:  # an equal one has another cell
                if recipe.digest == pickled.digest:
                    chosen.digests[name] = recipe.digest
                    chosen.why[name] = recipe.why
                continue
            took = format_seconds(run.seconds), format_seconds(pickled.size / self._rate)
            if pickled.size < FROM_BYTES or run.seconds * self._rate > pickled.size:
                continue
            if not _is_array(self._namespace[name]) or run.effects:
                continue
            if bound is None:
                bound = repeatable(run.transformed, self._namespace, stored)
            if name in bound:
                chosen.digests[name] = pickled.digest
                chosen.why[name] = (
                    f"its cell took {took[0]}, its {format_bytes(pickled.size)} from the store "
                    f"would take {took[1]}"
                )
        if self.most is not None:
            self._limit(self.most, groups, scan, chosen)
        return chosen

    def _limit(
        self, most: int, groups: Collection[frozenset[str]], scan: Scan, chosen: Chosen
    ) -> None:
        looked = scan.pickled.keys() | scan.failed.keys()
        self._sizes = {
            group: size
            for group, size in self._sizes.items()
            if group <= self._namespace.keys() and looked.isdisjoint(group)
        }
        new = {
            group: max(scan.pickled[name].size for name in group)
            for group in groups
            if group and group <= scan.pickled.keys() and not group & chosen.why.keys()
        }
        total = sum(self._sizes.values())
        for group in sorted(new, key=lambda each: (new[each], sorted(each))):
            total += new[group]
            if total <= most:
                self._sizes[group] = new[group]
                continue
            total -= new[group]
            for name in group:
                chosen.digests[name] = scan.pickled[name].digest
                chosen.why[name] = (
                    f"with its {format_bytes(new[group])} the saved state would be above "
                    f"snapshot_max ({format_bytes(most)})"
                )


def _is_array(value: Any) -> bool:
    kind = type(value)
    return (kind.__module__, kind.__name__) in (("numpy", "ndarray"), ("torch", "Tensor"))


def repeatable(code: str, namespace: dict[str, Any], stored: Collection[str]) -> set[str]:
    """The names that a cell binds, if what it does gives the same bytes wherever it runs.

    Else none. `namespace` is as the cell left it; before it, only what is `stored` was there.
    """
    try:
        tree = parsing.parse(code)
    except SyntaxError:
        return set()
    reader = _Reader(namespace, stored)
    return reader.bound if all(map(reader.statement, tree.body)) else set()


class _Reader:
    """Walks over a cell. Everything that it does not know is not repeatable."""

    def __init__(self, namespace: dict[str, Any], stored: Collection[str]) -> None:
        self._namespace, self._stored = namespace, stored
        self.bound: set[str] = set()

    def statement(self, node: ast.stmt) -> bool:
        if not isinstance(node, _STATEMENTS):
            return False
        if isinstance(node, ast.Import | ast.ImportFrom):
            return True  # a function of it counts only if it is one of those below
        if isinstance(node, ast.Pass):
            return True
        if node.value is not None and not self._is_known(node.value):
            return False
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        names = [each for target in targets for each in _parts(target)]
        if not all(isinstance(each, ast.Name) for each in names):
            return False
        self.bound.update(each.id for each in names if isinstance(each, ast.Name))
        return True

    def _is_known(self, node: ast.AST | None) -> bool:
        match node:
            case None | ast.Constant():
                return True
            case ast.Name(id=name):
                return name in self.bound or self._is_stored(name)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return all(map(self._is_known, parts))
            case ast.BinOp(left=left, op=op, right=right):
                exact = isinstance(op, _EXACT)
                if isinstance(op, ast.Pow):  # of numbers alone: `10 ** 6`
                    exact = isinstance(left, ast.Constant) and isinstance(right, ast.Constant)
                return exact and self._is_known(left) and self._is_known(right)
            case ast.UnaryOp(operand=operand):
                return self._is_known(operand)
            case ast.Compare(left=left, comparators=others):
                return all(map(self._is_known, [left, *others]))
            case ast.Subscript(value=value, slice=place):
                return self._is_known(value) and self._is_known(place)
            case ast.Slice(lower=lower, upper=upper, step=step):
                return all(map(self._is_known, (lower, upper, step)))
            case ast.Attribute(value=value, attr=attr):
                if self._object(node) is not None:
                    return True  # a constant of a module, or a type
                return attr in _ATTRIBUTES and self._is_known(value)
            case ast.Call(func=func, args=args, keywords=keywords):
                given = [*args, *(each.value for each in keywords)]
                found = self._object(func)
                if not given and getattr(found, "__name__", "") in _SEEDED:
                    return False
                if any(isinstance(each, ast.Constant) and each.value is None for each in given):
                    return False  # a seed, perhaps
                return self._is_function(func) and all(map(self._is_known, given))
        return False

    def _is_stored(self, name: str) -> bool:
        if name not in self._namespace:
            return name in ("int", "float", "bool", "complex")
        return name in self._stored and _is_data(self._namespace[name])

    def _is_function(self, func: ast.expr) -> bool:
        found = self._object(func)
        if found is not None:
            return any(
                found is getattr(sys.modules.get(module), name, None)
                for module, names in _FUNCTIONS.items()
                for name in names
                if module in sys.modules
            )
        if isinstance(func, ast.Name):
            return func.id in ("int", "float", "len", "range") and func.id not in self._namespace
        if not isinstance(func, ast.Attribute) or not self._is_known(func.value):
            return False
        return func.attr in (*_METHODS["array"], *_METHODS["generator"])

    def _object(self, node: ast.expr) -> Any:
        """What a dotted name that begins with a module stands for."""
        path = []
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self.bound:
            return None
        found = self._namespace.get(node.id)
        if not isinstance(found, types.ModuleType):
            if path or not callable(found) or not _is_function_of_numpy(found):
                return None
            return found  # `from numpy import zeros`
        for attr in reversed(path):
            found = getattr(found, attr, None)
        return found if path else None


def _parts(target: ast.expr) -> list[ast.expr]:
    return list(target.elts) if isinstance(target, ast.Tuple | ast.List) else [target]


def _is_function_of_numpy(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in ("numpy", "torch")


def _is_data(value: Any) -> bool:
    """Whether operators and methods on it are those of plain numbers and arrays."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind in (list, tuple):
        return len(value) < 1000 and all(map(_is_data, value))
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return bool(value.dtype.kind in "biuf")
    if kind.__module__.startswith("numpy.random"):
        return kind.__name__ in ("Generator", "RandomState")
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)
