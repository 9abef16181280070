"""An execution's output as Jupyter messages, from its first one on and live until it ends: for a
page that was loaded again, and has lost what came meanwhile.

    journal ─► Display ─► {msg_type, content}, …, {msg_type: "mlcloud_end", content: {…}}

The page shows them in the cell as it would a kernel's. Comm messages are left out: the state of its
widgets a page asks the kernel for.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from mlcloud import errors
from mlcloud.client.channel import Channel, Event, Listener
from mlcloud.client.connection import Connection
from mlcloud.client.display import Display, Under
from mlcloud.client.feed import OVER
from mlcloud.client.frontend import Cell
from mlcloud.models import ExecutionInfo

END = "mlcloud_end"
Message = dict[str, Any]


class _Reader(Listener):
    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Event | errors.MLCloudError] = queue.SimpleQueue()

    def on_event(self, event: Event) -> None:
        self.items.put(event)

    def on_broken(self, error: errors.MLCloudError) -> None:
        self.items.put(error)


class Replay:
    """Iterate over it; `close` ends that from another thread. Raises `NotFound` where there is no
    such execution."""

    def __init__(self, connection: Connection, session: str, execution_id: str) -> None:
        found = connection.get(f"/v1/sessions/{session}/executions/{execution_id}")
        self.info = ExecutionInfo.model_validate(found)
        self._made: list[Message] = []
        cell = Cell({}, self.info.number)
        self._display = Display(Under(cell, lambda _, kind, content: self._make(kind, content)))
        self._reader = _Reader()
        self._channel = Channel(
            connection, session, after=self.info.first_event, listener=self._reader
        )

    def _make(self, kind: str, content: dict[str, Any]) -> None:
        last: Message = self._made[-1] if self._made else {"msg_type": ""}
        if kind == last["msg_type"] == "stream" and content["name"] == last["content"]["name"]:
            last["content"] = {**content, "text": last["content"]["text"] + content["text"]}
        else:
            self._made.append({"msg_type": kind, "content": content})

    def __iter__(self) -> Iterator[list[Message]]:
        """Batches of messages, as they come."""
        self._channel.expect(self.info.id)
        try:
            over = False
            while not over:
                over = self._take(self._reader.items.get())
                while not over and not self._reader.items.empty():
                    over = self._take(self._reader.items.get())
                made, self._made = self._made, []
                if made:
                    yield made
        finally:
            self._channel.close()

    def close(self) -> None:
        self._reader.items.put(errors.ConnectionFailed("nobody looks any more"))

    def _take(self, item: Event | errors.MLCloudError) -> bool:
        """Whether this was the last."""
        if isinstance(item, errors.MLCloudError):
            raise item
        kind, body = item.kind, item.body
        if item.execution_id != self.info.id or kind.startswith("comm_"):
            return False
        if kind == "done":
            self._end(body["content"])
            return True
        if kind == "input_request":
            ask = f"%mlcloud attach {self.info.session}"
            self._display.status(f"waits for input: {body['content']['prompt']} · `{ask}`")
        elif kind not in OVER or kind == "status":
            self._display.show(kind, body)
        return False

    def _end(self, done: dict[str, Any]) -> None:
        if done["status"] != "ok" and self._display.with_traceback(done)["traceback"] is None:
            name, text = str(done.get("ename")), str(done.get("evalue", ""))
            lines = done.get("traceback") or [f"{name}: {text}" if text else name]
            self._make("error", {"ename": name, "evalue": text, "traceback": lines})
        facts: dict[str, Any] = {"execution_id": self.info.id, "session": self.info.session}
        if done.get("footer") and done.get("runs"):
            facts |= done["footer"]["metadata"]["mlcloud"]
            self._display.footer(done["footer"])
        end = {**facts, "state": done["status"], "execution_count": self.info.number}
        self._made.append({"msg_type": END, "content": end})
