"""Widgets of a session, alive in the local page: their comms, relayed both ways.

    remote kernel ── comm_open/msg/close ──► Relay.receive ──► the page, under the local cell
    remote kernel ◄── Channel.comm ◄── Relay.outgoing ◄── Router ◄── the page's comm_msg

Each comm of the session has a `RemoteComm` of the same id in the local kernel's comm manager, so
that `comm_info` lists it and the page's messages find it, also between cells. While a cell runs,
the main thread is taken: `router` picks the page's messages up before they queue behind it.

What is kept here is the state of each widget, as the messages in both directions made it: a page
that was reloaded asks the local kernel for all states, and gets these with its own.

A message of the page has an id of ours while it is in the session (`m-…`): what its callback prints
comes back under that id, and is published under the page's message, as a local kernel would do.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from comm.base_comm import BaseComm

from mlcloud.client import frontend
from mlcloud.client.frontend import Cell
from mlcloud.client.router import Router

WIDGETS = "jupyter.widget"
IDLE_AFTER_S = 2.0  # the page sends a widget's next message only when it hears that one was handled
REMEMBERED = 1000

Path = tuple[Any, ...]


class RemoteComm(BaseComm):
    """The local end of a session's comm. It says nothing by itself: the session does."""

    def __init__(self, relay: Relay, comm_id: str, target_name: str) -> None:
        super().__init__(target_name=target_name, comm_id=comm_id, primary=False)
        self.relay = relay

    def publish_msg(self, msg_type: str, *args: Any, **keys: Any) -> None:
        return None

    def handle_msg(self, msg: dict[str, Any]) -> None:
        self.relay.outgoing("comm_msg", msg)

    def handle_close(self, msg: dict[str, Any]) -> None:
        self.relay.outgoing("comm_close", msg)


class Model:
    """A widget's state as it is now: plain data, and its binary parts by path."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.buffers: dict[Path, bytes] = {}

    def update(self, data: dict[str, Any], buffers: list[bytes]) -> None:
        """Take the state in a comm_open's or an update's data."""
        state = data.get("state")
        if not isinstance(state, dict):
            return
        paths = [tuple(path) for path in data.get("buffer_paths") or []]
        changed = set(state) | {path[0] for path in paths if path}
        self.buffers = {path: held for path, held in self.buffers.items() if path[0] not in changed}
        self.state.update(state)
        self.buffers.update(zip(paths, buffers, strict=False))

    def whole(self) -> dict[str, Any]:
        """As the answer to `request_states` has it, its binary parts left out."""
        return {
            "model_name": self.state.get("_model_name"),
            "model_module": self.state.get("_model_module"),
            "model_module_version": self.state.get("_model_module_version"),
            "state": self.state,
        }


class Relay:
    """The comms of one session. `send(relay id, message)` takes one to it; `cell_of(id)` is the
    local cell that a remote request's id stands for."""

    def __init__(
        self,
        send: Callable[[str, dict[str, Any]], None],
        cell_of: Callable[[str], Cell | None],
    ) -> None:
        self._send = send
        self._cell_of = cell_of
        self._kernel = frontend.kernel()
        self.router = Router.of(self._kernel)
        self.router.relays.append(self)
        self.models: dict[str, Model] = {}
        self._targets: dict[str, str] = {}
        self._sent: OrderedDict[str, Cell] = OrderedDict()
        self._waiting: dict[str, float] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """The session is closed here: its widgets stay in the page as they are."""
        if self in self.router.relays:
            self.router.relays.remove(self)
        for comm_id in self._targets:
            self._kernel.comm_manager.comms.pop(comm_id, None)

    # --- from the session -------------------------------------------------------------------------

    def receive(self, kind: str, body: dict[str, Any], cell: Cell) -> None:
        """Publish a comm message of the session under `cell`, and remember what it says."""
        content, buffers = body["content"], [bytes(part) for part in body.get("buffers") or []]
        comm_id = content["comm_id"]
        if kind == "comm_open":
            self._targets[comm_id] = content.get("target_name", "")
            self._kernel.comm_manager.register_comm(
                RemoteComm(self, comm_id, self._targets[comm_id])
            )
        elif comm_id not in self._targets:
            return  # of a cell that another notebook ran
        data = content.get("data") or {}
        if self._targets[comm_id] == WIDGETS:
            content = {**content, "data": self._here(data)}
            model = self.models.setdefault(comm_id, Model())
            model.update(content["data"], buffers)
        if kind == "comm_close":
            self._forget(comm_id)
        frontend.publish(
            cell,
            kind,
            content,
            body.get("metadata"),
            buffers or None,
            topic=f"comm-{comm_id}".encode(),
        )

    def target(self, name: str) -> None:
        """The session takes comms that the page opens under this name."""
        manager = self._kernel.comm_manager
        if name not in manager.targets and not name.startswith(WIDGETS):
            manager.register_target(name, self._opened_in_page)

    def _opened_in_page(self, comm: Any, message: dict[str, Any]) -> None:
        self._targets[comm.comm_id] = comm.target_name
        self._kernel.comm_manager.register_comm(RemoteComm(self, comm.comm_id, comm.target_name))
        comm._closed = True  # replaced, and never to be spoken for again
        self.outgoing("comm_open", message)

    def _here(self, data: dict[str, Any]) -> dict[str, Any]:
        """An Output widget captures the output of a request: here it is the local cell's."""
        state = data.get("state")
        captured = state.get("msg_id") if isinstance(state, dict) else None
        cell = self._cell_of(captured) if captured else None
        if cell is None or not isinstance(state, dict):
            return data
        return {**data, "state": {**state, "msg_id": cell.msg_id}}

    def captures(self, cell: Cell) -> bool:
        """Whether an Output widget takes this cell's output now."""
        return any(held.state.get("msg_id") == cell.msg_id for held in list(self.models.values()))

    def _forget(self, comm_id: str) -> None:
        self.models.pop(comm_id, None)
        self._targets.pop(comm_id, None)
        self._kernel.comm_manager.comms.pop(comm_id, None)

    # --- from the page ----------------------------------------------------------------------------

    def outgoing(self, kind: str, message: dict[str, Any]) -> None:
        """Take the page's message to the session; `done` says when its callbacks have run."""
        content = message["content"]
        buffers = [bytes(part) for part in message.get("buffers") or []]
        if kind == "comm_msg" and content["comm_id"] in self.models:
            data = content.get("data") or {}
            if data.get("method") == "update":
                self.models[content["comm_id"]].update(data, buffers)
        relay_id = f"m-{uuid4().hex}"
        cell = Cell({"header": message["header"]}, None)
        with self._lock:
            self._sent[relay_id] = cell
            while len(self._sent) > REMEMBERED:
                self._sent.popitem(last=False)
            self._waiting[relay_id] = time.monotonic() + IDLE_AFTER_S
        self.router.status("busy", cell)
        self._send(
            relay_id,
            {
                "type": kind,
                "content": content,
                "metadata": message.get("metadata") or {},
                "buffers": buffers,
            },
        )
        if kind == "comm_close":
            self._forget(content["comm_id"])

    def cell_of(self, relay_id: str) -> Cell | None:
        """The page's message that went to the session under this id."""
        return self._sent.get(relay_id)

    def done(self, relay_id: str) -> None:
        """The session has handled a message of the page."""
        with self._lock:
            waiting = self._waiting.pop(relay_id, None)
        cell = self._sent.get(relay_id)
        if waiting is not None and cell is not None:
            self.router.status("idle", cell)

    def give_up(self) -> None:
        """Stop waiting for messages that nobody answers: a callback that takes long, or a session
        that is away."""
        now = time.monotonic()
        for relay_id in [key for key, until in list(self._waiting.items()) if until < now]:
            self.done(relay_id)
