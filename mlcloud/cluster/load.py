"""How busy this node is: its CPUs, memory and GPUs, looked at by its agent every few seconds.

    processes below the agent ─► CPU seconds since the last look, resident bytes ─┐
    nvidia-smi, where there is one ─► percent and bytes of each GPU ──────────────┴► the heartbeat

What runs beside the agent's own tree (the operating system, on an embedded cluster the other
nodes) is none of the node's business. Standard library alone: it runs on every node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from typing import Any

from mlcloud.processes import used

_SMI = "nvidia-smi"
_QUERY = ("--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
_SMI_S = 10.0  # a driver that hangs is not waited for
_MIB = 2**20


class Load(threading.Thread):
    """Looks every `every_s`; `latest` is what a heartbeat takes along, None before the second."""

    def __init__(self, every_s: float, *, gpus: bool) -> None:
        super().__init__(daemon=True, name="load")
        self._every_s = every_s
        self._smi = shutil.which(_SMI) if gpus else None
        self._seen: tuple[float, float] | None = None
        self.latest: dict[str, Any] | None = None

    def run(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a process that ends while it is looked at
                self.look()
            time.sleep(self._every_s)

    def look(self) -> None:
        at, (cpu, resident) = time.monotonic(), used(os.getpid())
        before, self._seen = self._seen, (at, cpu)
        gpus = self._gpus()
        if before is not None and at > before[0]:
            # Of children that ended, what they had used is gone with them.
            busy = max(0.0, cpu - before[1]) / (at - before[0])
            self.latest = {"cpus": round(busy, 3), "memory": resident, "gpus": gpus}

    def _gpus(self) -> list[dict[str, float]]:
        if self._smi is None:
            return []
        try:
            told = subprocess.run(
                [self._smi, *_QUERY], capture_output=True, text=True, timeout=_SMI_S, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return []
        return [each for each in map(_gpu, told.splitlines()) if each is not None]


def _gpu(line: str) -> dict[str, float] | None:
    """A line such as `93, 10240, 23028`; a part that the driver does not know is `[N/A]`."""
    try:
        percent, held, there = (float(part) for part in line.split(","))
    except ValueError:
        return None
    return {"busy": percent / 100, "memory": int(held * _MIB), "memory_there": int(there * _MIB)}
