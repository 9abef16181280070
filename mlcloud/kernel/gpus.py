"""What the GPUs of a kernel do, as `nvidia-smi` tells it: one process that stays, a line a look.

    nvidia-smi --query-gpu=… -l 5 ─► [[index, percent in use, bytes held, bytes there], …]

`nvidia-smi` in its loop keeps the driver open; to start it for each look would cost a good part of
a core. "In use" is the share of the last moments in which some kernel ran on the GPU: it does not
say how much of it that kernel filled (https://docs.nvidia.com/deploy/nvml-api, nvmlUtilization_t).

Only where the session was given GPUs (`CUDA_VISIBLE_DEVICES`) and the tool is there. Standard
library only: the supervisor imports it.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from mlcloud.processes import die_with_parent

FIELDS = "index,utilization.gpu,memory.used,memory.total"
_MIB = 2**20

Seen = list[list[int]]


class Gpus:
    """The looks at the GPUs that this process may see. `pipe` is readable when there is one; it is
    None where there are no GPUs, or no more looks."""

    def __init__(self, every_s: float) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        tool = shutil.which("nvidia-smi")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if tool is None or not visible:
            return
        command = [tool, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
        try:
            self._process = subprocess.Popen(
                [*command, "-i", visible, "-l", str(max(1, round(every_s)))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )
        except OSError:  # what is there cannot be run
            return

    @property
    def pipe(self) -> int | None:
        if self._process is None or self._process.stdout is None:
            return None
        return self._process.stdout.fileno()

    @property
    def pids(self) -> frozenset[int]:
        """Of what looks: it is no work of the session's."""
        return frozenset() if self._process is None else frozenset({self._process.pid})

    def read(self) -> Seen:
        """The GPUs whose lines have come since; empty where none has."""
        assert self._process is not None
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 65536)
        if not data:  # it has ended: a driver that is gone, or a name it does not know
            self._process.stdout.close()
            self._process = None
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [gpu for line in lines if (gpu := parsed(line.decode("ascii", "replace")))]


def parsed(line: str) -> list[int] | None:
    """One GPU of `0, 14, 6144, 81559`; None where a figure is missing (`[N/A]` on some boards)."""
    try:
        index, percent, held, there = (int(part) for part in line.split(","))
    except ValueError:
        return None
    return [index, percent, held * _MIB, there * _MIB]
