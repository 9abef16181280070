"""A remote cell's error, raised here as it was there.

    done, answer ─► rebuilt() ─► the exception itself, as far as its class can be imported here
                                 with its causes, its notes, its attributes (`values/exceptions.py`)
                                 its traceback: frames of the remote side, whose lines came along
                                 _render_traceback_: what IPython shows, rendered over there
                    raised   ─► show_as_it_was(): SyntaxErrors and ExceptionGroups too

Errors of mlcloud's own that stopped a cell before it ran come back as their classes, without a
traceback nobody needs.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import re
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mlcloud import errors, parsing
from mlcloud.client.frontend import shell
from mlcloud.values import exceptions, sources
from mlcloud.values.exceptions import BaseExceptionGroup, RemoteError

__all__ = ["RemoteError", "Rendering", "in_cell", "rebuilt", "show_as_it_was"]

_HEAD = "(most recent call last)"


class Rendering:
    """The traceback as it was rendered where the error happened; IPython calls it to show it.

    `shown`: the cell shows it already, in its place between the cell's outputs.
    """

    def __init__(self, lines: list[str], shown: bool = False) -> None:
        self.lines = lines
        self.shown = shown

    def __call__(self) -> list[str]:
        return self.lines


def rebuilt(
    done: dict[str, Any],
    answer: dict[str, Any],
    load: Callable[[Any], Any],
    *,
    session: str,
) -> BaseException:
    """The exception of a cell that failed.

    `done` is the content of its last event, with the traceback of its error; `answer` is what the
    kernel returned, and `load` unpickles a part of that.
    """
    name, message = str(done.get("ename", "Error")), str(done.get("evalue", ""))
    lines = list(done.get("traceback") or [f"{name}: {message}" if message else name])
    own: Any = getattr(errors, name, None)
    is_own = isinstance(own, type) and issubclass(own, errors.MLCloudError)
    records = answer.get("exception")
    if not records or answer.get("own") or records[0]["name"] != name:
        # It is the gateway's or the kernel's word, not the cell's.
        error: BaseException = own(message) if is_own else _by_name(name, message)
        if records and records[0]["name"] == "KeyboardInterrupt":  # its time or money was up
            lines = [*_with_place(done, lines, records, session)[:-1], f"{name}: {message}"]
        elif is_own:
            return error
    else:
        error = exceptions.unpack(records, load, lambda frames: _trace(frames, session))
        _give_words(error, message)
        lines = _with_place(done, answer.get("rendered") or lines, records, session)
    vars(error)["_render_traceback_"] = Rendering(lines, bool(done.get("shown")))
    if shell() is None:
        _show_lines_of_scripts()
    return error


def _give_words(error: BaseException, message: str) -> None:
    """An error whose `__str__` fails gets the words that the kernel found for it: ipykernel (7.4)
    would show another error in its place."""
    try:
        str(error)
    except Exception:
        kind = type(error)
        known = {"__str__": lambda _: message, "__module__": kind.__module__}
        with contextlib.suppress(TypeError):  # a class whose objects cannot change theirs
            error.__class__ = type(kind.__name__, (kind,), known)


def _show_lines_of_scripts() -> None:
    """Outside IPython the interpreter shows an error that nobody caught, and reads the lines of
    code from files only (until 3.13). The `traceback` module asks `linecache`, which has ours."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = traceback.print_exception


def in_cell(error: SyntaxError, cell: dict[str, Any]) -> SyntaxError:
    """A syntax error that was found here before anything was sent, at its place in the cell."""
    error.filename = cell["file"]
    before = cell["head"].count("\n")
    if error.lineno is not None:
        error.lineno += before
    if error.end_lineno is not None:
        error.end_lineno += before
    return error


def _by_name(name: str, message: str) -> BaseException:
    if name == "KeyboardInterrupt":
        return KeyboardInterrupt(message) if message else KeyboardInterrupt()
    kind: type[BaseException] = type(name, (RemoteError,), {"__module__": "remote"})
    return kind(message)


def _with_place(
    done: dict[str, Any], lines: list[str], records: list[Any], session: str
) -> list[str]:
    """Where it ran, under the traceback's first line: the files in it are on that machine."""
    files = {frame[0] for record in records for frame in record["frames"]}
    if not any(_is_elsewhere(file) for file in files):
        return lines
    figures = done.get("footer", {}).get("metadata", {}).get("mlcloud", {})
    machine = figures.get("instance_type")
    place = f"remote: session {session}{f' on {machine}' if machine else ''}"
    for number, line in enumerate(lines):
        if _HEAD in line or _HEAD in _without_colors(line):
            end = "\n" if line.endswith("\n") else ""
            return [*lines[: number + 1], f"{place}{end}", *lines[number + 1 :]]
    return lines


def _without_colors(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# --- a traceback of frames that ran elsewhere -----------------------------------------------------


def _is_elsewhere(file: str) -> bool:
    """Whether a frame's code is a file of the remote machine, not a cell's."""
    ip = shell()
    is_cell = ip is not None and ip.compile.format_code_name(file) is not None
    return not is_cell and not file.startswith("<")


def _trace(frames: list[Any], session: str) -> TracebackType | None:
    """A traceback of these frames (file, line, function, text), as `traceback` and `pdb` take it.

    A file of the remote machine is named after it: here may be another one of that name.
    """
    chain: TracebackType | None = None
    for file, number, function, text in reversed(frames):
        name = f"<session {session}>{file}" if _is_elsewhere(file) else file
        if text:
            sources.remember((name, ((number, text if text.endswith("\n") else f"{text}\n"),)))
        chain = _entry(chain, name, number, function, text, session)
    return chain


def _entry(
    following: TracebackType | None, file: str, number: int, function: str, text: str, session: str
) -> TracebackType:
    """One traceback entry, with a frame of the right name. Its code raises, on the right line."""
    body = copy.deepcopy(_RAISES)  # to parse here would disturb other threads that do
    shown = text.strip()
    begin = len(text.encode()) - len(text.lstrip().encode())
    for node in ast.walk(body):
        if isinstance(node, (ast.stmt, ast.expr)):
            node.lineno = node.end_lineno = max(number, 1)
            # The whole line, which is shown without marks under a part of it.
            node.col_offset, node.end_col_offset = begin, begin + len(shown.encode())
    code = compile(body, file, "exec").replace(co_name=function.rpartition(".")[2] or function)
    if sys.version_info >= (3, 11):
        code = code.replace(co_qualname=function)
    note = f"this ran in session {session}: its variables are there, see `%mlcloud debug`"
    try:
        exec(code, {"__name__": "remote", "_error": _Raised()}, {"__remote__": note})
    except _Raised as raised:
        here = raised.__traceback__
    made = here.tb_next if here is not None else None
    assert made is not None
    return TracebackType(following, made.tb_frame, made.tb_lasti, max(number, 1))


class _Raised(Exception):
    """Raised to have a frame."""


_RAISES = parsing.parse("raise _error")


# --- showing it -----------------------------------------------------------------------------------


def show_as_it_was(error: BaseException) -> None:
    """Have IPython show this error by its rendering when it ends the cell.

    It does so by itself, except for SyntaxErrors and ExceptionGroups, of which it would show the
    frames of this library, and with `%pdb on`, where the debugger has been in the session already.
    One that is shown already is only noted.
    Its way for such is `set_custom_exc`: used for this one error, and then whatever the user had
    set is set again.
    """
    ip = shell()
    if ip is None or not (
        isinstance(error, SyntaxError)
        or _holds_group(error)
        or _debugged(ip, error)
        or _is_shown(error)
    ):
        return
    before = ip.custom_exceptions, ip.CustomTB

    def show(self: Any, kind: Any, value: Any, trace: Any, tb_offset: Any = None) -> None:
        self.custom_exceptions, self.CustomTB = before
        if value is error:
            sys.last_type, sys.last_value, sys.last_traceback = kind, value, trace
            if sys.version_info >= (3, 12):
                sys.last_exc = value
            if hasattr(value, "_render_traceback_"):
                lines = value._render_traceback_()
            else:
                lines = self.SyntaxTB.structured_traceback(kind, value, [])
            if _is_shown(value):
                self._last_traceback = lines  # what the kernel's reply says of it
                return
            self._showtraceback(kind, value, lines)
        elif isinstance(value, before[0]):
            self.CustomTB(kind, value, trace, tb_offset)
        else:
            self.showtraceback(running_compiled_code=True)

    ip.set_custom_exc((type(error),), show)


def _is_shown(error: BaseException) -> bool:
    rendering = vars(error).get("_render_traceback_")
    return isinstance(rendering, Rendering) and rendering.shown


def _debugged(ip: Any, error: BaseException) -> bool:
    return bool(ip.call_pdb) and "_render_traceback_" in vars(error)


def _holds_group(error: BaseException) -> bool:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if isinstance(each, BaseExceptionGroup):
            return True
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return False
