"""`input()` in a remote cell: asked through the journal, answered once, by whoever is attached.

    kernel ─ input_request ─► journal ─► every attached client          state: waiting
    kernel ◄── input_reply ◄── the first answer; the others are told (`input_reply` in the journal)

The gateway asks in the same way whether a cell that was cut short shall run again (`confirm`).

While nobody is attached the session bills and gets nowhere: after `input_timeout` without a client
the cell gets EOFError, as at the end of a file. Part of `session.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlcloud.models import SessionState

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

END_OF_INPUT = "\x04"  # ipykernel raises EOFError for it
LOOK_S = 0.5


@dataclass
class Question:
    """What a cell waits for."""

    execution_id: str
    request: str
    waiting: asyncio.Task[None] | None = None
    ours: asyncio.Future[bool] | None = None  # the gateway's own question: yes or no


class Questions:
    """The open question of one session: a kernel asks one at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._open: Question | None = None
        self.clients = 0  # attached now

    @property
    def open(self) -> bool:
        return self._open is not None

    @property
    def asking(self) -> bool:
        """Whether the gateway itself waits for an answer."""
        return self._open is not None and self._open.ours is not None

    def asked(self, execution_id: str, content: dict[str, Any]) -> None:
        """The kernel waits for an answer."""
        self.withdraw()
        question = self._open = Question(execution_id, content["request"])
        question.waiting = asyncio.create_task(self._until_nobody_comes(question))
        self._session.set_state(SessionState.WAITING)

    async def confirm(self, execution_id: str, prompt: str) -> bool:
        """Ask whoever is attached; no, where nobody is (any more), or nobody can be asked."""
        self.withdraw()
        ours: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        request = secrets.token_hex(8)
        question = self._open = Question(execution_id, request, ours=ours)
        question.waiting = asyncio.create_task(self._until_nobody_comes(question))
        self._session.set_state(SessionState.WAITING)
        content = {"prompt": prompt, "password": False, "request": request}
        self._session.journal.emit(execution_id, "input_request", content)
        return await ours

    async def answer(self, execution_id: str, request: str, value: str | None) -> None:
        """Answer it; None is the end of input. The second answer finds nothing to answer."""
        question = self._open
        if question is None or (question.execution_id, question.request) != (execution_id, request):
            return
        if question.ours is not None and not question.ours.done():
            question.ours.set_result((value or "").strip().lower() in ("y", "yes"))
        self.withdraw()
        self._session.journal.emit(execution_id, "input_reply", {"request": request})
        if self._session.current is not None and self._session.successor is None:
            self._session.set_state(SessionState.BUSY)
        if question.ours is not None:
            return
        host = self._session.host
        if host is not None:
            with contextlib.suppress(Exception):  # a host that dies now takes the cell along
                await host.call("answer", request, END_OF_INPUT if value is None else value)

    def withdraw(self) -> None:
        """Nothing waits any more: answered, interrupted, or its kernel is gone."""
        question, self._open = self._open, None
        if question is not None and question.ours is not None and not question.ours.done():
            question.ours.set_result(False)
        waiting = None if question is None else question.waiting
        if waiting is not None and waiting is not asyncio.current_task():
            waiting.cancel()

    async def _until_nobody_comes(self, question: Question) -> None:
        limit = self._session.services.input_timeout_s
        alone = 0.0
        while alone < limit:
            await asyncio.sleep(min(LOOK_S, limit - alone))
            alone = 0.0 if self.clients else alone + LOOK_S
        if question.ours is None:
            self._session.journal.emit(
                question.execution_id,
                "story",
                {
                    "what": "no_input",
                    "text": f"nobody was attached for {limit:g} s to answer input(): EOFError",
                },
            )
        await self.answer(question.execution_id, question.request, None)
