"""Bars: in a terminal and in the main thread, and of what takes longer than half a second."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
import numpy as np
from mlcloud.checkpoint import Checkpoints
from mlcloud.store import Store
from mlcloud.store.backends import LocalBackend
slow = float(sys.argv[2])
for name in ("put", "read"):
    def call(self, path, *args, real=getattr(LocalBackend, name), **more):
        time.sleep(slow * path.startswith("chunks"))
        return real(self, path, *args, **more)
    setattr(LocalBackend, name, call)
ckpts = Checkpoints(sys.argv[1], "exp")
state = {"w": np.arange(20_000_000, dtype=np.float32)}
if "beside" in sys.argv:
    ckpts.save(state, 1, wait=False).result()
else:
    ckpts.save(state, 1)
    ckpts.restore(state)
    ckpts.verify()
"""


def run(folder: Path, slow: float, *more: str) -> str:
    """What the terminal showed."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-c", SCRIPT, str(folder), str(slow), *more]
    process = subprocess.Popen(command, stdout=other, stderr=other)
    os.close(other)
    shown = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    assert process.wait(60) == 0, shown.decode()
    return shown.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="a pseudo-terminal as on Linux")
def test_in_a_terminal(tmp_path: Path) -> None:
    shown = run(tmp_path, 0.5)
    for what in ("saving exp", "reading step 1", "verifying"):
        assert what in shown
    assert "80.0M" in shown.replace("/80.0M", "80.0M")
    assert shown.endswith("\r")  # and is gone in the end


@pytest.mark.skipif(sys.platform != "linux", reason="a pseudo-terminal as on Linux")
@pytest.mark.parametrize(("slow", "more"), [(0.0, ()), (0.5, ("beside",))])
def test_not_of_what_is_quick_or_goes_on_beside(
    tmp_path: Path, slow: float, more: tuple[str, ...]
) -> None:
    assert "exp" not in run(tmp_path, slow, *more)
