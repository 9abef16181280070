"""What a node's memory and GPUs are doing at this moment, for who looks on.

Memory of a machine that is a node alone is the machine's; where nodes are processes of one machine
(the local cloud), that of the processes below the agent, pages they share counted more than once.
GPUs as `nvidia-smi` tells them: one process that stays, since to start it for each look takes a
good part of a second. Standard library only: the agent imports it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import Any

from mlcloud.processes import die_with_parent, resident_bytes

EVERY_S = 5
QUERY = "--query-gpu=index,utilization.gpu,memory.used,memory.total"
_MIB = 2**20


class NodeUse:
    """`look()` is what a heartbeat carries: shares are of 1, memory in bytes."""

    def __init__(self, memory_bytes: int, *, alone: bool) -> None:
        self._there = memory_bytes
        self._alone = alone
        self._gpus: dict[int, tuple[int, int, int]] = {}
        self._rest = b""
        self._tool: subprocess.Popen[bytes] | None = None
        tool = shutil.which("nvidia-smi") if alone else None
        if tool is not None:
            command = [tool, QUERY, "--format=csv,noheader,nounits", "-l", str(EVERY_S)]
            with contextlib.suppress(OSError):
                self._tool = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    preexec_fn=die_with_parent,
                )
        if self._tool is not None and self._tool.stdout is not None:
            os.set_blocking(self._tool.stdout.fileno(), False)

    def look(self) -> dict[str, Any]:
        used, there = _of_machine() if self._alone else (resident_bytes(os.getpid()), self._there)
        self._read()
        gpus = list(self._gpus.values())
        return {
            "memory": used,
            "memory_there": there or self._there,
            "gpu": sum(percent for percent, _, _ in gpus) / len(gpus) / 100 if gpus else None,
            "gpu_memory": sum(held for _, held, _ in gpus) if gpus else None,
            "gpu_memory_there": sum(there for _, _, there in gpus) if gpus else None,
        }

    def _read(self) -> None:
        if self._tool is None or self._tool.stdout is None:
            return
        try:
            data = os.read(self._tool.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        if not data:  # it has ended: a driver that is gone
            self._tool.wait()
            self._tool, self._gpus = None, {}
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.take(line.decode("ascii", "replace"))

    def take(self, line: str) -> None:
        """`0, 14, 6144, 81559`; a board without a figure says `[N/A]`, and is left out."""
        with contextlib.suppress(ValueError):
            index, percent, held, there = (int(part) for part in line.split(","))
            self._gpus[index] = (percent, held * _MIB, there * _MIB)


def _of_machine() -> tuple[int, int]:
    """Bytes in use and bytes there; zeros where `/proc` is not."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
    there = found.get("MemTotal", 0)
    return there - found.get("MemAvailable", there), there
