"""Which names a cell reads, binds and deletes, told from its text before it runs.

    cell ─ (IPython's transformer, if it is not plain Python) ─► ast ─► _Cell ─► CellNames
    closure(names, namespace) ─► and the names that the notebook functions among them use

`reads` are names the cell *may* read from outside: read before it certainly bound them. The walk
follows the cell from top to bottom with the set of names that are certainly bound so far:

- both arms of an `if`, or all cases of a `match` with a default, must bind a name for it to count;
  loops may run zero times; a `try` may stop anywhere;
- a function's body runs later: the globals it uses are read where its name is first used, or at the
  cell's end, and only if they are not bound by then. A decorated function may be called at once.
- comprehensions, lambdas and class bodies run where they stand, in a scope of their own.

Too many reads cost bytes; too few lose a value. In doubt a name is read.

`%time f(x)`, `%%capture` and the like hold Python and are read as such; in `!cmd {x} $y` and in
other magics' lines the interpolated names are read.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mlcloud.client.scopes import (
    DYNAMIC,
    CellNames,
    arguments,
    captures,
    class_names,
    function_names,
    matches_all,
    may_suppress,
    outside_of,
    root_of,
)
from mlcloud.values.uses import closure

__all__ = ["CellNames", "analyze", "closure", "parse"]

_RUNS_CODE = {"time", "timeit", "prun", "capture", "memit", "mprun", "lprun", "debug"}
_PLAIN_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_OPTION = re.compile(r"^\s*(-\w+(\s*\d+)?\s+)+")


def parse(cell: str) -> ast.Module:
    """The cell as Python. Raises SyntaxError with the cell's own line numbers."""
    try:
        return _compile(cell)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        return _compile(TransformerManager().transform_cell(cell))


def _compile(source: str) -> ast.Module:
    tree = compile(source, "<cell>", "exec", _PLAIN_FLAGS, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


def analyze(cell: str, namespace: Mapping[str, Any]) -> CellNames:
    """What the cell reads and binds. Builtins count only where `namespace` replaces them."""
    walk = _Cell(CellNames())
    walk.block(parse(cell).body)
    walk.finish()
    names = walk.names
    replaced = {name for name in names.reads if name in namespace}
    names.reads = {name for name in names.reads if not hasattr(builtins, name)} | replaced
    return names


class _Cell:
    """Walks statements in order. `bound`: certainly bound here; `bottom`: never gets here."""

    def __init__(self, names: CellNames) -> None:
        self.names = names
        self.bound: set[str] = set()
        self.bottom = False
        self.later: dict[str, set[str]] = {}  # function -> globals it reads once it is called

    def finish(self) -> None:
        """Functions are used after the cell too: they need what the cell did not bind."""
        for name in list(self.later):
            self.use(name)

    # --- names

    def use(self, name: str) -> None:
        """`name` is read here; if it is a function of this cell, so is what it reads."""
        self.names.mentions.add(name)
        if name not in self.bound:
            self.names.reads.add(name)
        for inner in self.later.pop(name, ()):
            self.use(inner)

    def bind(self, name: str, *, certain: bool = True) -> None:
        self.names.binds.add(name)
        self.names.mentions.add(name)
        if certain:
            self.bound.add(name)

    def delete(self, name: str) -> None:
        self.use(name)
        self.bound.discard(name)
        self.names.deletes.add(name)

    # --- statements

    def block(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def branches(self, *bodies: Iterable[ast.stmt], start: set[str] | None = None) -> None:
        """Alternatives: what is bound after them is bound in each that gets to its end."""
        before = set(self.bound if start is None else start)
        ends = []
        for body in bodies:
            self.bound, self.bottom = set(before), False
            self.block(body)
            if not self.bottom:
                ends.append(self.bound)
        self.bottom = not ends
        self.bound = set.intersection(*ends) if ends else before

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.function(node)
            case ast.ClassDef():
                self.class_(node)
            case ast.Assign(targets=targets, value=value):
                self.expression(value)
                for target in targets:
                    self.target(target)
            case ast.AugAssign(target=target, value=value):
                self.expression(value)
                if isinstance(target, ast.Name):
                    self.use(target.id)
                    self.names.mutates.add(target.id)
                self.target(target)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                self.expression(annotation)
                if value is not None:
                    self.expression(value)
                    self.target(target)
            case ast.For() | ast.AsyncFor():
                self.expression(node.iter)
                before = set(self.bound)
                self.target(node.target)
                self.block(node.body)
                self.bound, self.bottom = before, False
                self.branches(node.orelse, [])
            case ast.While(test=test, body=body, orelse=orelse):
                self.expression(test)
                before = set(self.bound)
                self.block(body)
                self.bound, self.bottom = before, False
                self.branches(orelse, [])
            case ast.If(test=test, body=body, orelse=orelse):
                self.expression(test)
                self.branches(body, orelse)
            case ast.With() | ast.AsyncWith():
                self.with_(node)
            case ast.Match():
                self.match(node)
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                self.try_(body, handlers, orelse, final)
            case ast.Import(names=aliases):
                for alias in aliases:
                    name = alias.asname or alias.name.partition(".")[0]
                    self.names.imports[name] = alias.name if alias.asname else name
                    self.names.attributes.update(alias.name.split("."))
                    self.bind(name)
            case ast.ImportFrom(names=aliases, module=module, level=level):
                origin = "." * level + (module or "")
                for alias in aliases:
                    if alias.name == "*":
                        self.names.star_imports.append(origin)
                        continue
                    name = alias.asname or alias.name
                    self.names.imports[name] = f"{origin}:{alias.name}"
                    self.bind(name)
            case ast.Delete(targets=targets):
                for target in targets:
                    if isinstance(target, ast.Name):
                        self.delete(target.id)
                    else:
                        self.target(target)
            case ast.Raise() | ast.Return() | ast.Continue() | ast.Break():
                self.expressions(node)
                self.bottom = True
            case _ if type(node).__name__ == "TryStar":
                star: Any = node
                self.try_(star.body, star.handlers, star.orelse, star.finalbody)
            case _ if type(node).__name__ == "TypeAlias":
                alias_: Any = node
                self.free(function_names([], [ast.Expr(alias_.value)]))
                self.bind(alias_.name.id)
            case _:
                self.expressions(node)

    def with_(self, node: ast.With | ast.AsyncWith) -> None:
        before, swallows = set(self.bound), False
        for item in node.items:
            self.expression(item.context_expr)
            swallows |= may_suppress(item.context_expr)
            if item.optional_vars is not None:
                self.target(item.optional_vars)
        self.block(node.body)
        if swallows:
            self.bound, self.bottom = before, False

    def try_(
        self,
        body: list[ast.stmt],
        handlers: list[ast.ExceptHandler],
        orelse: list[ast.stmt],
        final: list[ast.stmt],
    ) -> None:
        before = set(self.bound)
        self.block([*body, *orelse])
        ends = [] if self.bottom else [self.bound]
        for handler in handlers:
            self.bound, self.bottom = set(before), False
            if handler.type is not None:
                self.expression(handler.type)
            if handler.name:
                self.bind(handler.name)
            self.block(handler.body)
            if handler.name:
                self.bound.discard(handler.name)
            if not self.bottom:
                ends.append(self.bound)
        after, bottom = set.intersection(*ends) if ends else set(before), not ends
        self.bound, self.bottom = before, False
        self.block(final)
        self.bound, self.bottom = after | self.bound, bottom or self.bottom

    def match(self, node: ast.Match) -> None:
        self.expression(node.subject)
        before, ends, default = set(self.bound), [], False
        for case in node.cases:
            self.bound, self.bottom = set(before), False
            for part in ast.walk(case.pattern):
                if isinstance(part, (ast.MatchValue, ast.MatchClass)):
                    self.expression(part.value if isinstance(part, ast.MatchValue) else part.cls)
                for name in captures(part):
                    self.bind(name)
            if case.guard is not None:
                self.expression(case.guard)
            default |= case.guard is None and matches_all(case.pattern)
            self.block(case.body)
            if not self.bottom:
                ends.append(self.bound)
        if not default:
            ends.append(before)
        self.bound = set.intersection(*ends) if ends else before
        self.bottom = not ends

    def target(self, node: ast.AST) -> None:
        """What an assignment writes to."""
        match node:
            case ast.Name(id=name):
                self.bind(name)
                self.later.pop(name, None)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self.target(part)
            case ast.Starred(value=value):
                self.target(value)
            case ast.Attribute() | ast.Subscript():
                root = root_of(node)
                if root is not None:
                    self.names.mutates.add(root)
                self.expression(node)

    # --- functions and classes

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outside in (*node.decorator_list, *outside_of(node)):
            self.expression(outside)
        used = function_names(arguments(node.args), node.body)
        self.note(used)
        self.bind(node.name)
        if node.decorator_list:
            self.free(used)
        else:
            self.later[node.name] = used.reads

    def class_(self, node: ast.ClassDef) -> None:
        for outside in (*node.decorator_list, *node.bases, *(k.value for k in node.keywords)):
            self.expression(outside)
        used, methods = class_names(node)
        self.note(used)
        self.note(methods)
        for name in used.reads:
            self.use(name)
        self.bind(node.name)
        if node.decorator_list:
            self.free(methods)
        else:
            self.later[node.name] = methods.reads

    def note(self, used: CellNames) -> None:
        """A body's effects that do not depend on when it runs."""
        self.names.attributes |= used.attributes
        self.names.dynamic |= used.dynamic
        self.names.mutates |= used.mutates
        self.names.mentions |= used.reads | used.binds
        for name in used.binds:
            self.bind(name, certain=False)

    def free(self, used: CellNames) -> None:
        """A body that may run here."""
        self.note(used)
        for name in used.reads:
            self.use(name)

    # --- expressions

    def expressions(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            self.expression(child)

    def expression(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name):
                self.names.dynamic |= name in DYNAMIC and name not in self.bound
                self.use(name)
            case ast.NamedExpr(target=target, value=value):
                self.expression(value)
                self.target(target)
            case ast.BoolOp(values=[first, *rest]):
                self.maybe(first, rest)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.maybe(test, [body])
                self.maybe(None, [orelse])
            case ast.Attribute(value=value, attr=attr):
                self.names.attributes.add(attr)
                self.expression(value)
            case ast.Lambda():
                for outside in outside_of(node):
                    self.expression(outside)
                self.free(function_names(arguments(node.args), [ast.Expr(node.body)]))
            case _ if isinstance(node, _COMPREHENSIONS):
                self.free(function_names([], [ast.Expr(node)]))
                for part in ast.walk(node):
                    if isinstance(part, ast.NamedExpr):
                        self.bind(part.target.id, certain=False)
            case ast.Call(
                func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=attr),
                args=args,
            ):
                if attr in ("run_line_magic", "run_cell_magic"):
                    self.magic(args)
                else:
                    self.shell(args)
            case _:
                self.expressions(node)

    def maybe(self, first: ast.AST | None, rest: list[ast.expr]) -> None:
        """`first` runs; of the rest what is bound is not certain."""
        if first is not None:
            self.expression(first)
        before = set(self.bound)
        for part in rest:
            self.expression(part)
        self.bound = before

    # --- IPython

    def magic(self, args: list[ast.expr]) -> None:
        """`get_ipython().run_line_magic("time", "f(x)")` and its cell form."""
        texts = [arg.value for arg in args if isinstance(arg, ast.Constant)]
        if len(texts) != len(args) or not all(isinstance(text, str) for text in texts) or not texts:
            for arg in args:
                self.expression(arg)
            return
        name, line, body = str(texts[0]), str(texts[1]) if len(texts) > 1 else "", texts[2:]
        self.names.dynamic |= name in ("run", "load", "pylab", "reset", "reset_selective")
        self.interpolated(line)
        if name in ("pinfo", "pinfo2") and (word := re.match(r"\w+", line)):
            self.use(word[0])
        if name == "capture" and (word := re.match(r"[A-Za-z_]\w*", line)):
            self.bind(word[0])
        if name not in _RUNS_CODE:
            return
        for source in [_OPTION.sub("", line) if name != "capture" else "", *map(str, body)]:
            try:
                tree = parse(source)
            except SyntaxError:
                continue  # the magic itself will say so
            before = set(self.bound)
            self.block(tree.body)
            if name == "timeit":
                self.bound = before  # it binds in a namespace of its own

    def shell(self, args: list[ast.expr]) -> None:
        """`!ls {folder} $name`."""
        for arg in args:
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
                self.interpolated(arg.value)
            else:
                self.expression(arg)

    def interpolated(self, text: str) -> None:
        """`{expression}` and `$name` in a line that IPython expands."""
        for name in re.findall(r"\$\{?([A-Za-z_]\w*)", text):
            self.use(name)
        for source in re.findall(r"\{([^{}]+)\}", text):
            try:
                self.expression(ast.parse(source.partition("!")[0].strip(), mode="eval").body)
            except SyntaxError:
                continue  # the shell's own braces
