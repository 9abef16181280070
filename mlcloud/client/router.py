"""The page's comm messages for remote widgets, picked out of the local kernel's shell channel.

A `%%remote` cell holds the main thread until it ends, and the page's messages for its widgets would
wait in the queue behind it. So the shell channel's reader is wrapped: comm messages that belong to
a session (and requests for all widgets' states) go to a thread of ours, all else takes its usual
way. Only the main thread runs the user's local code.

    ipykernel 7     the shell channel has a thread of its own: nothing else to do
    ipykernel 6     the main thread reads it: `poll()` is called while a cell waits

Messages may name a subshell of the local kernel: it is not forwarded, being no subshell there.
"""

from __future__ import annotations

import queue
import sys
import threading
from base64 import standard_b64decode
from typing import TYPE_CHECKING, Any

import zmq

from mlcloud.client import frontend
from mlcloud.client.frontend import Cell

if TYPE_CHECKING:
    from mlcloud.client.relay import Relay

CONTROL = "jupyter.widget.control"
TICK_S = 0.25
COMM_KINDS = ("comm_open", "comm_msg", "comm_close")


class Router:
    """One for each local kernel, made by its first remote widget."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.relays: list[Relay] = []
        self.running: Cell | None = None  # the remote cell that holds the main thread
        self._controls: set[str] = set()
        self._queue: queue.SimpleQueue[tuple[Any, dict[str, Any]]] = queue.SimpleQueue()
        self._wrap()
        threading.Thread(target=self._serve, name="mlcloud-widgets", daemon=True).start()

    @classmethod
    def of(cls, kernel: Any) -> Router:
        """The kernel's router."""
        found: Router | None = getattr(kernel, "_mlcloud_router", None)
        if found is None:
            found = kernel._mlcloud_router = cls(kernel)
        return found

    # --- the shell channel ------------------------------------------------------------------------

    def _wrap(self) -> None:
        stream, thread = self._kernel.shell_stream, self._channel_thread()

        def wrap() -> None:
            usual = stream._recv_callback
            stream.on_recv(lambda frames: None if self._take(frames) else usual(frames), copy=False)

        if thread is None:
            wrap()
        else:
            done = threading.Event()

            def wrap_there() -> None:
                wrap()
                done.set()

            thread.io_loop.add_callback(wrap_there)
            done.wait(5)

    def _channel_thread(self) -> Any:
        return getattr(self._kernel, "shell_channel_thread", None)

    def polls(self) -> bool:
        """Whether nobody reads the shell channel while the main thread waits."""
        return self._channel_thread() is None

    def poll(self) -> None:
        """Read the shell channel: ours are taken, others queue as they would."""
        self._kernel.shell_stream.flush(zmq.POLLIN)

    def _take(self, frames: list[Any]) -> bool:
        """Whether this message is for us; then it is in our queue."""
        session = self._kernel.session
        idents, parts = session.feed_identities(frames, copy=False)
        if len(parts) < 5 or b'"comm_' not in bytes(parts[1].buffer):
            return False
        try:
            peeked = session.deserialize(parts, content=False, copy=False)
            kind = peeked["header"]["msg_type"]
            content = session.unpack(peeked["content"]) if kind in COMM_KINDS else {}
            if not self._is_ours(kind, content):
                return False
            message = session.deserialize(parts, content=True, copy=False)
        except ValueError:  # not signed, or not JSON: the kernel's own code says so
            return False
        if kind == "comm_open":  # known before the messages that follow it are looked at
            self._controls.add(content["comm_id"])
        self._queue.put((idents, message))
        return True

    def _is_ours(self, kind: str, content: dict[str, Any]) -> bool:
        comm_id = content.get("comm_id")
        if kind == "comm_open":
            return content.get("target_name") == CONTROL and bool(self.relays)
        from mlcloud.client.relay import RemoteComm

        return comm_id in self._controls or isinstance(
            self._kernel.comm_manager.comms.get(comm_id), RemoteComm
        )

    # --- our thread -------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                _, message = self._queue.get(timeout=TICK_S)
            except queue.Empty:
                for relay in self.relays:
                    relay.give_up()
                continue
            try:
                self._handle(message)
            except Exception:  # a message of the page must not end the thread
                self._kernel.log.exception("mlcloud: a widget's message could not be handled")

    def _handle(self, message: dict[str, Any]) -> None:
        kind, comm_id = message["header"]["msg_type"], message["content"]["comm_id"]
        comm = self._kernel.comm_manager.comms.get(comm_id)
        if comm_id in self._controls:
            cell = Cell({"header": message["header"]}, None)
            self.status("busy", cell)
            self._control(kind, comm_id, message, cell)
            self.status("idle", cell)
        elif comm is not None:
            if kind == "comm_close":
                self._kernel.comm_manager.comms.pop(comm_id, None)
                comm.handle_close(message)
            else:
                comm.handle_msg(message)

    def status(self, state: str, cell: Cell) -> None:
        """Tell the page how far its message is. The kernel itself stays busy while a cell runs."""
        frontend.publish(cell, "status", {"execution_state": state})
        running = self.running
        if state == "idle" and running is not None:
            frontend.publish(running, "status", {"execution_state": "busy"})

    # --- all widgets' states, for a page that was reloaded ----------------------------------------

    def _control(self, kind: str, comm_id: str, message: dict[str, Any], cell: Cell) -> None:
        if kind == "comm_close":
            self._controls.discard(comm_id)
        elif message["content"].get("data", {}).get("method") == "request_states":
            states, paths, buffers = self._states()
            data = {"method": "update_states", "states": states, "buffer_paths": paths}
            frontend.publish(
                cell,
                "comm_msg",
                {"comm_id": comm_id, "data": data},
                {},
                buffers or None,
                topic=f"comm-{comm_id}".encode(),
            )

    def _states(self) -> tuple[dict[str, Any], list[list[Any]], list[bytes]]:
        """Every widget's state, the local kernel's own and the sessions'; the binary parts apart.

        The form is that of the Jupyter widget protocol's control comm, version 1.0.
        """
        states: dict[str, Any] = {}
        paths: list[list[Any]] = []
        buffers: list[bytes] = []
        widgets = sys.modules.get("ipywidgets")
        local = widgets.Widget.get_manager_state()["state"] if widgets is not None else {}
        for model_id, model in local.items():
            for part in model.pop("buffers", ()):
                paths.append([model_id, "state", *part["path"]])
                buffers.append(standard_b64decode(part["data"]))
            states[model_id] = model
        for relay in list(self.relays):
            for model_id, held in list(relay.models.items()):
                states[model_id] = held.whole()
                for path, data in list(held.buffers.items()):
                    paths.append([model_id, "state", *path])
                    buffers.append(data)
        return states, paths, buffers
