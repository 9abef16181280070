"""What else runs in this kernel than its cells: then no cell's code tells what changed.

A thread or a task that runs the user's code, or code that the user's code started, may change
anything at any time. Those of Jupyter, Ray and ours, and pools that wait for work, do not count.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlcloud.processes import descendants

# Frames of these lead to no user's object by themselves.
_HARMLESS = frozenset(
    {"threading", "queue", "selectors", "asyncio", "concurrent", "multiprocessing", "socket"}
    | {"socketserver", "select", "subprocess", "logging", "weakref", "contextlib", "contextvars"}
    | {"zmq", "tornado", "ipykernel", "IPython", "jupyter_client", "traitlets", "mlcloud", "ray"}
    | {"debugpy", "pydevd", "_pydevd_bundle", "pydevd_tracing", "_pydev_bundle", "fsspec"}
    | {"botocore", "aiobotocore", "aiohttp", "tqdm", "joblib", "loky"}
)


OWN_THREADS = "mlcloud-"  # what the names of our threads begin with
WATCH_S = 0.5
GPU_LOOKS, GPU_LOOK_S = 5, 0.35
BUSY_SHARE = 0.05  # of a core, or of a GPU: less is nobody's work


def is_running(loop: asyncio.AbstractEventLoop | None = None) -> bool:
    """Whether a thread, or a task of the loop, runs the user's code now."""
    return bool(_threads() or _tasks(loop))


def describe(loop: asyncio.AbstractEventLoop) -> str:
    """What keeps this kernel busy between its cells, in words; empty if nothing does.

    Called in a thread; takes half a second.
    """
    if names := _threads():
        return f"a thread of it runs ({names[0]})"
    if names := _tasks(loop):
        return f"a task of it runs ({names[0]})"
    before = _cpu_seconds()
    time.sleep(WATCH_S)
    after = _cpu_seconds()
    for pid, (seconds, name) in after.items():
        if seconds - before.get(pid, (seconds, ""))[0] > BUSY_SHARE * WATCH_S:
            return f"a process that it started runs ({name})"
    share = _gpu_share()
    return f"its GPU is in use ({share:.0%})" if share > BUSY_SHARE else ""


def _threads() -> list[str]:
    """Names of threads beside this one and the main one that run the user's code."""
    passed = {threading.get_ident(), threading.main_thread().ident}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    passed.update(ident for ident, name in names.items() if name.startswith(OWN_THREADS))
    return [
        names.get(ident, str(ident))
        for ident, frame in sys._current_frames().items()
        if ident not in passed and not _HARMLESS.issuperset(_modules_of(frame))
    ]


def _tasks(loop: asyncio.AbstractEventLoop | None) -> list[str]:
    tasks = () if loop is None else asyncio.all_tasks(loop)
    return [task.get_name() for task in tasks if not _HARMLESS.issuperset(_modules_of_task(task))]


def _cpu_seconds() -> dict[int, tuple[float, str]]:
    """CPU time and name of each process below this one."""
    found = {}
    for pid in descendants(os.getpid()):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                head, _, tail = file.read().rpartition(")")
        except OSError:  # gone
            continue
        fields = tail.split()
        ticks = int(fields[11]) + int(fields[12])
        found[pid] = ticks / os.sysconf("SC_CLK_TCK"), head.partition("(")[2]
    return found


def _gpu_share() -> float:
    """How much of this kernel's busiest GPU is in use; 0 where there is none.

    The driver's figure is of the last second or so, and comes late: it is asked several times.
    """
    tool = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if tool is None or not visible:
        return 0.0
    command = [tool, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", visible]
    share = 0.0
    for _ in range(GPU_LOOKS):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
            share = max(share, *(int(line) / 100 for line in done.stdout.split()))
        except (OSError, ValueError, TypeError, subprocess.SubprocessError):
            return share
        if share > BUSY_SHARE:
            break
        time.sleep(GPU_LOOK_S)
    return share


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
