"""Parsing Python while other threads do, which the interpreter itself gets wrong at times.

Up to 3.11.7 and 3.12.1 the depth of the tree that is being made is kept once for all threads
(https://github.com/python/cpython/issues/106905): if the garbage collector runs a finalizer in the
middle, and another thread parses meanwhile, both raise SystemError. Their trees were right.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TypeVar

_Tree = TypeVar("_Tree")
_MOST_TRIES = 100


def parse(source: str | bytes) -> ast.Module:
    """Statements, as `ast.parse`. Raises SyntaxError, and ValueError for a null byte."""
    return undisturbed(lambda: ast.parse(source))


def expression(source: str) -> ast.expr:
    """One expression. Raises as `parse`."""
    return undisturbed(lambda: ast.parse(source, mode="eval").body)


def undisturbed(parsed: Callable[[], _Tree]) -> _Tree:
    """What `parsed()` gives, tried again where another thread disturbed it."""
    for _ in range(_MOST_TRIES):
        try:
            return parsed()
        except SystemError as error:
            if "recursion depth mismatch" not in str(error):
                raise
    return parsed()
