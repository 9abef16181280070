"""What a remote cell is called, on both sides.

    describe(code) ─► {file, number, head, labels, xmode, …} ═► kernel/shell.py

The code runs over there under the name that this kernel gives it, and this kernel's `linecache` has
its lines under that name. So its tracebacks say `Cell In[7], line 3` wherever they are made, and a
function that it defines can be shown here too. `labels` are the numbers of the other cells, whose
functions may run there; each is sent once, and again when its cell ran again.
"""

from __future__ import annotations

import hashlib
import linecache
import re
import sys
from types import FrameType
from typing import Any

from mlcloud.client.frontend import shell

_BLANK_LINES = re.compile(r"(?:[ \t\f]*\n)*")
MOST_LABELS = 1_000


class Labels:
    """The names of one session's cells."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._sent: dict[str, int] = {}

    def reset(self) -> None:
        """The session's kernel is a new one: it knows no cell."""
        self._sent.clear()

    def describe(self, code: str) -> dict[str, Any]:
        """What the kernel is told of this code. From here on its lines are known here."""
        ip = shell()
        # IPython drops blank lines at the beginning, and the numbers must count them.
        blank = "\n" * _blank_lines(code)
        head = None if ip is None else _head(ip, code)
        if ip is None or head is None:
            wire: dict[str, Any] = {"file": self._unnumbered(code), "number": None, "head": blank}
        else:
            head += blank
            number = _number(ip)
            text, raw = head + _transformed(ip, code), head + code
            file = ip.compile.cache(text, number, raw_code=raw)
            wire = {"file": file, "number": number, "head": head}
        if ip is not None:
            wire |= {"xmode": ip.InteractiveTB.mode, "colors": ip.colors, "pdb": bool(ip.call_pdb)}
            wire["labels"] = self._new(ip)
        return wire

    def _unnumbered(self, code: str) -> str:
        """Code that is no cell (`session.run`) is named after the session."""
        digest = hashlib.sha1(code.encode(), usedforsecurity=False).hexdigest()
        file = f"<session {self._session} {digest[:8]}>"
        lines = [f"{line}\n" for line in code.split("\n")]
        linecache.cache[file] = (len(code), None, lines, file)
        return file

    def _new(self, ip: Any) -> dict[str, int]:
        """The labels that the session does not have yet."""
        known: dict[str, int] = getattr(ip.compile, "_filename_map", {})
        recent = list(known.items())[-MOST_LABELS:]
        new = {file: number for file, number in recent if self._sent.get(file) != number}
        self._sent.update(new)
        return new


def _blank_lines(code: str) -> int:
    found = _BLANK_LINES.match(code)
    return 0 if found is None or found.end() == len(code) else found.group().count("\n")


def _head(ip: Any, code: str) -> str | None:
    """What comes before `code` in the running cell, as comments; None if it is not its end."""
    raw = _raw_cell(ip)
    raw = raw[_BLANK_LINES.match(raw).end() :].rstrip()  # type: ignore[union-attr]  # it matches
    body = code.rstrip()
    if not body or not raw.startswith("%%") or not raw.endswith(body):
        return None
    lines = raw[: len(raw) - len(body)].split("\n")[:-1]
    return "".join(f"# {line}\n" if line.strip() else "\n" for line in lines)


def _number(ip: Any) -> int:
    """The running cell's number: its code's, because `execution_count` may be the next one's."""
    numbers: dict[str, int] = getattr(ip.compile, "_filename_map", {})
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename in numbers and frame.f_code.co_name == "<module>":
            return numbers[frame.f_code.co_filename]
        frame = frame.f_back
    count: int = ip.execution_count
    return count


def _raw_cell(ip: Any) -> str:
    """The running cell as it was typed."""
    get_parent = getattr(ip, "get_parent", None)
    if get_parent is not None:
        text = get_parent().get("content", {}).get("code")
        if isinstance(text, str):
            return text
    raw: list[str] = ip.history_manager.input_hist_raw
    return raw[-1] if raw else ""


def _transformed(ip: Any, code: str) -> str:
    try:
        text: str = ip.transform_cell(code)
    except SyntaxError:  # it is reported where the cell is looked at
        return code
    return text
