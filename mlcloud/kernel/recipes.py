"""Values that cannot be pickled: which cells made them, and making them again from these.

    after a cell   Recipes.cell() ─► name ─► the cells that made it what it is, in order
    snapshot       `Recipes.body()`: these cells, and the state each of them found
    restore        Rebuilding: for each cell in turn, the names it mentions as they were before it,
                   its random states, run it, keep what it made

What a cell found is named, not copied: groups of the snapshot before it, which are in the store. A
recipe begins with the cell that bound the object (or that made it unpicklable) and goes on with
each that may have changed it since: `fingerprint` tells for most; of what shows no state each cell
that mentions it counts. Where a cell used another such object, that one's cells come first.

What shares objects with a rebuilt value is saved by itself. If the cells make it again as it was,
theirs is taken, so that aliases stay aliases; else what was saved.
"""

from __future__ import annotations

import ast
import contextlib
import types
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mlcloud import parsing
from mlcloud.kernel.imports import imported
from mlcloud.kernel.mentions import EVERYTHING, mentions, used_by
from mlcloud.values import userdata
from mlcloud.values.fingerprint import fingerprint
from mlcloud.values.messages import Group, ResolveBlob, Shipment, class_id
from mlcloud.values.pickling import dump
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import REACH, Scan, reach, unpack

MOST_CELLS = 200  # that one value may take


@dataclass
class CellRun:
    """What is remembered of one run of a cell."""

    step: int
    execution_id: str
    code: str  # as in the notebook
    transformed: str  # as IPython ran it
    cell: dict[str, Any] | None = None  # its place in the notebook, as `shell.Cell`
    shipment: dict[str, Any] | None = None  # what came with it
    seconds: float = 0.0
    effects: list[str] = field(default_factory=list)  # what it did to the world outside
    wanted: list[str] = field(default_factory=list)  # names it may have used
    failed: bool = False


@dataclass
class Recipe:
    """How an unpicklable value came to be."""

    cells: tuple[int, ...]
    kind: str  # the name of its type
    shares: frozenset[str] = frozenset()  # names whose objects are in it
    print: str | None = None  # its fingerprint when last looked at
    here: Any = None  # a weak reference to it, or its id
    digest: str | None = None  # of one that could have been saved (`choice`): it must come out so
    why: str = ""  # and why it is not
    size: int = 0  # bytes of such a one


class Recipes:
    """The unpicklable values of one namespace, and their cells."""

    def __init__(self, namespace: dict[str, Any], classes: Classes) -> None:
        self._namespace, self._classes = namespace, classes
        self.by_name: dict[str, Recipe] = {}
        self.cells: dict[int, CellRun] = {}
        self.stored: dict[str, Any] = {}  # of `cells`, as in the last body

    def cell(
        self,
        run: CellRun,
        scan: Scan,
        active: Collection[str],
        digests: Mapping[str, str] = MappingProxyType({}),
        why: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """A cell has run, which may have changed the names `active`; `scan` looked at these.

        `digests` are of names that could be saved, and shall be made again all the same; and why.
        """
        there = {key for key in scan.failed if class_id(key) is None and key in self._namespace}
        there |= digests.keys()
        looked = scan.pickled.keys() | scan.failed.keys()
        before = dict(self.by_name)
        for name in list(self.by_name):
            if name not in self._namespace or (name in looked and name not in there):
                del self.by_name[name]
        if not there:
            self._prune()
            return
        if run.failed:
            # In doubt it is not what changed a value: as it ends, it cannot be run again.
            active = closure(mentions(run.transformed), self._namespace, scan)
        everything = EVERYTHING in active
        found = {name for name in before if everything or name in active}
        bound = _only_bound(run.transformed)
        groups = {name: group for group in scan.groups(looked) for name in group}
        used = {n for name in found - bound for n in before[name].cells}
        for name in there:
            value = self._namespace[name]
            known = before.get(name)
            shares = frozenset(n for n in groups[name] - there if class_id(n) is None)
            digest = digests.get(name)
            print_ = digest or fingerprint(value, self._namespace, self._classes)
            cells = set[int]()
            if known is not None and is_same(value, known.here):
                cells.update(known.cells)
                seen = print_ is not None and known.print is not None
                if print_ != known.print if seen else everything or name in active:
                    cells |= used | {run.step}
            else:
                cells |= used | {run.step}
            self.by_name[name] = Recipe(
                *(tuple(sorted(cells)), type(value).__qualname__, shares, print_),
                *(_reference(value), digest, why.get(name, "")),
                size=scan.pickled[name].size if digest else 0,
            )
        run.wanted = sorted(closure(mentions(run.transformed), self._namespace, scan))
        self.cells[run.step] = run
        self._prune()

    def _prune(self) -> None:
        """Forget cells that no recipe needs."""
        needed = {step for recipe in self.by_name.values() for step in recipe.cells}
        self.cells = {step: run for step, run in self.cells.items() if step in needed}
        self.stored = {step: one for step, one in self.stored.items() if int(step) in needed}

    def restored(self, stored: dict[str, Any], recipes: dict[str, Recipe]) -> None:
        """Go on from a snapshot's: what was made again is followed from here on."""
        self.stored = dict(stored)
        for name, recipe in recipes.items():
            if name in self._namespace:
                value = self._namespace[name]
                recipe.here = _reference(value)
                recipe.print = recipe.digest or fingerprint(value, self._namespace, self._classes)
                self.by_name[name] = recipe
        self._prune()


def closure(mentioned: Collection[str], namespace: dict[str, Any], scan: Scan) -> set[str]:
    """The names, and those that the notebook's functions among them use; all, if none tells.

    `scan` has looked at some of them already.
    """
    found, waiting = set[str](), list(mentioned)
    while waiting:
        name = waiting.pop()
        if name == EVERYTHING:
            return {n for n, value in namespace.items() if not userdata.is_internal(n, value)}
        if name in found:
            continue
        found.add(name)
        codes: list[Any] = []
        if name in scan.pickled or name in scan.failed:
            codes.extend(scan.codes([name]))
        elif name in namespace:
            reach(namespace[name], REACH, namespace, codes)
        waiting.extend(used_by(codes) - found)
    return {name for name in found if name in namespace or name.isidentifier()}


class Rebuilding:
    """One restore's unpicklable values: the cells to run, and the namespace around each of them.

    The saved names are bound already. `refused`: steps that must not run again, and why.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        classes: Classes,
        recipes: dict[str, Recipe],
        runs: dict[int, CellRun],
        inputs: dict[int, list[Group]],
        final: dict[frozenset[str], str],
        resolve: ResolveBlob | None,
    ) -> None:
        self._namespace, self._classes = namespace, classes
        self._recipes, self._runs, self._inputs = dict(recipes), runs, inputs
        self._final_groups, self._resolve = final, resolve
        self._final = _user_names(namespace)
        self._live: dict[str, Any] = {}
        self._left: dict[str, Any] = {}
        self._loaded: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, str] = {}
        self.ran: list[int] = []
        self.also: set[int] = set()  # cells that run with those of other ranks
        self._failed: dict[int, str] = {}
        for name, recipe in recipes.items():
            if why := self._why_not(recipe):
                self._give_up(name, why)

    def _why_not(self, recipe: Recipe) -> str:
        for step in recipe.cells:
            run = self._runs.get(step)
            if run is None:
                return f"cell {step}, which made it, is not in the snapshot"
            if run.effects:
                return (
                    f"cell {step}, which made it, is not run again by itself, since it "
                    f"{run.effects[0]}; run it again where that does no harm"
                )
        if len(recipe.cells) > MOST_CELLS:
            return f"{len(recipe.cells)} cells made it, more than {MOST_CELLS}: run them again"
        return ""

    def _give_up(self, name: str, why: str) -> None:
        self.missing[name] = why
        del self._recipes[name]

    def cells(self) -> Iterator[CellRun]:
        """The cells to run, in order, each with the namespace as it found it."""
        steps = {step for recipe in self._recipes.values() for step in recipe.cells}
        try:
            for step in sorted(steps | self.also):
                run = self._runs[step]
                self._set_up(run)
                self.ran.append(step)
                yield run
                self._keep(step)
        finally:
            self._finish()

    def failed(self, step: int, error: BaseException | None) -> None:
        """How a cell ended that was run again; an error is no reason by itself to give up."""
        if error is not None:
            self._failed[step] = f"{type(error).__name__}: {error}"

    def _set_up(self, run: CellRun) -> None:
        namespace = self._namespace
        self._bind_final()
        found = dict[str, Any]()
        there = set[str]()
        for group in self._inputs[run.step]:
            there.update(group.names)
            if self._final_groups.get(frozenset(group.keys)) == group.digest:
                continue
            if group.digest not in self._loaded:
                values = unpack(group, namespace, self._classes, blobs=self._resolve)
                self._loaded[group.digest] = {n: values[n] for n in group.names}
            found.update(self._loaded[group.digest])
        for name in set(run.wanted) & self._final.keys() - there:
            if not isinstance(self._final[name], types.ModuleType):
                namespace.pop(name, None)
        # What earlier cells left and no snapshot has: it could not be pickled either.
        namespace.update({n: v for n, v in self._left.items() if n not in there})
        namespace.update(found)
        self._ship(run)
        namespace.update(self._live)

    def _ship(self, run: CellRun) -> None:
        """What came with the cell from its notebook."""
        if run.shipment is None:
            return
        shipment = Shipment.from_wire(run.shipment["wire"])
        for entry in shipment.imports:
            self._namespace[entry.name] = imported(entry)
        for name in shipment.deletes:
            self._namespace.pop(name, None)
        for group in shipment.groups:
            if not set(group.names) & self._live.keys():
                values = unpack(
                    group,
                    self._namespace,
                    self._classes,
                    blobs=self._resolve,
                    refs=lambda ref: self._namespace[ref[1]],
                )
                self._namespace.update({n: values[n] for n in group.names})

    def _keep(self, step: int) -> None:
        """What the recipes that have begun are about goes on living between their cells."""
        self._left = {
            name: value
            for name, value in _user_names(self._namespace).items()
            if value is not self._final.get(name)
        }
        for name, recipe in self._recipes.items():
            if recipe.cells[0] > step:
                continue
            for each in (name, *recipe.shares):
                if each in self._namespace:
                    self._live[each] = self._namespace[each]
                else:
                    self._live.pop(each, None)

    def _bind_final(self) -> None:
        for name in _user_names(self._namespace).keys() - self._final.keys():
            del self._namespace[name]
        self._namespace.update(self._final)

    def _finish(self) -> None:
        """The saved names again, and with them what was made."""
        made = dict(self._live)
        self._bind_final()
        for name, recipe in list(self._recipes.items()):
            if name in made and type(made[name]).__qualname__ == recipe.kind:
                self._namespace[name] = made[name]
                if recipe.digest and recipe.digest != self._digest(made[name]):
                    cells = ", ".join(map(str, recipe.cells))
                    self.missing[name] = (
                        f"its cells ({cells}) ran again and made another value than before, which "
                        "is bound to it now"
                    )
                continue
            failed = [self._failed[step] for step in recipe.cells if step in self._failed]
            cells = ", ".join(map(str, recipe.cells))
            why = failed[-1] if failed else "they did not bind it"
            self._give_up(name, f"its cells ({cells}) ran again and did not make it: {why}")
        shared = {n for recipe in self._recipes.values() for n in recipe.shares if n in made}
        if shared and all(self._same(made[n], self._final.get(n)) for n in shared):
            self._namespace.update({n: made[n] for n in shared})

    def _digest(self, value: Any) -> str:
        return dump((value,), self._namespace, classes=self._classes, inline=()).digest

    def _same(self, made: Any, saved: Any) -> bool:
        if made is saved:
            return True
        with contextlib.suppress(Exception):  # whatever a type's own code raises
            if self._digest(made) == self._digest(saved):
                return True
            return type(made) is type(saved) and made == saved and type(made) in _COMPARABLE
        return False


_COMPARABLE = frozenset({list, dict, set, bytearray})


def _user_names(namespace: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in namespace.items() if not userdata.is_internal(name, value)
    }


def _reference(value: Any) -> Any:
    try:
        return weakref.ref(value)
    except TypeError:
        return id(value)


def is_same(value: Any, reference: Any) -> bool:
    """Whether this is the object; where nothing tells two apart at one address, they are one."""
    if isinstance(reference, weakref.ref):
        return reference() is value
    return bool(id(value) == reference)


def _only_bound(code: str) -> set[str]:
    """Names that the code binds and does not mention in any other way."""
    try:
        tree = parsing.parse(code)
    except SyntaxError:
        return set()
    bound, used = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (bound if isinstance(node.ctx, ast.Store) else used).add(node.id)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            used.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.update(node.value.split())
    return bound - used
