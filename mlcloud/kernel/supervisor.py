"""The small process between a host and its kernel: whatever happens to the host, no kernel stays.

    host (Ray actor) ──stdin──► supervisor ──fork──► ipykernel ──► its children
                     ◄─stdout── {"pid": …} … {"exit": …}

The host holds the other end of the supervisor's standard input. When the host ends, however it ends,
that pipe closes, and the supervisor SIGKILLs the kernel's whole tree: it need not ask the kernel,
which may hold the GIL in a C call for minutes. As the tree's subreaper it also inherits what
daemonised away. Should the supervisor itself be killed, the kernel dies with it (PR_SET_PDEATHSIG).

Commands on standard input, a line each: `int` sends SIGINT to the kernel's process group, as Jupyter
does; `kill` ends the tree. Reports on standard output, a JSON object a line.

Run as a file (`python -I -S supervisor.py …`), standard library only: it starts in 20 ms and stays
small. Linux gives subreaper and parent-death signals; elsewhere the pipe alone does the work.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MEMORY_TICK = 0.5


def main(argv: list[str]) -> int:
    memory_limit, log_path, *command = int(argv[0]), argv[1], *argv[2:]
    # Ray starts its processes with SIGINT blocked, and children inherit the mask: without this, an
    # interrupt would never reach the kernel.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):  # some real-time signals belong to libc
            continue
    _prctl(PR_SET_CHILD_SUBREAPER, 1)

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    with open(log_path, "ab") as log:
        kernel = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    _report({"pid": kernel.pid})

    reason = ""
    peak = 0
    pending = b""
    while True:
        timeout = MEMORY_TICK if memory_limit else None
        readable, _, _ = select.select([0, wake_read], [], [], timeout)
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
                _signal_group(kernel.pid, signal.SIGINT)
        status = _reap(kernel.pid)
        if status is not None:
            _kill_tree()
            _report(
                {"exit": os.waitstatus_to_exitcode(status), "reason": "", "peak_bytes": _peak(peak)}
            )
            return 0
        if memory_limit:
            used = tree_bytes(os.getpid())
            peak = max(peak, used)
            if used > memory_limit:
                reason = "memory"
                break
    _signal_group(kernel.pid, signal.SIGKILL)
    _kill_tree()
    _report({"exit": -signal.SIGKILL, "reason": reason, "peak_bytes": _peak(peak)})
    return 0


def _reap(kernel: int) -> int | None:
    """Collect every ended child; the kernel's wait status if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == kernel:
            found = status


def _kill_tree() -> None:
    """SIGKILL all descendants until none is left; orphans come to us, the subreaper."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        descendants = _descendants(os.getpid())
        for pid in descendants:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap(-1)
        if not descendants:
            return
        time.sleep(0.01)


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # the command in parentheses may hold spaces and parentheses itself
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    found: list[int] = []
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found.extend(frontier)
    return found


def tree_bytes(root: int) -> int:
    """Resident bytes of all of `root`'s descendants (shared pages counted once each)."""
    total = 0
    for pid in _descendants(root):
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                fields = file.read().split()
            total += int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total


def _peak(sampled: int) -> int:
    import resource

    return max(sampled, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _report(message: dict[str, object]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except OSError:  # the host is gone: nobody to tell
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
