"""Trees of processes: found, measured, and ended without leaving a zombie. Standard library only.

An agent (`cluster/agent.py`) and a supervisor (`kernel/supervisor.py`) each own a tree. Both make
themselves its *subreaper*: what is orphaned below comes to them and not to the system's init, so
ending the tree means to kill and reap until there are no descendants, whatever daemonised away.

Linux only: elsewhere `become_subreaper` and `die_with_parent` do nothing and descendants are not
found.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans below this process become its children."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """SIGKILL this process when the thread that forked it ends. For `preexec_fn`."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """The ids of all processes below `root`, parents before their children."""
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


def used(root: int, but: frozenset[int] = frozenset()) -> tuple[float, int]:
    """CPU seconds and resident bytes of everything that is alive below `root`, in one look.

    The seconds have in them those of children that were waited for. What is in `but` does not
    count, nor does what is below it.
    """
    ticks: dict[int, int] = {}
    pages: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit() and (fields := _stat(int(name))):
            pid = int(name)
            children.setdefault(int(fields[1]), []).append(pid)
            ticks[pid], pages[pid] = sum(map(int, fields[11:15])), int(fields[21])
    below = [pid for pid in children.get(root, ()) if pid not in but]
    for pid in below:  # grows meanwhile
        below += [child for child in children.get(pid, ()) if child not in but]
    total = sum(ticks[pid] for pid in below), sum(pages[pid] for pid in below)
    return _in_units(*total)


def used_by(pid: int) -> tuple[float, int]:
    """CPU seconds of one process and the children it has waited for, and its resident bytes; zeros
    where it is gone. Takes 20 µs."""
    fields = _stat(pid)
    return _in_units(sum(map(int, fields[11:15])), int(fields[21])) if fields else (0.0, 0)


def _in_units(ticks: int, pages: int) -> tuple[float, int]:
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from its state (field 3) on, as proc(5) has them."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def resident_bytes(root: int, but: frozenset[int] = frozenset()) -> int:
    """Resident memory of everything below `root` and not in `but`; pages that two share count
    twice."""
    total = 0
    for pid in set(descendants(root)) - but:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total


def end_descendants(grace: float = 5.0) -> None:
    """SIGKILL and reap everything below this process, until nothing is left."""
    until = time.monotonic() + grace
    while time.monotonic() < until:
        below = descendants(os.getpid())
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        reap()
        if not below:
            return
        time.sleep(0.005)


def reap(wanted: int | None = None) -> int | None:
    """Collect every ended child; the wait status of `wanted` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == wanted:
            found = status
