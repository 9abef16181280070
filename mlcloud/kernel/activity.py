"""What else runs in this kernel than its cells: then no cell's code tells what changed.

A thread or a task that runs the user's code, or code that the user's code started, may change
anything at any time. Those of Jupyter, Ray and ours, and pools that wait for work, do not count.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Frames of these lead to no user's object by themselves.
_HARMLESS = frozenset(
    {"threading", "queue", "selectors", "asyncio", "concurrent", "multiprocessing", "socket"}
    | {"socketserver", "select", "subprocess", "logging", "weakref", "contextlib", "contextvars"}
    | {"zmq", "tornado", "ipykernel", "IPython", "jupyter_client", "traitlets", "mlcloud", "ray"}
    | {"debugpy", "pydevd", "_pydevd_bundle", "pydevd_tracing", "_pydev_bundle", "fsspec"}
    | {"botocore", "aiobotocore", "aiohttp", "tqdm", "joblib", "loky"}
)


def is_running(loop: asyncio.AbstractEventLoop | None = None) -> bool:
    """Whether a thread, or a task of the loop, runs the user's code now."""
    here = threading.get_ident()
    for ident, frame in sys._current_frames().items():
        if ident != here and not _HARMLESS.issuperset(_modules_of(frame)):
            return True
    tasks = () if loop is None else asyncio.all_tasks(loop)
    return any(not _HARMLESS.issuperset(_modules_of_task(task)) for task in tasks)


def _modules_of(frame: types.FrameType | None) -> Iterator[str]:
    """The packages whose code is on a stack."""
    while frame is not None:
        yield _package(frame)
        frame = frame.f_back


def _modules_of_task(task: asyncio.Task[Any]) -> Iterator[str]:
    """The packages whose coroutines a task waits in."""
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None:
            yield _package(frame)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)


def _package(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def codes_of(callbacks: Iterable[Callable[..., Any]]) -> list[types.CodeType]:
    """The code of functions that somebody else calls (IPython's events)."""
    found = []
    for callback in callbacks:
        function = getattr(callback, "__func__", callback)
        code = getattr(function, "__code__", None)
        if code is not None and getattr(function, "__module__", None) == "__main__":
            found.append(code)
    return found
