"""What the notebook's Tab and `?` ask about names that live here.

    control channel ─ mlcloud_ask {what, …} ─► a thread of its own ─► IPython's completer, inspector
                    ◄─ mlcloud_ask_reply

It answers while a cell runs, and looks on without taking part: one question at a time, and who asks
another one meanwhile is told that there is no answer, instead of waiting behind it. Jedi is off (it
reads files for seconds when it first sees a module); names, attributes and keys are told from the
live objects, without running code of theirs where IPython's own policy would not (`model.layer.` is
looked at: asking a torch module for a submodule runs none).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlcloud.kernel import activity

MOST = 500  # matches of one answer


class Introspection:
    """Completions and inspection in one remote kernel."""

    def __init__(self, shell: Any, is_doubtful: Callable[[], bool]) -> None:
        self._shell = shell
        self._is_doubtful = is_doubtful
        self._loop = asyncio.get_event_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlcloud-introspection")
        self._asking = False
        shell.Completer.use_jedi = False
        _look_into_torch_modules()

    async def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer, empty where there is none. Awaited on the control thread's loop."""
        if self._asking:
            return {}
        self._asking = True
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._answer, question
            )
        finally:
            self._asking = False

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            if question["what"] == "complete":
                return self._complete(question["code"], question["cursor"])
            if question["what"] == "activity":
                # Asked before a node is given back: what runs, and whether the last snapshot is
                # what is here.
                busy = activity.describe(self._loop)
                return {"busy": busy, "doubtful": bool(busy) or self._is_doubtful()}
            return self._inspect(question["name"], question["detail"])
        except Exception:  # of somebody's __dir__, or a namespace that changes while we look
            return {}

    def _complete(self, code: str, cursor: int) -> dict[str, Any]:
        from IPython.core.completer import provisionalcompleter

        with provisionalcompleter():
            found = list(self._shell.Completer.completions(code, cursor))
        matches = [[each.start, each.text, each.type or ""] for each in found if each.end == cursor]
        return {"matches": matches[:MOST]}

    def _inspect(self, name: str, detail: int) -> dict[str, Any]:
        try:
            data = self._shell.object_inspect_mime(name, detail_level=detail)
        except KeyError:
            return {"data": {}}
        return {"data": {kind: text for kind, text in data.items() if isinstance(text, str)}}


def _look_into_torch_modules() -> None:
    """A torch module finds its submodules by `__getattr__`, which IPython's completer would not
    call unasked."""
    from IPython.core.guarded_eval import EVALUATION_POLICIES

    policy: Any = EVALUATION_POLICIES["limited"]
    policy.allowed_getattr_external.add(("torch.nn", "Module"))
