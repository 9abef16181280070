"""A host actor that is killed leaves no kernel behind, and its session goes on elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mlcloud.client.session import Session
from tests.live import Running, alive, stories, until

pytestmark = pytest.mark.cluster


def host_of(kernel: psutil.Process) -> psutil.Process:
    """kernel ◄─ supervisor ◄─ host actor."""
    supervisor = kernel.parent()
    assert supervisor is not None
    host = supervisor.parent()
    assert host is not None
    assert "Host" in " ".join(host.cmdline())
    return host


def test_the_kernel_dies_and_the_cell_runs_again(
    session: Callable[..., Session], tmp_path: Path
) -> None:
    """Even a kernel that holds the GIL in a C call; the state before the cell is there again."""
    s = session()
    s.run("import os\nkept = {'a': 1}\npid = os.getpid()", durable=True, quiet=True)
    kernel = psutil.Process(s["pid"])
    cell = Running(
        s,
        "import ctypes\n"
        f"first = not os.path.exists('{tmp_path}/ran')\n"
        f"open('{tmp_path}/ran', 'w').close()\n"
        "if first: ctypes.PyDLL(None).sleep(100)\n"
        "kept['b'] = 2\npid = os.getpid()",
    )
    until((tmp_path / "ran").exists, "the cell runs")
    host_of(kernel).kill()
    until(lambda: not alive(kernel), "the kernel is gone", timeout=3)
    assert cell.error() is None
    assert s["kept"] == {"a": 1, "b": 2}
    assert s["pid"] != kernel.pid
    told = stories(s)
    assert "lost" in told
    assert "rerun" in told


def test_between_cells(session: Callable[..., Session]) -> None:
    s = session()
    s.run("import os\nkept = 1\npid = os.getpid()", durable=True, quiet=True)
    kernel = psutil.Process(s["pid"])
    host_of(kernel).kill()
    until(lambda: not alive(kernel), "the kernel is gone", timeout=3)
    s.run("kept += 1", quiet=True)
    assert s["kept"] == 2
