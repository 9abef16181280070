"""The global names used by a piece of a cell that runs in a scope of its own.

A function's body, a lambda, a class body and a comprehension each become a `CellNames` that says
what they read, bind (`global x`) and mutate *outside* themselves, whatever the order in which they
do it: their inner scopes are worked out first, and what those read is either local here or passed
on. `names` decides when such a body runs, and so whether the name was bound by then.

At the end, what both ask of single pieces of syntax.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlcloud import parsing
from mlcloud.client.dynamic import RUNS_TEXT, hidden_code, main_name, named_global

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SUPPRESSES = {"suppress", "raises", "ExitStack", "AsyncExitStack"}


@dataclass
class CellNames:
    """What a cell does with global names."""

    reads: set[str] = field(default_factory=set)  # may be read before the cell binds them
    binds: set[str] = field(default_factory=set)  # may be bound
    deletes: set[str] = field(default_factory=set)
    mutates: set[str] = field(default_factory=set)  # x.a = 1, x[0] = 1, del x[0], x += 1
    imports: dict[str, str] = field(default_factory=dict)  # bound name -> what it is imported from
    star_imports: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)  # every `.name`: which submodules are used
    mentions: set[str] = field(default_factory=set)  # every global name in the text
    dynamic: set[str] = field(default_factory=set)  # `exec(…)`, …: uses names nobody can see here


def function_names(arguments: list[str], body: list[Any]) -> CellNames:
    """The global names a function body reads and (by `global`) binds, whatever the order."""
    inner = _Body(set(arguments))
    inner.collect(body)
    used = CellNames(attributes=inner.attributes, dynamic=inner.dynamic)
    used.binds = inner.stores & inner.globals
    used.reads = (inner.loads - inner.local()) | (inner.globals & inner.loads)
    used.mutates = inner.mutates - inner.local()
    for nested, _ in inner.nested:
        used.reads |= nested.reads - inner.local()
        used.binds |= nested.binds
        used.mutates |= nested.mutates - inner.local()
        used.attributes |= nested.attributes
        used.dynamic |= nested.dynamic
    return used


def class_names(node: ast.ClassDef) -> tuple[CellNames, CellNames]:
    """(what the class body reads as it runs, what its methods read later)."""
    inner = _Body(set())
    inner.collect(node.body)
    now = CellNames(attributes=inner.attributes, dynamic=inner.dynamic)
    # A class body may read a global before it binds the same name itself: `x = x`.
    plain = {target for part in node.body for target in _early(part)}
    now.reads = inner.loads - (inner.local() - plain)
    now.binds = inner.stores & inner.globals
    now.mutates = inner.mutates - inner.local()
    methods = CellNames()
    parameters = set(type_parameters(node))
    now.reads -= parameters
    for nested, runs_now in inner.nested:
        to = now if runs_now else methods
        to.reads |= nested.reads - parameters
        to.binds |= nested.binds
        to.mutates |= nested.mutates
        to.attributes |= nested.attributes
        to.dynamic |= nested.dynamic
    return now, methods


def _early(node: ast.stmt) -> Iterator[str]:
    """Names a class-level assignment reads and writes at once."""
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        reads = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in reads:
                yield target.id


def read_before_walrus(comprehension: ast.AST) -> set[str]:
    """Names that a comprehension binds by `:=`, and may read before it has bound them.

    They are bound outside of it, and so read there.
    """
    targets = {
        part.target.id for part in ast.walk(comprehension) if isinstance(part, ast.NamedExpr)
    }
    early: set[str] = set()

    def visit(node: ast.AST, bound: set[str]) -> None:
        match node:
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                visit(value, bound)
                bound.add(name)
            case ast.Name(id=name, ctx=ast.Load()) if name in targets - bound:
                early.add(name)
            case ast.BoolOp(values=[first, *rest]):
                visit(first, bound)
                maybe = set(bound)
                for other in rest:
                    visit(other, maybe)
            case ast.Compare(left=left, comparators=[second, *rest]):
                visit(left, bound)
                visit(second, bound)
                maybe = set(bound)
                for other in rest:
                    visit(other, maybe)
            case ast.IfExp(test=first, body=body, orelse=orelse):
                visit(first, bound)
                for other in (body, orelse):
                    visit(other, set(bound))
            case _ if isinstance(node, COMPREHENSIONS):
                clauses(node, set(bound))
            case _:
                for child in ast.iter_child_nodes(node):
                    visit(child, bound)

    def clauses(node: Any, bound: set[str]) -> None:
        for clause in node.generators:
            visit(clause.iter, bound)
            for test in clause.ifs:
                passed(test, bound)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for part in parts:
            visit(part, bound)

    def passed(test: ast.AST, bound: set[str]) -> None:
        """What follows runs only where this held: all of an `and` was evaluated."""
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            for value in test.values:
                passed(value, bound)
        else:
            visit(test, bound)

    visit(comprehension, set())
    return early


class _Body(ast.NodeVisitor):
    """Loads and stores of one scope; scopes inside it come out as `nested`."""

    def __init__(self, arguments: set[str]) -> None:
        self.loads: set[str] = set()
        self.stores: set[str] = set(arguments)
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()
        self.mutates: set[str] = set()
        self.attributes: set[str] = set()
        self.dynamic: set[str] = set()
        self.nested: list[tuple[CellNames, bool]] = []  # (its names, whether it runs at once)

    def local(self) -> set[str]:
        return self.stores - self.globals - self.nonlocals

    def collect(self, body: list[Any]) -> None:
        for node in body:
            self.visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.loads.add(node.id)
            if node.id in RUNS_TEXT:
                self.dynamic.add(node.id)
        else:
            self.stores.add(node.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.loads.add(node.target.id)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        for part in annotated(node.annotation):
            self.visit(part)
        if node.value is not None:
            self.visit(node.value)
        # `(a): int` says nothing of `a`, and makes it no local one either.
        if node.simple or node.value is not None or not isinstance(node.target, ast.Name):
            self.visit(node.target)

    def visit_Call(self, node: ast.Call) -> None:
        hidden = hidden_code(node)
        self.dynamic |= hidden.unknown
        inner = function_names([], hidden.statements)
        self.nested.append((CellNames(reads=inner.reads | hidden.reads), True))
        for part in hidden.parts:
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.attributes.add(node.attr)
        if (name := main_name(node)) is not None:
            self.nested.append((CellNames(reads={name}), True))
        self._mutation(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if (name := named_global(node)) is not None:
            binds = set() if isinstance(node.ctx, ast.Load) else {name}
            self.nested.append((CellNames(reads={name}, binds=binds), True))
            return
        self._mutation(node)

    def _mutation(self, node: ast.Attribute | ast.Subscript) -> None:
        root = root_of(node)
        if root is not None and not isinstance(node.ctx, ast.Load):
            self.mutates.add(root)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.globals.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.nonlocals.update(node.names)
        self.loads.update(node.names)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.stores.update(a.asname or a.name.partition(".")[0] for a in node.names)

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.stores.add(node.name)
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        self.stores.update(captures(node))
        super().generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.stores.add(node.name)
        for decorator in node.decorator_list:
            self.visit(decorator)
        parameters = type_parameters(node)
        self._outside(parameters, outside_of(node))
        self.nested.append((function_names([*arguments(node.args), *parameters], node.body), False))

    def _outside(self, parameters: list[str], parts: Iterable[ast.expr]) -> None:
        """What is evaluated around a scope, where its type parameters are known."""
        if parameters:
            around = [ast.Expr(part) for part in parts]
            self.nested.append((function_names(parameters, around), True))
            return
        for part in parts:
            self.visit(part)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for outside in outside_of(node):
            self.visit(outside)
        self.nested.append((function_names(arguments(node.args), [ast.Expr(node.body)]), False))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.stores.add(node.name)
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._outside(type_parameters(node), bases_of(node))
        now, methods = class_names(node)
        self.nested += [(now, True), (methods, False)]

    def _comprehension(self, node: Any) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        inner = _Body(set())
        inner.visit(first.target)
        inner.collect(first.ifs)
        for clause in others:
            inner.visit(clause)
        results = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        inner.collect(list(results))
        walrus = {part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr)}
        self.stores |= walrus  # `:=` binds in the scope around the comprehension
        own = inner.stores - walrus
        used = CellNames(reads=inner.loads - own, mutates=inner.mutates - own)
        used.attributes, used.dynamic = inner.attributes, inner.dynamic
        self.nested.append((used, True))
        for nested, now in inner.nested:
            nested.reads -= own
            nested.mutates -= own
            self.nested.append((nested, now))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def arguments(args: ast.arguments) -> list[str]:
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    every += [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return [arg.arg for arg in every]


def outside_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[ast.expr]:
    """Defaults and annotations: evaluated where the function is defined."""
    yield from node.args.defaults
    yield from (default for default in node.args.kw_defaults if default is not None)
    if not isinstance(node, ast.Lambda):
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        every += [arg for arg in (node.args.vararg, node.args.kwarg) if arg is not None]
        for annotation in (*(arg.annotation for arg in every), node.returns):
            if annotation is not None:
                yield from annotated(annotation)
        yield from bounds_of(node)


def bases_of(node: ast.ClassDef) -> Iterator[ast.expr]:
    """Bases, keywords and the bounds of type parameters: evaluated where the class is defined."""
    yield from node.bases
    yield from (keyword.value for keyword in node.keywords)
    yield from bounds_of(node)


def type_parameters(node: ast.AST) -> list[str]:
    """`T` of `def f[T]`, `class A[T]` and `type A[T]`, names of that scope only."""
    return [parameter.name for parameter in getattr(node, "type_params", ())]


def bounds_of(node: ast.AST) -> Iterator[ast.expr]:
    """The bounds and defaults of type parameters."""
    for parameter in getattr(node, "type_params", ()):
        for field_name in ("bound", "default_value"):
            if (part := getattr(parameter, field_name, None)) is not None:
                yield part


def annotated(annotation: ast.expr) -> Iterator[ast.expr]:
    """An annotation, and what the strings in it say: `"Point"`, `list["Point"]`."""
    yield annotation
    for part in ast.walk(annotation):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            try:
                yield parsing.expression(part.value.strip())
            except (SyntaxError, ValueError):
                continue  # a word in a Literal, a text in an Annotated


def captures(node: ast.AST) -> Iterator[str]:
    """Names a `match` pattern binds."""
    if isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def matches_all(pattern: ast.pattern) -> bool:
    """Whether a `case` without a guard takes everything that gets to it."""
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def words_of(node: ast.AST) -> set[str]:
    """The names and attributes in an expression."""
    parts = list(ast.walk(node))
    words = {part.id for part in parts if isinstance(part, ast.Name)}
    return words | {part.attr for part in parts if isinstance(part, ast.Attribute)}


def root_of(node: ast.AST) -> str | None:
    """`x` of `x.a[0].b`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
