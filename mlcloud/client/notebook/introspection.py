"""What a front end asks about code, in Jupyter's messages: answered by the session's kernel, which
need not be there; whether code is complete, here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlcloud.client.notebook.remote import Remote
from mlcloud.client.notebook.sockets import Message

Answered = Callable[[Message], None]


def ask(remote: Remote, kind: str, content: dict[str, Any], answered: Answered) -> None:
    """Have `answered` called with the content of the reply."""
    if kind == "complete_request":
        _complete(remote, content, answered)
    elif kind == "inspect_request":
        _inspect(remote, content, answered)
    else:
        _history(remote, content, answered)


def _complete(remote: Remote, content: dict[str, Any], answered: Answered) -> None:
    code: str = content["code"]
    cursor = content.get("cursor_pos")
    cursor = len(code) if cursor is None else cursor

    def reply(answer: dict[str, Any]) -> None:
        found = [(start, text, kind) for start, text, kind in answer.get("matches", ())]
        first = min((start for start, _, _ in found), default=cursor)
        whole = [(code[first:start] + text, kind) for start, text, kind in found]
        types = [
            {"start": first, "end": cursor, "text": text, "type": kind} for text, kind in whole
        ]
        answered(
            {
                "status": "ok",
                "matches": [text for text, _ in whole],
                "cursor_start": first,
                "cursor_end": cursor,
                "metadata": {"_jupyter_types_experimental": types},
            }
        )

    remote.ask({"what": "complete", "code": code, "cursor": cursor}, reply)


def _inspect(remote: Remote, content: dict[str, Any], answered: Answered) -> None:
    from IPython.utils.tokenutil import token_at_cursor

    name = token_at_cursor(content["code"], content.get("cursor_pos") or 0)
    detail = 1 if content.get("detail_level") else 0

    def reply(answer: dict[str, Any]) -> None:
        data = answer.get("data") or {}
        answered({"status": "ok", "found": bool(data), "data": data, "metadata": {}})

    if name:
        remote.ask({"what": "inspect", "name": name, "detail": detail}, reply)
    else:
        reply({})


def _history(remote: Remote, content: dict[str, Any], answered: Answered) -> None:
    """The session's last cells, for the arrow keys of a console."""
    from fnmatch import fnmatchcase

    def look() -> None:
        codes: list[str] = []
        try:
            session = remote.session
            codes = [] if session is None else [each.code for each in session.executions()]
        finally:
            pattern = content.get("pattern") if content.get("hist_access_type") == "search" else "*"
            found = [code for code in codes if fnmatchcase(code, pattern or "*")]
            number = content.get("n") or len(found)
            lines = [(0, line, code) for line, code in enumerate(found, 1)][-number:]
            remote.post(lambda: answered({"status": "ok", "history": lines}))

    remote.beside(look)


def is_complete(code: str) -> Message:
    """Whether a console should run this, or wait for more lines."""
    from IPython.core.inputtransformer2 import TransformerManager

    status, indent = TransformerManager().check_complete(code)
    found: Message = {"status": status}
    if status == "incomplete":
        found["indent"] = " " * (indent or 0)
    return found
