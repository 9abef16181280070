"""What a thread shows belongs to the cell that started it, also when that has ended long ago.

ipykernel 6 sees to it for printed text, and keeps one parent of displays for all threads; ipykernel
7 gives a thread's output to whichever cell runs when it appears. Here a thread takes over the
parent of the one that starts it, for text, displays and comms alike. Tasks of asyncio need nothing:
they run in a copy of their maker's context, where the parent is kept.
"""

from __future__ import annotations

import sys
import threading
from contextvars import ContextVar
from typing import Any

from ipykernel.zmqshell import ZMQDisplayPublisher
from jupyter_client.session import extract_header


class Publisher(ZMQDisplayPublisher):  # type: ignore[misc]  # ipykernel ships no complete types
    """ipykernel's, with a parent by context (as 7 has it) also in version 6."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._parent_header: ContextVar[dict[str, Any]] = ContextVar("parent_header")
        self._parent_header_global: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    @property
    def parent_header(self) -> dict[str, Any]:
        return self._parent_header.get(self._parent_header_global)

    @parent_header.setter
    def parent_header(self, header: dict[str, Any]) -> None:
        self._parent_header.set(header)
        self._parent_header_global = header


def inherit_parents(kernel: Any) -> None:
    """From now on, threads started in `kernel` show what they show in their starter's cell."""
    thread_class: Any = threading.Thread  # mypy knows neither of the two
    start, bootstrap = thread_class.start, thread_class._bootstrap_inner

    def start_with_parent(thread: Any) -> None:
        thread._mlcloud_parent = kernel.get_parent("shell")
        start(thread)

    def bootstrap_with_parent(thread: Any) -> None:
        # Around what catches the thread's error, so that no traceback shows it.
        if parent := thread.__dict__.pop("_mlcloud_parent", None):
            adopt(kernel, parent)
        bootstrap(thread)

    thread_class.start = start_with_parent
    thread_class._bootstrap_inner = bootstrap_with_parent


def adopt(kernel: Any, parent: dict[str, Any]) -> None:
    """Set the parent for this thread alone, wherever ipykernel keeps one by context."""
    shell, header = kernel.shell, extract_header(parent)
    for holder, attribute, value in (
        (sys.stdout, "_parent_header", header),
        (sys.stderr, "_parent_header", header),
        (shell.display_pub, "_parent_header", header),
        (shell.displayhook, "_parent_header", header),
        (shell, "_parent_header", parent),
        (kernel, "_shell_parent", parent),
    ):
        variable = getattr(holder, attribute, None)
        if isinstance(variable, ContextVar):
            variable.set(value)
