"""What a remote error looks like, and what of it travels: only frames that are the user's.

An error comes with its causes, its context, and what is in it if it is an ExceptionGroup: its
`family`. `strip` takes the frames of IPython, ipykernel and mlcloud out of the tracebacks of all of
them; what is left is what a cell, a notebook function or a library did. IPython renders it, except
groups, which it does not know (9.18): those are rendered by the standard library.

Rendering is bounded: a `RecursionError` is 5,000 lines of IPython's (9.18) and takes it many
seconds, and a message may be as long as somebody's string. So of a long traceback the middle is not
rendered (`shortened`); the debugger still has it all.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from mlcloud.values.exceptions import BaseExceptionGroup

_INTERNAL = ("mlcloud.", "ipykernel.", "IPython.")
MOST_RENDERED = 40  # frames of one traceback
MOST_CHARACTERS = 100_000  # of one piece
MOST_FRAMES = 100  # that travel with an error
MOST_EXCEPTIONS = 50  # of one family


def family(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, the members of groups, and theirs; each once."""
    seen: set[int] = set()
    waiting = [error]
    while waiting and len(seen) < MOST_EXCEPTIONS:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        related = [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            related += each.exceptions
        waiting += [other for other in related if other is not None]


def strip(error: BaseException) -> None:
    """Take the internal frames out of the tracebacks of the error and its family."""
    for each in family(error):
        each.__traceback__ = _stripped(each.__traceback__)


def _stripped(trace: TracebackType | None) -> TracebackType | None:
    entries = list(_entries(trace))
    kept = [entry for entry in entries if not is_internal(entry.tb_frame)]
    if len(kept) == len(entries):
        return trace
    chain: TracebackType | None = None
    for entry in reversed(kept):
        chain = TracebackType(chain, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return chain


def _entries(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def is_internal(frame: FrameType) -> bool:
    """Whether a frame is the machinery's, and none of the user's business."""
    return str(frame.f_globals.get("__name__", "")).startswith(_INTERNAL)


# --- rendering ------------------------------------------------------------------------------------


def holds_group(error: BaseException) -> bool:
    """Whether there is an ExceptionGroup in what would be shown."""
    return any(isinstance(each, BaseExceptionGroup) for each in family(error))


def group_lines(error: BaseException, shell: Any) -> list[str]:
    """An ExceptionGroup as Python shows it, with the cells named as IPython names them."""
    if shell.InteractiveTB.mode == "Minimal":
        return [f"{type(error).__name__}: {text_of(error)}"]
    shown = traceback.TracebackException.from_exception(error)
    _label(shown, shell, set())
    return "".join(shown.format()).splitlines()


def _label(shown: Any, shell: Any, seen: set[int]) -> None:
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    for frame in shown.stack:
        label = shell.compile.format_code_name(frame.filename)
        if label is not None:
            frame.line  # noqa: B018  # reads and keeps the line while the name is the file's
            frame.filename = " ".join(label)
    for other in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        _label(other, shell, seen)


def summary(trace: TracebackType | None) -> traceback.StackSummary:
    """The frames as the standard library lists them."""
    return traceback.extract_tb(trace)


def text_of(error: Any) -> str:
    """`str(error)`, whatever that does, and not endless."""
    try:
        text = str(error)
    except Exception as failure:
        text = f"<its __str__ failed: {type(failure).__name__}>"
    return _cut(text)


_GAP = re.compile(r"<mlcloud gap of (\d+)>")


@contextlib.contextmanager
def shortened(error: BaseException) -> Iterator[None]:
    """While it lasts, long tracebacks of the family lack their middle."""
    whole = [(each, each.__traceback__) for each in family(error)]
    try:
        for each, trace in whole:
            each.__traceback__ = _shortened(trace)
        yield
    finally:
        for each, trace in whole:
            each.__traceback__ = trace


def _shortened(trace: TracebackType | None) -> TracebackType | None:
    entries = list(_entries(trace))
    if len(entries) <= MOST_RENDERED:
        return trace
    half = MOST_RENDERED // 2
    gap = _gap(len(entries) - 2 * half)
    chain: TracebackType | None = None
    for entry in reversed([*entries[:half], gap, *entries[-half:]]):
        chain = TracebackType(chain, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return chain


def _gap(count: int) -> TracebackType:
    """A traceback entry that stands for others; `bounded` puts words in its place."""
    try:
        exec(compile("raise LookupError", f"<mlcloud gap of {count}>", "exec"), {})
    except LookupError as error:
        trace = error.__traceback__
    assert trace is not None
    assert trace.tb_next is not None
    return trace.tb_next


def bounded(pieces: Iterable[str]) -> list[str]:
    """The pieces of a rendered traceback: none of them endless, gaps in words."""
    shown = []
    for piece in map(_cut, pieces):
        gap = _GAP.search(piece)
        if gap is None:
            shown.append(piece)
        else:
            indent = re.match(r"[ |]*", piece)
            prefix = indent.group() if indent is not None else ""
            end = "\n" if piece.endswith("\n") else ""
            shown.append(f"{prefix or '    '}[... {int(gap[1]):,} frames not shown]{end}")
    return shown


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}… [{len(text) - 2 * half:,} characters not shown] …{text[-half:]}"


# --- what travels ---------------------------------------------------------------------------------

Frame = tuple[str, int, str, str]  # file, line, function, the line's text


def frames(trace: TracebackType | None) -> list[Frame]:
    """The frames of a traceback as plain data: the first and last ones, if there are many."""
    entries = list(_entries(trace))
    half = MOST_FRAMES // 2
    if len(entries) > MOST_FRAMES:
        entries = [*entries[:half], *entries[-half:]]
    found = []
    for entry in entries:
        code = entry.tb_frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        line = linecache.getline(code.co_filename, entry.tb_lineno, entry.tb_frame.f_globals)
        found.append((code.co_filename, entry.tb_lineno, name, _cut(line)))
    return found
