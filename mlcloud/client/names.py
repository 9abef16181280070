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
import types
from collections.abc import Iterable, Mapping
from typing import Any

from mlcloud import parsing
from mlcloud.client.dynamic import RUNS_TEXT, hidden_code, main_name, named_global
from mlcloud.client.scopes import (
    COMPREHENSIONS,
    SUPPRESSES,
    CellNames,
    annotated,
    arguments,
    bases_of,
    captures,
    class_names,
    function_names,
    matches_all,
    outside_of,
    read_before_walrus,
    root_of,
    type_parameters,
    words_of,
)
from mlcloud.values.uses import closure

__all__ = ["CellNames", "analyze", "closure", "parse"]

# Magics that run Python, and those of their options that take a word of their own.
_RUNS_CODE = {
    **{"time": "", "timeit": "nr", "prun": "DlsT", "capture": "", "debug": "b"},
    **{"memit": "rtic", "mprun": "fT", "lprun": "fmTDu"},
}
_PLAIN_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def parse(cell: str) -> ast.Module:
    """The cell as Python. Raises SyntaxError with the cell's own line numbers."""
    try:
        return _compile(cell)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        return _compile(TransformerManager().transform_cell(cell))


def _compile(source: str) -> ast.Module:
    tree = parsing.undisturbed(
        lambda: compile(source, "<cell>", "exec", _PLAIN_FLAGS, dont_inherit=True)
    )
    assert isinstance(tree, ast.Module)
    return tree


def analyze(cell: str, namespace: Mapping[str, Any]) -> CellNames:
    """What the cell reads and binds. Builtins count only where `namespace` replaces them."""
    walk = _Cell(CellNames(), namespace)
    walk.block(parse(cell).body)
    walk.finish()
    names = walk.names
    replaced = {name for name in names.reads if name in namespace}
    names.reads = {name for name in names.reads if not hasattr(builtins, name)} | replaced
    return names


def _without_options(line: str, valued: str) -> str:
    """A magic's line from where its code begins; the letters in `valued` take a word."""
    rest = line.lstrip()
    while match := re.match(r"(-\w+|--[\w-]+)(\s+|$)", rest):
        option, rest = match[1], rest[match.end() :]
        if len(option) == 2 and option[1] in valued:
            rest = re.sub(r"^\S+\s*", "", rest)
    return rest


def _deleted_in(body: Iterable[ast.AST]) -> set[str]:
    """Names that are deleted somewhere in there, and so may be unbound from its beginning on: in a
    loop's next round, in what follows an exception."""
    found: set[str] = set()
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Delete):
                found.update(each.id for each in node.targets if isinstance(each, ast.Name))
            elif isinstance(node, ast.ExceptHandler) and node.name:
                found.add(node.name)
    return found


class _Cell:
    """Walks statements in order. `bound`: certainly bound here; `bottom`: never gets here."""

    def __init__(self, names: CellNames, namespace: Mapping[str, Any]) -> None:
        self.names = names
        self.namespace = namespace
        self.bound: set[str] = set()
        self.bottom = False
        self.later: dict[str, set[str]] = {}  # function -> globals it reads once it is called

    def finish(self) -> None:
        """Functions are used after the cell too: they need what the cell did not bind."""
        for name in self.later:
            self.use(name)

    # --- names

    def use(self, name: str) -> None:
        """`name` is read here; if it is a function of this cell, so is what it reads."""
        waiting, used = [name], set[str]()
        while waiting:
            name = waiting.pop()
            if name not in used:
                used.add(name)
                waiting += self.later.get(name, ())
        self.names.mentions |= used
        self.names.reads |= used - self.bound

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
                if isinstance(target, ast.Name):
                    self.use(target.id)
                    self.names.mutates.add(target.id)
                else:
                    self.target(target)  # read before the value is worked out
                self.expression(value)
                self.target(target)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                for part in annotated(annotation):
                    self.expression(part)
                if value is not None:
                    self.expression(value)
                    self.target(target)
                elif not isinstance(target, ast.Name):
                    self.expressions(target)
            case ast.For() | ast.AsyncFor():
                self.expression(node.iter)
                self.bound -= _deleted_in(node.body)
                before = set(self.bound)
                self.target(node.target)
                self.block(node.body)
                self.bound, self.bottom = before, False
                self.branches(node.orelse, [])
            case ast.While(test=test, body=body, orelse=orelse):
                self.bound -= _deleted_in(body)
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
                    if origin == "__main__":
                        self.use(alias.name)
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
            case ast.Assert(test=test, msg=message):
                self.maybe(test, [] if message is None else [message])
            case ast.Raise() | ast.Return() | ast.Continue() | ast.Break():
                self.expressions(node)
                self.bottom = True
            case _ if type(node).__name__ == "TryStar":
                star: Any = node
                self.try_(star.body, star.handlers, star.orelse, star.finalbody)
            case _ if type(node).__name__ == "TypeAlias":
                alias_: Any = node
                self.free(function_names(type_parameters(node), [ast.Expr(alias_.value)]))
                self.bind(alias_.name.id)
            case _:
                self.expressions(node)

    def with_(self, node: ast.With | ast.AsyncWith) -> None:
        before, swallows = set(self.bound), False
        for item in node.items:
            self.expression(item.context_expr)
            swallows |= self.may_suppress(item.context_expr)
            if item.optional_vars is not None:
                self.target(item.optional_vars)
        self.block(node.body)
        if swallows:
            self.bound, self.bottom = before - _deleted_in(node.body), False

    def may_suppress(self, context: ast.expr) -> bool:
        """Whether a `with` over this may swallow an exception, and so end in its middle.

        Of a library's context managers only those known for it do; the notebook's own may.
        """
        words = words_of(context)
        if not SUPPRESSES.isdisjoint(words):
            return True
        if isinstance(context, ast.Call):
            context = context.func
        root = root_of(context)
        return root is None or self.is_own(root)

    def is_own(self, name: str) -> bool:
        """Whether the name's value was made in the notebook, or is not known."""
        if name in self.names.imports or (name not in self.names.binds and hasattr(builtins, name)):
            return False
        if name in self.names.binds or name not in self.namespace:
            return True
        value = self.namespace[name]
        if isinstance(value, types.ModuleType):
            return False
        if not isinstance(value, (type, types.FunctionType)):
            value = type(value)
        return bool(value.__module__ == self.namespace.get("__name__", "__main__"))

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
            self.bound, self.bottom = before - _deleted_in(body), False
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
        # It may come from anywhere in what stands before it.
        self.bound = before - _deleted_in([*body, *handlers, *orelse])
        self.bottom = False
        self.block(final)
        self.bound = (after - _deleted_in(final)) | self.bound
        self.bottom = bottom or self.bottom

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
        for decorator in node.decorator_list:
            self.expression(decorator)
        parameters = type_parameters(node)
        self.outside(parameters, outside_of(node))
        used = function_names([*arguments(node.args), *parameters], node.body)
        self.note(used)
        if self.calls_at_once(node):
            self.free(used)
        self.bind(node.name)
        if node.decorator_list:
            self.free(used)
        else:
            self.later.setdefault(node.name, set()).update(used.reads)

    def class_(self, node: ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            self.expression(decorator)
        self.outside(type_parameters(node), bases_of(node))
        used, methods = class_names(node)
        self.note(used)
        self.note(methods)
        for name in used.reads:
            self.use(name)
        if self.calls_at_once(node):
            self.free(methods)
        self.bind(node.name)
        if node.decorator_list:
            self.free(methods)
        else:
            self.later.setdefault(node.name, set()).update(methods.reads)

    def calls_at_once(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
        """Whether a decorator may call what it decorates before that has its name.

        A library's decorators do not; the notebook's own may.
        """
        for decorator in node.decorator_list:
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            root = root_of(call)
            if root is None or self.is_own(root):
                return True
        return False

    def outside(self, parameters: list[str], parts: Iterable[ast.expr]) -> None:
        """What is evaluated around a scope, where its type parameters are known."""
        if parameters:
            self.free(function_names(parameters, [ast.Expr(part) for part in parts]))
            return
        for part in parts:
            self.expression(part)

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
                if name in RUNS_TEXT and name not in self.bound:
                    self.names.dynamic.add(name)
                self.use(name)
            case ast.NamedExpr(target=target, value=value):
                self.expression(value)
                self.target(target)
            case ast.BoolOp(values=[first, *rest]):
                self.maybe(first, rest)
            case ast.Compare(left=left, comparators=[second, *rest]):
                self.expression(left)
                self.maybe(second, rest)  # `a < b < c` ends where it is known
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.maybe(test, [body])
                self.maybe(None, [orelse])
            case ast.Subscript() if (named := named_global(node)) is not None:
                if not isinstance(node.ctx, ast.Load):
                    self.bind(named, certain=False)
                self.use(named)
            case ast.Attribute(value=value, attr=attr):
                self.names.attributes.add(attr)
                if (named := main_name(node)) is not None:
                    self.use(named)
                self.expression(value)
            case ast.Lambda():
                for outside in outside_of(node):
                    self.expression(outside)
                self.free(function_names(arguments(node.args), [ast.Expr(node.body)]))
            case _ if isinstance(node, COMPREHENSIONS):
                self.free(function_names([], [ast.Expr(node)]))
                for name in read_before_walrus(node):
                    self.use(name)
                for part in ast.walk(node):
                    if isinstance(part, ast.NamedExpr):
                        self.bind(part.target.id, certain=False)
            case ast.Call(
                func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=attr),
                args=args,
            ):
                if attr in ("run_line_magic", "run_cell_magic"):
                    self.magic(args)
                elif attr in ("run_cell", "ex", "ev"):
                    self.text(args)
                else:
                    self.shell(args)
            case ast.Call():
                self.call(node)
            case _:
                self.expressions(node)

    def call(self, node: ast.Call) -> None:
        """A call, which may run code that is written in a string."""
        if isinstance(node.func, ast.Name) and node.func.id in self.bound:
            self.expressions(node)
            return
        hidden = hidden_code(node)
        self.names.dynamic |= hidden.unknown
        for part in hidden.parts:
            self.expression(part)
        for name in hidden.reads:
            self.use(name)
        self.block(hidden.statements)

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
        if name in ("run", "load", "pylab", "reset", "reset_selective"):
            self.names.dynamic.add(f"%{name}")
        self.interpolated(line)
        if name in ("pinfo", "pinfo2", "psource", "pdoc") and (word := re.match(r"\w+", line)):
            self.use(word[0])
        if name == "capture" and (word := re.match(r"[A-Za-z_]\w*", line)):
            self.bind(word[0])
        if name not in _RUNS_CODE:
            return
        before = set(self.bound)
        code = "" if name == "capture" else _without_options(line, _RUNS_CODE[name])
        for source in [code, *map(str, body)]:
            self.source(source)
        if name == "timeit":
            self.bound = before  # it binds in a namespace of its own

    def source(self, source: str) -> None:
        """Code that runs here, given as text."""
        try:
            tree = parse(source)
        except SyntaxError:
            return  # whatever runs it will say so
        self.block(tree.body)

    def text(self, args: list[ast.expr]) -> None:
        """`get_ipython().run_cell("…")`."""
        for arg in args:
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
                self.source(arg.value)
            else:
                self.names.dynamic.add("run_cell")
                self.expression(arg)

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
                self.expression(parsing.expression(source.partition("!")[0].strip()))
            except SyntaxError:
                continue  # the shell's own braces
