"""Tab and `?` for names that live in a session, merged with those of the notebook.

    Tab    IPython's completer ─► Completions (a matcher, API v2) ─┬─ options of %%remote, %mlcloud
                                                                   └─ POST …/complete ─► the session
    ?      object_inspect_mime (Shift-Tab), %pinfo (`x?`)  ────────── POST …/inspect ──► the session

Asked is the session of the cell (`%%remote --session NAME`), or in any cell the one where a
RemoteValue lives. Nothing is started for it: without a connection that is in use, and without a
kernel that runs, only local names are there. An answer is waited for one second; after one that did
not come (a cell holds the GIL), the session is left alone for a while.

Where IPython has a hook it is used: a matcher is appended to `Completer.custom_matchers`. For `?`
it has none that is asked about names it does not find, so two of its public doors are wrapped, and
put back by `uninstall`: `InteractiveShell.object_inspect_mime`, and the magics `pinfo`, `pinfo2`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher

if TYPE_CHECKING:
    from mlcloud.client.session import Session

WAIT_S = 1.0
REST_S = 5.0

_REMOTE = re.compile(r"\s*%%remote(?=\s|$)(.*)")
_COMMAND = re.compile(r"\s*%?mlcloud\s+(.*)$")
_OF_A_SESSION = ("attach", "debug", "park", "preempt", "resume", "state")
# A name with attributes and keys behind it, at the end of a text, the last of them not finished.
_EXPRESSION = re.compile(
    r"(?<![\w.])([^\W\d]\w*)(?:\.[^\W\d]\w*|\[[^\[\]\n]*\])*(\.\w*|\[[^\[\]\n]*)$"
)
_ROOT = re.compile(r"\s*([^\W\d]\w*)")


class Completions:
    """What this notebook asks its sessions, and offers to IPython."""

    def __init__(self, ip: Any, options: Callable[[], dict[str, list[str]]], commands: list[str]):
        self._ip = ip
        self._options = options
        self._commands = commands
        self._rests: dict[str, float] = {}  # session's name -> until when it is left alone
        self._wrapped: list[Callable[[], None]] = []

    # --- IPython's hooks --------------------------------------------------------------------------

    def install(self) -> None:
        mark: Any = context_matcher(identifier="mlcloud")
        matcher = mark(lambda context: self.matches(context))  # a method cannot be marked
        self._ip.Completer.custom_matchers.append(matcher)
        self._wrapped.append(lambda: self._ip.Completer.custom_matchers.remove(matcher))
        self._wrap_inspection()
        for name, detail in (("pinfo", 0), ("pinfo2", 1)):
            self._wrap_magic(name, detail)

    def uninstall(self) -> None:
        while self._wrapped:
            self._wrapped.pop()()

    def _wrap_inspection(self) -> None:
        ip, local = self._ip, self._ip.object_inspect_mime

        def object_inspect_mime(name: str, detail_level: int = 0, **more: Any) -> dict[str, Any]:
            data = self.inspect(name, detail_level, self._asking_cell())
            found: dict[str, Any] = data or local(name, detail_level=detail_level, **more)
            return found

        ip.object_inspect_mime = object_inspect_mime
        self._wrapped.append(lambda: vars(ip).pop("object_inspect_mime", None))

    def _wrap_magic(self, name: str, detail: int) -> None:
        ip = self._ip
        magics = ip.magics_manager.magics["line"]
        local = ip.find_line_magic(name)  # not `magics[name]`: it may stand for one not loaded yet

        def pinfo(line: str) -> Any:
            data = self.inspect(line.strip(), detail, "")
            if not data:
                return local(line)
            if not ip.enable_html_pager:
                data.pop("text/html", None)
            from IPython.core import page

            page.page(data)

        pinfo.__doc__ = local.__doc__
        magics[name] = pinfo
        self._wrapped.append(lambda: magics.__setitem__(name, local))

    def _asking_cell(self) -> str:
        """The text of the cell in which Shift-Tab was pressed."""
        get_parent = getattr(self._ip, "get_parent", None)
        parent = get_parent() if get_parent is not None else {}
        if parent.get("header", {}).get("msg_type") != "inspect_request":
            return ""
        return str(parent.get("content", {}).get("code", ""))

    # --- Tab --------------------------------------------------------------------------------------

    def matches(self, context: CompletionContext) -> Any:
        """The matcher: whatever goes wrong with a Tab is no error."""
        try:
            return self._matches(context)
        except Exception:
            return _result([], "")

    def _matches(self, context: CompletionContext) -> Any:
        lines = context.full_text.split("\n")
        line = lines[context.cursor_line][: context.cursor_position]
        before = "\n".join([*lines[: context.cursor_line], line])
        command = _COMMAND.match(line)
        if command is not None and line.lstrip().startswith("%"):
            return self._words(command.group(1))
        first, _, body = before.partition("\n")
        remote = _REMOTE.match(first)
        if remote is not None and context.cursor_line == 0:
            return self._option(remote.group(1))
        expression = _EXPRESSION.search(line)
        value = None if expression is None else self._ip.user_ns.get(expression.group(1))
        if remote is not None:
            session = self._session_of_line(remote.group(1))
        else:
            session = self._session_of_value(value)
            body = before
        if session is None:
            return _result([], "")
        answer = self._ask(session, {"what": "complete", "code": body, "cursor": len(body)})
        found = [(start, text, kind) for start, text, kind in answer.get("matches", ())]
        if not found:
            return _result([], "")
        # IPython takes one place for all of a matcher's completions.
        start = max({start for start, _, _ in found}, key=[each[0] for each in found].count)
        here = [(text, kind) for at, text, kind in found if at == start]
        if all(text.startswith(".") for text, _ in here):
            # As Jedi gives attributes, so that those both know are one.
            start, here = start + 1, [(text[1:], kind) for text, kind in here]
        completions = [SimpleCompletion(text, type=kind) for text, kind in here]
        # What this kernel knows of a RemoteValue is the handle; keys have no part in it at all.
        is_handle = self._session_of_value(value) is not None
        is_key = expression is not None and expression.group(2).startswith("[")
        alone = is_handle and (remote is not None or is_key)
        return _result(completions, body[start:], alone=alone)

    def _option(self, text: str) -> Any:
        """An option of `%%remote`, or what it takes."""
        before, word = _last_word(text)
        options = self._options()
        previous = before.split()[-1] if before.split() else ""
        if previous == "--session":
            return _words(self._session_names(), word)
        if options.get(previous):
            return _words(options[previous], word)
        if word.startswith("-") or not word:
            return _words([each for each in options if each not in before.split()], word)
        return _result([], "")

    def _words(self, text: str) -> Any:
        """A command of `%mlcloud`, or the name of a session after it."""
        before, word = _last_word(text)
        if not before.split():
            return _words(self._commands, word)
        if before.split()[0] in _OF_A_SESSION and len(before.split()) == 1:
            return _words(self._session_names(), word)
        return _result([], "")

    # --- ? ----------------------------------------------------------------------------------------

    def inspect(self, name: str, detail: int, cell: str) -> dict[str, str]:
        """What a session says of a name; empty for names that are this kernel's."""
        try:
            session = self._session_of_name(name, cell)
            if session is None:
                return {}
            question = {"what": "inspect", "name": name, "detail": min(detail, 1)}
            data: dict[str, str] = dict(self._ask(session, question).get("data") or {})
        except Exception:  # as for a Tab
            return {}
        if "text/plain" in data:
            data["text/plain"] = f"{data['text/plain'].rstrip()}\nSession:        {session.name}"
        return data

    def _session_of_name(self, name: str, cell: str) -> Session | None:
        root = _ROOT.match(name)
        if root is None:
            return None
        namespace = self._ip.user_ns
        if root.group(1) in namespace:
            return self._session_of_value(namespace[root.group(1)])
        remote = _REMOTE.match(cell.partition("\n")[0])
        return None if remote is None else self._session_of_line(remote.group(1))

    # --- sessions ---------------------------------------------------------------------------------

    def _session_of_line(self, text: str) -> Session | None:
        """The session of a `%%remote` line, if this notebook has used it."""
        words = text.split()
        name = None
        for number, word in enumerate(words):
            if word.startswith("--session="):
                name = word.partition("=")[2]
            elif word == "--session" and number + 1 < len(words):
                name = words[number + 1]
        client = _client()
        found: Session | None = None if client is None else client.known(name)
        return found

    def _session_of_value(self, value: Any) -> Session | None:
        """The session in which a RemoteValue lives."""
        ref = getattr(type(value), "__mlcloud_ref__", None)
        client = _client()
        if ref is None or client is None:
            return None
        for session in client.used():
            if session.id == value.__mlcloud_ref__[0]:
                return session  # type: ignore[no-any-return]
        return None

    def _session_names(self) -> list[str]:
        client = _client()
        return [] if client is None else client.session_names(WAIT_S)

    def _ask(self, session: Session, question: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        if self._rests.get(session.name, 0) > now:
            return {}
        answer = session.ask(question, WAIT_S)
        if time.monotonic() - now > 0.7 * WAIT_S:
            self._rests[session.name] = time.monotonic() + REST_S
        return answer


def _client() -> Any:
    """The connection in use, None as long as no remote cell has run."""
    api = sys.modules.get("mlcloud.client.api")
    return None if api is None else api.in_use()


def _last_word(text: str) -> tuple[str, str]:
    found = re.search(r"\S*$", text)
    word = found.group() if found is not None else ""
    return text[: len(text) - len(word)], word


def _words(words: Iterable[str], word: str) -> Any:
    found = [SimpleCompletion(each, type="param") for each in words if each.startswith(word)]
    return _result(found, word, alone=True)


def _result(found: list[SimpleCompletion], fragment: str, *, alone: bool = False) -> Any:
    return {"completions": found, "matched_fragment": fragment, "suppress": alone and bool(found)}
