"""Whatever happens to the host, no kernel is left: the real supervisor and kernel, without Ray."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlcloud.kernel.process import KernelProcess
from tests.kernel.fork_servers import Served
from tests.live import ROOT, until

GONE_S = 3.0
# A C call that keeps the GIL: no Python code of the kernel can run any more.
HOLD_THE_GIL = "import ctypes; ctypes.PyDLL(None).sleep(60)"

HOST = """
import asyncio, os, sys, pathlib
from mlcloud.kernel.process import KernelProcess

async def main(folder, code):
    kernel = KernelProcess(
        pathlib.Path(folder) / "k", session_id="s", store_url=f"file://{folder}/store",
        workspace=pathlib.Path(folder) / "work", memory_bytes=0,
        variables={"MLCLOUD_RANK": "0"},  # whose kernel may be a copy
    )
    await kernel.start()
    assert (type(kernel._supervisor).__name__ == "Forked") == ("MLCLOUD_FORK_SERVER" in os.environ)
    content = {"code": code, "silent": False, "allow_stdin": False}
    kernel.send(kernel.shell, "execute_request", content, "x")
    print(kernel.pid, kernel._supervisor.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(params=["a process of its own", "a copy of a fork server's"])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Short: a unix socket's path ends at 107 bytes."""
    if request.param.startswith("a copy"):
        with Served(monkeypatch) as served:
            yield str(served.folder)
        return
    path = tempfile.mkdtemp(prefix="mlc-")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a host gets it from its node
    yield path
    shutil.rmtree(path, ignore_errors=True)


def start_host(folder: str, code: str) -> tuple[subprocess.Popen[str], int, int]:
    """A process that hosts a kernel which runs `code`: it, the kernel's pid, the supervisor's."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, folder, code],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    kernel, supervisor = map(int, host.stdout.readline().split())
    return host, kernel, supervisor


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(*pids: int) -> float:
    """Wait until none of the processes runs; how long that took."""
    began = time.monotonic()
    until(lambda: not any(map(runs, pids)), f"{pids} are gone", GONE_S, every=0.02)
    return time.monotonic() - began


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        HOLD_THE_GIL,
        "import signal, time\n"
        "for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):\n"
        "    signal.signal(each, signal.SIG_IGN)\n"
        "time.sleep(60)",
    ],
    ids=["sleeping", "holding the GIL", "ignoring signals"],
)
def test_a_killed_host_leaves_no_kernel(folder: str, code: str) -> None:
    host, kernel, supervisor = start_host(folder, code)
    host.kill()
    host.wait()
    gone(kernel, supervisor)


def test_nor_what_the_kernel_started(folder: str) -> None:
    marker = Path(folder) / "pids"
    host, kernel, supervisor = start_host(
        folder,
        "import subprocess\n"
        "a = subprocess.Popen(['sleep', '600'])\n"
        "b = subprocess.Popen('setsid sleep 600 & echo $!', shell=True, stdout=subprocess.PIPE)\n"
        f"new = {str(marker)!r} + '.new'\n"
        "open(new, 'w').write(f'{a.pid} {b.stdout.readline().decode()}')\n"
        f"import os; os.rename(new, {str(marker)!r})",
    )
    until(marker.exists, "the kernel has started its children")
    below = [int(pid) for pid in marker.read_text().split()]
    assert len(below) == 2
    host.kill()
    host.wait()
    gone(kernel, supervisor, *below)


def test_a_killed_supervisor_takes_its_kernel_along(folder: str) -> None:
    host, kernel, supervisor = start_host(folder, HOLD_THE_GIL)
    os.kill(supervisor, signal.SIGKILL)
    gone(kernel)
    host.kill()
    host.wait()


async def test_the_report_of_a_kernels_end(folder: str) -> None:
    kernel = KernelProcess(
        Path(folder) / "k",
        session_id="s",
        store_url=f"file://{folder}/store",
        workspace=Path(folder) / "work",
        memory_bytes=0,
        variables={"MLCLOUD_RANK": "0"},
    )
    await kernel.start()
    kernel.send(kernel.shell, "execute_request", {"code": "import os; os._exit(5)"}, "x")
    report = await asyncio.wait_for(kernel.ended, 10)
    assert (report["exit"], report["reason"]) == (5, "")
    assert report["peak_bytes"] > 2**20
    await kernel.stop()
    assert not runs(kernel.pid)
