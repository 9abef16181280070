"""The page's messages for this kernel's widgets, handled also while a cell runs.

    control channel ─ mlcloud_comm ─► Comms.deliver ─► the main thread, when its loop is free
                                                   └─► else, after `GRACE_S`, a thread of ours

A local kernel handles them in the main thread between two cells, and in a subshell's thread while
one runs. So it is here: the main thread is asked first (an idle kernel, and a cell that awaits,
answer at once), and only when it does not come do the callbacks run beside it. They run one after
the other, in the order the page sent them.

What a callback prints has the page's message as its parent (not on ipykernel 6, which knows one
parent for the whole process: there it belongs to the cell that runs). When its callbacks have run,
`mlcloud_comm_done` says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any

from mlcloud.kernel.threads import adopt

GRACE_S = 0.05
IDLE_GRACE_S = 5.0  # of a main thread that runs nothing, and so comes as soon as it is scheduled

Message = dict[str, Any]


class Delivery:
    """One message, run once, by whoever takes it first."""

    def __init__(self, message: Message, run: Callable[[Message, bool], None]) -> None:
        self._message = message
        self._run = run
        self._lock = threading.Lock()
        self._taken = False
        self.done = threading.Event()

    def take(self, *, main: bool) -> bool:
        """Run it here, unless the other thread has taken it."""
        with self._lock:
            if self._taken:
                return False
            self._taken = True
        try:
            self._run(self._message, main)
        finally:
            self.done.set()
        return True


class Comms:
    """The comms of one remote kernel; its `occupied` says whether the main thread runs a cell."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: asyncio.Queue[Delivery] | None = None
        self._main_is_busy = False
        self.handled = 0  # messages begun, and messages ended
        self._announce_targets()

    def deliver(self, message: Message) -> None:
        """Take a `mlcloud_comm` message; called on the control thread."""
        if self._loop is None:
            ready = threading.Event()
            threading.Thread(
                target=self._serve, args=(ready,), name="mlcloud-comms", daemon=True
            ).start()
            ready.wait()
        assert self._loop is not None
        assert self._queue is not None
        self._loop.call_soon_threadsafe(
            self._queue.put_nowait, Delivery(_inner(message), self._handle)
        )

    # --- our thread: a loop of its own, as callbacks may start tasks ------------------------------

    def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._queue = asyncio.Queue()
        ready.set()
        self._loop.run_until_complete(self._take_all(self._queue))

    async def _take_all(self, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            delivery = await queue.get()
            self._kernel.io_loop.add_callback(self._offer, delivery)
            patience = GRACE_S if self._kernel.occupied else IDLE_GRACE_S
            if self._main_is_busy:  # for the last one, and not seen since
                patience = 0.0
            if not await asyncio.to_thread(delivery.done.wait, patience):
                if delivery.take(main=False):
                    self._main_is_busy = True
                else:  # the main thread has begun with it
                    await asyncio.to_thread(delivery.done.wait)
            await asyncio.sleep(0)

    def _offer(self, delivery: Delivery) -> None:
        """On the main thread, when its loop gets to it."""
        self._main_is_busy = False
        delivery.take(main=True)

    # --- a message --------------------------------------------------------------------------------

    def _handle(self, message: Message, main: bool) -> None:
        """Run the widget's callbacks, as the comm manager does, with the message as the parent."""
        kernel = self._kernel
        self.handled += 1
        handler = getattr(kernel.comm_manager, message["msg_type"])
        if main:
            before = kernel.get_parent("shell")
            kernel.set_parent([], message, channel="shell")
            try:
                handler(None, [], message)
                _flush()
            finally:
                kernel.set_parent([], before, channel="shell")
        else:
            context = contextvars.copy_context()
            context.run(adopt, kernel, message)
            context.run(handler, None, [], message)
            _flush()
        self.handled += 1
        kernel.session.send(
            kernel.iopub_socket, "mlcloud_comm_done", {}, message, ident=b"mlcloud_comm_done"
        )

    def _announce_targets(self) -> None:
        """The local kernel must know which comms the page may open here."""
        manager, kernel = self._kernel.comm_manager, self._kernel
        register = manager.register_target

        def register_target(name: str, callback: Any) -> None:
            register(name, callback)
            kernel.session.send(
                kernel.iopub_socket,
                "mlcloud_comm_target",
                {"name": name},
                kernel.get_parent("shell"),
                ident=b"mlcloud_comm_target",
            )

        manager.register_target = register_target


def _inner(message: Message) -> Message:
    """The page's message in ours, under the id of ours."""
    content = message["content"]
    header = {**message["header"], "msg_type": content["type"]}
    return {
        "header": header,
        "msg_id": header["msg_id"],
        "msg_type": content["type"],
        "parent_header": {},
        "content": content["content"],
        "metadata": content["metadata"],
        "buffers": message.get("buffers") or [],
    }


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
