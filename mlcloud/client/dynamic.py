"""Code a cell holds as text, or names it reaches by a string: `exec("y = x")`, `globals()["x"]`.

What is written as a constant is read like the rest of the cell. What is not, `exec(code)`, cannot
be told before it runs, and is never guessed: `Hidden.unknown` names it, and the user is told that
names used only there are not sent.

    exec("…"), eval("…")                         the text, unless it gets a namespace of its own
    timeit.timeit("…", globals=globals())        the text: some call is given our namespace
    globals()["x"], get_ipython().user_ns["x"]   the name
    df.query("a > @x"), df.eval("a + @x")        the names after `@`
    __main__.x                                   the name
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from mlcloud import parsing

RUNS_TEXT = frozenset({"exec", "eval"})
_NAMESPACES = frozenset({"globals", "locals", "vars"})
_AT_NAME = re.compile(r"@([A-Za-z_]\w*)")


@dataclass
class Hidden:
    """What a call runs that is not written as code. `parts`: its operands still to be looked at."""

    parts: list[ast.expr] = field(default_factory=list)
    statements: list[ast.stmt] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


def hidden_code(node: ast.Call) -> Hidden:
    """What this call runs besides its function and arguments."""
    operands = [*node.args, *(keyword.value for keyword in node.keywords)]
    given = [part for part in operands if _is_namespace(part)]
    found = Hidden([node.func, *(part for part in operands if part not in given)])
    match node.func:
        case ast.Name(id=name) if name in RUNS_TEXT:
            found.parts.remove(node.func)
            own_namespace = len(operands) > 1 and not given
            if not own_namespace:
                _take(found, operands[:1], f"{name}(…)")
        case ast.Name(id=name) if name in _NAMESPACES:
            if not operands:
                found.unknown.add(f"{name}()")
        case ast.Attribute(attr="query" | "eval"):
            for text in _texts(operands):
                found.reads.update(_AT_NAME.findall(text))
        case _ if given:
            _take(found, [part for part in operands if part not in given], "globals()")
    return found


def _take(found: Hidden, operands: list[ast.expr], word: str) -> None:
    texts = _texts(operands)
    if not texts:
        found.unknown.add(word)
    for text in texts:
        try:
            found.statements += parsing.parse(text.strip()).body
        except (SyntaxError, ValueError):
            found.unknown.add(word)


def _texts(operands: list[ast.expr]) -> list[str]:
    return [
        part.value
        for part in operands
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def _is_namespace(node: ast.AST) -> bool:
    """`globals()`, or `get_ipython().user_ns`."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[], keywords=[]):
            return name in _NAMESPACES
        case ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr="user_ns"):
            return True
    return False


def named_global(node: ast.Subscript) -> str | None:
    """`x` of `globals()["x"]`."""
    if _is_namespace(node.value) and isinstance(node.slice, ast.Constant):
        name = node.slice.value
        return name if isinstance(name, str) and name.isidentifier() else None
    return None


def main_name(node: ast.Attribute) -> str | None:
    """`x` of `__main__.x`."""
    if isinstance(node.value, ast.Name) and node.value.id == "__main__":
        return node.attr
    return None
