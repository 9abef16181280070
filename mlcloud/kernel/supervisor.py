"""The small process between a host and its kernel: whatever happens to the host, no kernel stays.

    host (Ray actor) ──stdin──► supervisor ──fork──► ipykernel ──► its children
                     ◄─stdout── {"pid": …} … {"exit": …}

The host holds the other end of the supervisor's standard input. When the host ends, however it
ends, that pipe closes, and the supervisor SIGKILLs the kernel's whole tree: it need not ask the
kernel, which may hold the GIL in a C call for minutes. As the tree's subreaper it also inherits
what daemonised away. Should the supervisor itself be killed, the kernel dies with it
(PR_SET_PDEATHSIG).

Commands on standard input, a line each: `int` sends SIGINT to the kernel's process group, as
Jupyter does; `kill` ends the tree. Reports on standard output, a JSON object a line; every
`LOOK_S` one of what the tree uses (`use`), and of its GPUs where it has any (`gpus`).

Run as `python -S -m mlcloud.kernel.supervisor`, standard library only: it starts in 30 ms and stays
small; or a copy of a node's fork server (`forkserver`). Linux gives subreaper and parent-death
signals; elsewhere the pipe alone does the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

from mlcloud.kernel.gpus import Gpus
from mlcloud.processes import (
    become_subreaper,
    die_with_parent,
    end_descendants,
    reap,
    resident_bytes,
    used,
)

MEMORY_TICK = 0.5
LOOK_S = 5.0  # a look takes some ms, of which half a percent of a core is the limit


def main(argv: list[str]) -> int:
    memory_limit, log_path, *command = int(argv[0]), argv[1], *argv[2:]

    def start(log: BinaryIO) -> int:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        ).pid

    return supervise(memory_limit, log_path, start)


def supervise(memory_limit: int, log_path: str, start: Callable[[BinaryIO], int]) -> int:
    """`start` begins the kernel, in a process group of its own that dies with this process; what it
    says goes to the log. Returns when the kernel and all below it have ended."""
    # Ray starts its processes with SIGINT blocked, and children inherit the mask: without this, an
    # interrupt would never reach the kernel.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):  # some real-time signals belong to libc
            continue
    become_subreaper()

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    with open(log_path, "ab") as log:
        kernel = start(log)
    gpus = Gpus(LOOK_S)
    _report({"pid": kernel, "aside": sorted(gpus.pids)})

    reason = ""
    peak = 0
    pending = b""
    due = time.monotonic() + LOOK_S
    while True:
        timeout = max(0.0, due - time.monotonic())
        timeout = min(MEMORY_TICK, timeout) if memory_limit else timeout
        waiting = [0, wake_read, *([gpus.pipe] if gpus.pipe is not None else [])]
        readable, _, _ = select.select(waiting, [], [], timeout)
        if time.monotonic() >= due:
            due = time.monotonic() + LOOK_S
            _report({"use": used(os.getpid(), gpus.pids)})
        if gpus.pipe in readable and (seen := gpus.read()):
            _report({"gpus": seen})
        if wake_read in readable:
            os.read(wake_read, 4096)
        if 0 in readable:
            data = os.read(0, 4096)
            if not data:
                reason = "its host ended"
                break
            *lines, pending = (pending + data).split(b"\n")
            if b"kill" in lines:
                reason = "killed on request"
                break
            if b"int" in lines:
                _signal_group(kernel, signal.SIGINT)
        status = reap(kernel)
        if status is not None:
            end_descendants()
            _report(
                {"exit": os.waitstatus_to_exitcode(status), "reason": "", "peak_bytes": _peak(peak)}
            )
            return 0
        if memory_limit:
            resident = resident_bytes(os.getpid(), gpus.pids)
            peak = max(peak, resident)
            if resident > memory_limit:
                reason = "memory"
                break
    _signal_group(kernel, signal.SIGKILL)
    end_descendants()
    _report({"exit": -signal.SIGKILL, "reason": reason, "peak_bytes": _peak(peak)})
    return 0


def _peak(sampled: int) -> int:
    import resource

    return max(sampled, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _report(message: dict[str, object]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except OSError:  # the host is gone: nobody to tell
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
