"""The source lines of notebook functions, which travel with them.

A function that was defined in a notebook cell has its lines in the `linecache` of the kernel that
ran the cell, and nowhere else. So that a traceback shows them on the other side (and `inspect`
finds them), the pickle of a function carries its lines:

    lines_of(code) ─► (filename, ((number of its first line, text), …))
                      ══ in the function's pickle ══► remember(lines) ─► linecache

Only what belongs to the function goes: its own statement, and the heads of the classes and
functions around it, by which tools find its qualified name. The rest of its cell stays where it is:
nobody asked for that to travel. Where nothing is known of a line, `linecache` has an empty one.

What was found once is kept, so that the pickle of an untouched function stays the same.
"""

from __future__ import annotations

import ast
import functools
import linecache
import os
import types
from collections.abc import Iterable, Iterator

from mlcloud import parsing

# A file's name, and pieces of it with their first line. It is reached by the pickles of functions:
# tuples bind no names together.
Lines = tuple[str, tuple[tuple[int, str], ...]]

_Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Placed = tuple[ast.stmt, tuple[_Scope, ...]]  # a statement, and what it is in
_found: dict[tuple[str, int, str], tuple[tuple[int, str], ...]] = {}
_known: dict[str, dict[int, str]] = {}  # what `remember` was told of each file
_MOST = 10_000  # functions whose lines are kept


def lines_of(code: types.CodeType) -> Lines | None:
    """The lines of a function's code, None where they are not known here."""
    filename, key = code.co_filename, (code.co_filename, code.co_firstlineno, code.co_name)
    found = _found.get(key)
    if found is None:
        text = linecache.getlines(filename)
        if not text:
            return None
        found = _pieces(text, _numbers(text, code))
        if len(_found) < _MOST:
            _found[key] = found
    return filename, found


def remember(lines: Lines) -> None:
    """Make these lines known to `linecache`, unless it has the file itself."""
    filename, pieces = lines
    known = _known.get(filename)
    if known is None:
        if filename in linecache.cache or os.path.exists(filename):
            return
        known = _known[filename] = {}
    for first, text in pieces:
        known.update(enumerate(text.splitlines(keepends=True), first))
    if known:
        whole = [known.get(number, "\n") for number in range(1, max(known) + 1)]
        # Without a time, `linecache.checkcache` leaves the entry alone.
        linecache.cache[filename] = (sum(map(len, whole)), None, whole, filename)


def _numbers(text: list[str], code: types.CodeType) -> set[int]:
    """The numbers of the lines that belong to this code."""
    first, last = code.co_firstlineno, _last_line(code)
    chosen = set(range(first, last + 1))
    for node, around in _statements("".join(text)):
        begin, end = _begin(node), node.end_lineno or 0
        own = getattr(node, "name", "") == code.co_name and begin == first
        # A lambda has no statement of its own: the innermost around it comes last.
        if own or (code.co_name == "<lambda>" and begin <= first and last <= end):
            chosen = {*range(begin, end + 1), *(n for each in around for n in _head(each))}
        if own:
            break
    return {number for number in chosen if number <= len(text)}


@functools.lru_cache(maxsize=16)
def _statements(text: str) -> list[_Placed]:
    """Every statement with the classes and functions around it, outer ones first."""
    try:
        tree = parsing.parse(text)
    except (SyntaxError, ValueError):
        return []

    def walk(node: ast.AST, around: tuple[_Scope, ...]) -> Iterator[_Placed]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield child, around
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from walk(child, (*around, child))
            else:
                yield from walk(child, around)

    return list(walk(tree, ()))


def _begin(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


def _head(node: _Scope) -> range:
    """The lines from `class` or `def` to where the body begins."""
    return range(node.lineno, max(node.lineno + 1, _begin(node.body[0])))


def _last_line(code: types.CodeType) -> int:
    numbers = [number for _, _, number in code.co_lines() if number]
    inner = [_last_line(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return max([code.co_firstlineno, *numbers, *inner])


def _pieces(text: list[str], numbers: Iterable[int]) -> tuple[tuple[int, str], ...]:
    """Lines as pieces without gaps."""
    pieces: list[tuple[int, str]] = []
    previous = 0
    for number in sorted(numbers):
        if pieces and number == previous + 1:
            first, before = pieces[-1]
            pieces[-1] = (first, before + text[number - 1])
        else:
            pieces.append((number, text[number - 1]))
        previous = number
    return tuple(pieces)
