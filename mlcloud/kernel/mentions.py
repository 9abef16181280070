"""Which names a cell's code mentions: only what these lead to can the cell have changed.

    mentions(transformed code) ─► names          of variables, attributes, and words in its strings
    used_by(code objects)      ─► names          the same, of functions that are there already
                                └► EVERYTHING     it reaches the namespace by ways that names hide

Words in strings count, so `df.query("a > @limit")`, `getattr(x, "y")` and `%time f(x)` are seen. A
name too many costs time; one too few would lose a change.
"""

from __future__ import annotations

import ast
import dis
import functools
import re
import types
from collections.abc import Iterable

from mlcloud import parsing

#: Stands for every name there is.
EVERYTHING = "*"
_ALL = frozenset({EVERYTHING})

# Functions and modules with which code reaches what it does not name, or runs what is not here.
_HIDING_NAMES = frozenset(
    {"exec", "eval", "compile", "globals", "locals", "vars", "ctypes", "inspect", "runpy"}
)
_HIDING_ATTRIBUTES = frozenset(
    {"__globals__", "f_globals", "f_locals", "_getframe", "user_ns", "user_global_ns", "run_path"}
    | {"run_module", "exec_module", "get_objects", "get_referrers", "get_referents", "push", "ex"}
)
# Magics that run what is not in the cell, or change names unseen.
_MAGICS = frozenset(
    {"run", "rerun", "recall", "macro", "store", "reset", "reset_selective", "edit"}
)
_WORD = re.compile(r"[^\W\d]\w*")
_LONG = 100_000  # what a string of this length is for nobody knows


def mentions(code: str) -> frozenset[str]:
    """Names in a cell's code as IPython has transformed it; or only EVERYTHING."""
    try:
        tree = parsing.parse(code)
    except SyntaxError:  # nothing of it has run, or it is no Python
        return _ALL
    names, attributes, texts = set[str](), set[str](), list[str | bytes]()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                names.add(name)
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                attributes.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                names.add(name)
            case ast.Global(names=several):
                names.update(several)
            case ast.alias(name="*"):
                return _ALL
            case ast.alias(name=name, asname=alias):
                names.update(((alias or name).split(".")[0], *name.split(".")))
            case ast.Constant(value=str(text) | bytes(text)):
                texts.append(text)
            case ast.Call(func=ast.Attribute(attr=call), args=[ast.Constant(value=magic), *_]):
                if call in ("run_line_magic", "run_cell_magic") and magic in _MAGICS:
                    return _ALL
    found = _judged(names, attributes, texts)
    if "get_ipython" in names and not _HIDING_NAMES.isdisjoint(found):
        return _ALL  # `%time exec(…)`
    return found


def used_by(codes: Iterable[types.CodeType]) -> frozenset[str]:
    """Names that functions mention, those inside them included; or with EVERYTHING among them."""
    return frozenset[str]().union(*map(_used, codes))


@functools.lru_cache(maxsize=4096)
def _used(code: types.CodeType) -> frozenset[str]:
    names, attributes, texts = set[str](code.co_freevars), set[str](), list[str | bytes]()
    for instruction in dis.get_instructions(code):
        if isinstance(instruction.argval, str):
            is_name = instruction.opname.endswith(("_GLOBAL", "_NAME"))
            (names if is_name else attributes).add(instruction.argval)
    inner = set[str]()
    waiting: list[object] = list(code.co_consts)
    while waiting:
        constant = waiting.pop()
        if isinstance(constant, types.CodeType):
            inner |= _used(constant)
        elif isinstance(constant, (str, bytes)):
            texts.append(constant)
        elif isinstance(constant, (tuple, frozenset)):
            waiting += constant
    return _judged(names, attributes, texts) | inner


def _judged(names: set[str], attributes: set[str], texts: Iterable[str | bytes]) -> frozenset[str]:
    if not _HIDING_NAMES.isdisjoint(names) or not _HIDING_ATTRIBUTES.isdisjoint(attributes):
        return _ALL
    found = names | attributes
    for text in texts:
        if "__main__" in found or len(text) > _LONG:
            return _ALL
        found.update(_WORD.findall(text if isinstance(text, str) else text.decode("latin-1")))
    return _ALL if "__main__" in found else frozenset(found)
