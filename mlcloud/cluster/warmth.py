"""What a node keeps warm: a fork server with what kernels of the cluster's gangs will import.

    gateway ── answer to a heartbeat: {"modules": […], "threads": 1} ──► agent ─► fork server
                                                                  none ─► it ends

It begins `WAIT_S` after it was first asked for: a node that has just come, or gets its first gang,
has other things to do. So it is there for the next gang: one that goes on after a lost node, on the
nodes that stay and on the spare. Standard library alone, as all of the agent.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Where its socket is; in the environment of Ray's processes.
VARIABLE = "MLCLOUD_FORK_SERVER"
WAIT_S = 10.0
AGAIN_S = 600.0  # one that ended by itself, for want of memory say


class ForkServer:
    """One node's, or none. `environment`: what a kernel of this node has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / f"f{secrets.token_hex(3)}"
        self.path = self._folder / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._retired: list[subprocess.Popen[bytes]] = []
        self._order: Mapping[str, Any] | None = None
        self._due = 0.0

    def keep(self, order: Mapping[str, Any] | None, environment: Mapping[str, str]) -> None:
        """What is wanted now. Cheap: called at each heartbeat."""
        now = time.monotonic()
        if order != self._order:
            self.stop()
            self._order, self._due = order, now + WAIT_S
        if order is None:
            return
        if self._process is not None and self._process.poll() is not None:
            self.stop()
            self._due = now + AGAIN_S
        if self._process is None and now >= self._due:
            self._start(order, environment)

    def _start(self, order: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        threads = str(max(1, int(order["threads"])))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-Xfrozen_modules=off", "-m", "mlcloud.kernel.forkserver"),
                *(str(self.path), *order["modules"]),
            ],
            # As Ray sets it for an actor of so many processors.
            env={"OMP_NUM_THREADS": threads, **_without(environment)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )

    def stop(self) -> None:
        """It ends with the last of its copies."""
        if self._process is not None:
            self._process.terminate()
            self._retired.append(self._process)
            self._process = None
        self._retired = [each for each in self._retired if each.poll() is None]
        shutil.rmtree(self._folder, ignore_errors=True)


def _without(environment: Mapping[str, str]) -> dict[str, str]:
    """As a worker of Ray's has it: its raylet takes LD_PRELOAD, of its own allocator, from it."""
    return {k: value for k, value in environment.items() if k not in (VARIABLE, "LD_PRELOAD")}
