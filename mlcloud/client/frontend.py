"""The notebook's own kernel, as far as mlcloud needs it: which cell runs, and publishing under it.

A message lands in the cell whose request is its parent. While a cell runs, IPython's own streams
and displays know that; for what comes later (a background thread's print, a detached cell, a
widget's callback) the cell is remembered as a `Cell`, and messages are published under it as they
are.

In a terminal's IPython or plain Python there is no kernel: `kernel()` is None.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A cell of this notebook: the request that runs it, and its number."""

    parent: dict[str, Any]
    count: int | None

    @property
    def msg_id(self) -> str:
        return str(self.parent.get("header", {}).get("msg_id", ""))


def shell() -> Any:
    """The running IPython, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def kernel() -> Any:
    """The ipykernel this code runs in, or None."""
    return getattr(shell(), "kernel", None)


def cell() -> Cell | None:
    """The cell that runs now, None outside a notebook."""
    running = kernel()
    if running is None:
        return None
    parent = running.get_parent("shell") or {}
    return Cell(parent, getattr(shell(), "execution_count", None)) if parent else None


def in_page() -> bool:
    """Whether a Jupyter server stands between this kernel and its front end, as for JupyterLab."""
    return kernel() is not None and bool(os.environ.get("JPY_SESSION_NAME"))


def takes_input() -> bool:
    """Whether the front end can answer `input()` now: only the main thread's cell may ask."""
    if threading.current_thread() is not threading.main_thread():
        return False
    running = kernel()
    if running is None:
        return sys.stdin is not None and sys.stdin.isatty()
    return bool(getattr(running, "_allow_stdin", False))


def publish(
    cell: Cell,
    msg_type: str,
    content: dict[str, Any],
    metadata: dict[str, Any] | None = None,
    buffers: list[bytes] | None = None,
    *,
    topic: bytes | None = None,
) -> None:
    """Send a message to the front ends under `cell`, from any thread."""
    running = kernel()
    running.session.send(
        running.iopub_socket,
        msg_type,
        content,
        parent=cell.parent,
        ident=topic or msg_type.encode(),
        metadata=metadata,
        buffers=buffers,
    )


def tell(cell: Cell | None, facts: dict[str, Any]) -> None:
    """Tell a page about the cell that runs now, unseen: facts that it may keep in the cell.

    They are the metadata of a `status` message: what every front end takes, and shows nothing of.
    """
    if cell is not None and in_page():
        publish(cell, "status", {"execution_state": "busy"}, {"mlcloud": facts})


def write(stream: Any, text: str) -> None:
    """Print, and have it leave at once.

    A flush of ipykernel's stream waits for its I/O thread, which waits for this one: where nothing
    stands before the text it goes out as a message of our own, as the stream's would (0.5 ms
    sooner).
    """
    if not _is_clear(stream):
        stream.write(text)
        stream.flush()
        return
    content = {"name": stream.name, "text": text}
    stream.session.send(
        stream.pub_thread, "stream", content, parent=stream.parent_header, ident=stream.topic
    )


def _is_clear(stream: Any) -> bool:
    """Whether this is ipykernel's own stream and all that was printed before has left."""
    iostream = sys.modules.get("ipykernel.iostream")
    if iostream is None or type(stream) is not iostream.OutStream:
        return False
    try:
        if stream.echo is not None or stream._hooks or stream.pub_thread is None:
            return False
        if not stream._is_master_process():
            return False
        with stream._buffer_lock:
            return not any(buffer.tell() for buffer in stream._buffers.values())
    except AttributeError:  # an ipykernel that keeps its text elsewhere
        return False
