"""The cells of a notebook that runs in a session: one `execute_request` each, in their order.

    requested ─► with the gateway ─► its turn: `busy`, its number ─► output ─► reply, `idle`

All are sent at once: those that wait run also when this process has ended meanwhile. Each names the
one before it, and does not run if that has failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from hashlib import sha1
from typing import Any
from uuid import uuid4

from mlcloud.client.display import Display, Under
from mlcloud.client.following import Ladder
from mlcloud.client.frontend import Cell
from mlcloud.client.notebook import commands
from mlcloud.client.notebook.sockets import Message, Sockets
from mlcloud.client.session import PAGE_BURST
from mlcloud.values.messages import Shipment

_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_SPARE = 1  # bytes of a name that may travel: none is wanted here


def nothing(*_: Any) -> None:
    """Where a silent cell's output goes."""


class Request:
    """One `execute_request`, and what has become of it. `done`: its end, when it is known."""

    def __init__(
        self, sockets: Sockets, idents: list[bytes], message: Message, count: int, in_page: bool
    ) -> None:
        content = message["content"]
        wanted = message["header"]["msg_id"]
        self.id = wanted if _ID.fullmatch(wanted) else f"x-{uuid4().hex}"
        self.idents, self.message = idents, message
        self.code: str = content["code"]
        self.silent = bool(content.get("silent"))
        self.stored = not self.silent and bool(content.get("store_history", True))
        self.allow_stdin = bool(content.get("allow_stdin"))
        self.stop_on_error = bool(content.get("stop_on_error", True))
        self.expressions: dict[str, str] = content.get("user_expressions") or {}
        self.cell = Cell(message, count)
        self._sockets = sockets
        self.display = Display(Under(self.cell, nothing if self.silent else publisher(sockets)))
        self.display.paced = in_page
        self._in_page = in_page
        self.ladder: Ladder | None = None
        self.sent = self.dropped = False
        self.begun: datetime | None = None
        self.done: dict[str, Any] | None = None

    @property
    def needs_session(self) -> bool:
        """An empty cell starts no node, and a command of ours is none of the session's."""
        return bool(self.code.strip() or self.expressions) and not self.is_command

    @property
    def is_command(self) -> bool:
        return commands.is_command(self.code)

    def wire(self, session: str, after: str | None) -> dict[str, Any]:
        """As the gateway takes it. No name travels: `out` is empty."""
        digest = sha1(self.code.encode(), usedforsecurity=False).hexdigest()[:12]
        cell = {
            "file": f"<cell {session} {digest}>",
            "number": self.cell.count if self.stored else None,
            "own": True,
            "silent": self.silent,
            "store_history": self.stored,
            "user_expressions": self.expressions,
        }
        options: dict[str, Any] = {"allow_stdin": self.allow_stdin, "cell": cell}
        if after is not None:
            options["after"] = after
        if self._in_page:
            options["burst"] = PAGE_BURST
        shipment = Shipment(out=[], max_return=_SPARE).to_wire()
        return {
            "op": "execute",
            "id": self.id,
            "kind": "cell",
            "code": self.code,
            "options": options,
            "shipment": {"wire": shipment, "objects": {}},
        }

    # --- its turn, and its end --------------------------------------------------------------------

    def begin(self, session: str, target: str | None) -> None:
        self.begun = datetime.now(timezone.utc)
        facts = {"execution_id": self.id, "session": session, "state": "running"}
        if target is not None and "://" not in target:
            facts["cluster"] = target
        self._status("busy", facts if self.needs_session and not self.silent else None)
        if not self.silent:
            content = {"code": self.code, "execution_count": self.cell.count}
            self._sockets.publish("execute_input", content, self.message)

    def finish(self, done: dict[str, Any], *, footers: bool) -> bool:
        """Reply. Whether the cells after it are not to run."""
        self.display.flush()
        figures = ((done.get("footer") or {}).get("metadata") or {}).get("mlcloud")
        if self.is_dropped(done):
            content: Message = {"status": "aborted"}
        else:
            if footers and figures and done.get("runs") and not self.silent:
                self.display.footer(done["footer"])
            content = self._reply(done)
        metadata = {"started": self.begun, "status": content["status"]}
        if figures:
            metadata["mlcloud"] = figures
        content["execution_count"] = self.cell.count
        reply = (self.idents, "execute_reply", content, self.message, metadata)
        self._sockets.reply("shell", *reply)
        told = dict(figures) if figures and not self.silent else None
        self._status("idle", told and {**told, "state": content["status"]})
        return content["status"] != "ok" and self.stop_on_error

    def is_dropped(self, done: dict[str, Any]) -> bool:
        """Whether it did not run because a cell before it had failed."""
        return self.dropped or (
            done.get("ename") == "ExecutionCancelled"
            and not done.get("runs")
            and str(done.get("evalue")).startswith("not run:")
        )

    def _reply(self, done: dict[str, Any]) -> Message:
        if done["status"] == "ok":
            return {
                "status": "ok",
                "payload": done.get("payload") or [],
                "user_expressions": done.get("user_expressions") or {},
            }
        shown = self.display.with_traceback(done)["traceback"]
        name, text = str(done.get("ename")), str(done.get("evalue", ""))
        lines = shown or done.get("traceback") or [f"{name}: {text}" if text else name]
        error = {"ename": name, "evalue": text, "traceback": lines}
        if not shown and not self.silent:
            self._sockets.publish("error", error, self.message)
        return {"status": "error", **error, "payload": done.get("payload") or []}

    def _status(self, state: str, facts: dict[str, Any] | None) -> None:
        metadata = {"mlcloud": facts} if facts else None
        self._sockets.publish("status", {"execution_state": state}, self.message, metadata)


def publisher(sockets: Sockets) -> Callable[..., None]:
    """As `frontend.publish`, over these sockets."""

    def publish(cell: Cell, msg_type: str, content: Message) -> None:
        sockets.publish(msg_type, content, cell.parent)

    return publish
