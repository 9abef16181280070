"""Widgets of a whole notebook: comms go through as they are, both ways.

The session's kernel has their state, and answers a page that is loaded again (`request_states`); an
Output widget names a request, which has the same id on both sides. Here is only kept which comms
there are, and which of the page's messages wait to be handled: the page sends a widget's next
message when it hears that the last one was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mlcloud.client.notebook.sockets import Message, Sockets

IDLE_AFTER_S = 2.0

Send = Callable[[str, dict[str, Any]], bool]


class Widgets:
    """`send(id, message)` takes one to the session; False where there is none."""

    def __init__(self, sockets: Sockets, send: Send) -> None:
        self._sockets = sockets
        self._send = send
        self.targets: dict[str, str] = {}
        self._waiting: dict[str, tuple[float, Message]] = {}

    def receive(self, kind: str, body: dict[str, Any], parent: Message) -> None:
        """Publish a comm message of the session."""
        content = body["content"]
        self._note(kind, content)
        buffers: list[Any] = [bytes(part) for part in body.get("buffers") or []]
        metadata = body.get("metadata")
        self._sockets.publish(kind, content, parent, metadata, buffers or None)

    def outgoing(self, kind: str, message: Message) -> None:
        """The page's message."""
        content, request_id = message["content"], message["header"]["msg_id"]
        self._sockets.publish("status", {"execution_state": "busy"}, message)
        self._note(kind, content)
        self._waiting[request_id] = (time.monotonic() + IDLE_AFTER_S, message)
        sent = self._send(
            request_id,
            {
                "type": kind,
                "content": content,
                "metadata": message.get("metadata") or {},
                "buffers": [bytes(part) for part in message.get("buffers") or []],
            },
        )
        if not sent:
            if kind == "comm_open":  # as a kernel that knows no such target
                self._note("comm_close", content)
                closed = {"comm_id": content["comm_id"], "data": {}}
                self._sockets.publish("comm_close", closed, message)
            self.done(request_id)

    def info(self, target: str | None) -> dict[str, Any]:
        """The comms there are, of one target or of all."""
        return {
            comm_id: {"target_name": name}
            for comm_id, name in self.targets.items()
            if target in (None, name)
        }

    def parent(self, request_id: str) -> Message | None:
        """The page's message of this id, while its callbacks run."""
        waiting = self._waiting.get(request_id)
        return None if waiting is None else waiting[1]

    def done(self, request_id: str) -> Message | None:
        """It was handled."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return None
        self._sockets.publish("status", {"execution_state": "idle"}, waiting[1])
        return waiting[1]

    def overdue(self) -> list[str]:
        """Messages that nobody answers: a callback that takes long, or a session that is away."""
        now = time.monotonic()
        return [key for key, (until, _) in self._waiting.items() if until < now]

    def _note(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "comm_open":
            self.targets[content["comm_id"]] = content.get("target_name", "")
        elif kind == "comm_close":
            self.targets.pop(content["comm_id"], None)
