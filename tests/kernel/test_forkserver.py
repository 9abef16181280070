"""Kernels that are copies of a node's fork server: what they share with it, and what they must not.

The real server, supervisors and kernels, without Ray. Whatever `test_supervisor.py` says of a
kernel's end is asked of copies there too.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlcloud.cluster import warmth
from mlcloud.gateway import gangs
from mlcloud.kernel import forkserver
from mlcloud.kernel.process import KernelProcess
from mlcloud.values.secrets import Secrets
from tests.kernel.fork_servers import Served
from tests.live import until

RANK = {"MLCLOUD_RANK": "0", "RANK": "0"}


async def run(kernel: KernelProcess, code: str) -> Any:
    """What `code` puts into `told`, as JSON."""
    file = kernel.workspace / f"told-{kernel.pid}"
    kernel.send(
        kernel.shell,
        "execute_request",
        {"code": f"{code}\nimport json; open({str(file)!r}, 'w').write(json.dumps(told))"},
        "x",
    )
    reply = kernel.decode(await kernel.shell.recv_multipart())
    assert reply["content"]["status"] == "ok", reply["content"]
    return json.loads(file.read_text())


def kernel_of(folder: Path, **options: Any) -> KernelProcess:
    defaults: dict[str, Any] = {"memory_bytes": 0, "variables": RANK}
    return KernelProcess(
        folder / "k",
        session_id="s",
        store_url=f"file://{folder}/store",
        workspace=folder / "work",
        **{**defaults, **options},
    )


def is_copy(kernel: KernelProcess) -> bool:
    command = psutil.Process(kernel.pid).cmdline()
    return "mlcloud.kernel.forkserver" in command


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    with Served(monkeypatch) as found:
        yield found


async def test_a_copy_has_the_modules_and_its_own_everything_else(served: Served) -> None:
    code = """
import multiprocessing, numpy, os, random, sys, tempfile
told = {
    "module": getattr(sys.modules.get("imported_once"), "PID", None),
    "rank": os.environ.get("RANK"), "secret": os.environ.get("TOKEN"),
    "server": os.environ.get("MLCLOUD_FORK_SERVER"), "made": os.environ.get("MADE_BY_IMPORT"),
    "draws": [random.random(), float(numpy.random.rand()), os.urandom(8).hex()],
    "key": bytes(multiprocessing.current_process().authkey).hex(),
    "where": [os.getcwd(), sys.path[0]], "main": sys.modules["__main__"].__dict__.get("__file__"),
    "session": os.getsid(0) == os.getpid(), "files": max(map(int, os.listdir("/proc/self/fd"))),
}
"""
    found = []
    for rank in ("0", "1"):
        kernel = kernel_of(
            served.folder,
            variables={"MLCLOUD_RANK": rank, "RANK": rank},
            held=Secrets({"TOKEN": f"value-of-{rank}"}),
        )
        await kernel.start()
        assert is_copy(kernel)
        found.append(await run(kernel, code))
        await kernel.stop()
    first, second = found
    assert first["module"] == second["module"] == served.process.pid
    assert (first["rank"], second["rank"]) == ("0", "1")
    assert (first["secret"], second["secret"]) == ("value-of-0", "value-of-1")
    assert first["server"] is None
    assert first["made"] == "yes"
    assert not set(first["draws"]) & set(second["draws"])
    assert first["key"] != second["key"]
    assert first["where"] == [str(served.folder / "work")] * 2
    assert first["main"] is None
    assert first["session"]
    assert first["files"] < 100


async def test_a_secret_is_in_no_other_copy_and_not_in_the_server(served: Served) -> None:
    secret = "sixteen-and-" + "more-letters"
    kernels = []
    for held in (Secrets({"TOKEN": secret}), Secrets({})):
        kernels.append(kernel_of(served.folder, held=held))
        await kernels[-1].start()
        assert is_copy(kernels[-1])
    told = await run(kernels[0], "import os; told = os.environ['TOKEN']")
    assert told == secret
    assert _holds(kernels[0].pid, secret)
    assert not _holds(kernels[1].pid, secret)
    assert not _holds(served.process.pid, secret)
    for kernel in kernels:
        await kernel.stop()


def _holds(pid: int, text: str) -> bool:
    """Whether a process's writable memory has these bytes."""
    found = False
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
            if "rw" in line.split()[1] and "[v" not in line:
                memory.seek(begin)
                found |= text.encode() in memory.read(end - begin)
    return found


async def test_only_ranks_are_copies(served: Served) -> None:
    kernel = kernel_of(served.folder, variables={})
    await kernel.start()
    assert not is_copy(kernel)
    await kernel.stop()


async def test_torch_draws_anew_in_each_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    code = "import torch; told = [torch.initial_seed(), torch.rand(1).item()]"
    with Served(monkeypatch, *gangs.WARM) as served:
        found = []
        for _ in range(2):
            kernel = kernel_of(served.folder)
            await kernel.start()
            assert is_copy(kernel)
            found.append(await run(kernel, code))
            await kernel.stop()
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


async def test_a_copy_uses_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("there is no CUDA device")
    with Served(monkeypatch, *gangs.WARM) as served:
        kernel = kernel_of(served.folder)
        await kernel.start()
        assert is_copy(kernel), "an import has initialised CUDA"
        code = "import torch; told = torch.arange(5, device='cuda').sum().item()"
        assert await run(kernel, code) == 10
        await kernel.stop()


@pytest.mark.parametrize(
    "changed",
    [{"OMP_NUM_THREADS": "7"}, {"MALLOC_ARENA_MAX": "3"}, {"PYTHONPATH": "/elsewhere"}],
    ids=str,
)
async def test_what_a_library_reads_when_it_is_loaded_makes_another_process(
    served: Served, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    if "PYTHONPATH" in changed:
        changed = {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], "/elsewhere"])}
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    kernel = kernel_of(served.folder)
    await kernel.start()
    assert not is_copy(kernel)
    name = next(iter(changed))
    told = await run(kernel, f"import os; told = os.environ[{name!r}]")
    assert told == changed[name]
    await kernel.stop()


async def test_nor_is_one_a_copy_after_another_version_was_installed(served: Served) -> None:
    served.install("imported_once", "1.1")
    kernel = kernel_of(served.folder)
    await kernel.start()
    assert not is_copy(kernel)
    await kernel.stop()


async def test_a_path_with_something_twice_is_the_same_path(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.environ["PYTHONPATH"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([path, path]))
    kernel = kernel_of(served.folder)
    await kernel.start()
    assert is_copy(kernel)
    await kernel.stop()


async def test_without_a_server_or_with_a_dead_one_a_kernel_starts_by_itself(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.process.kill()
    served.process.wait()
    kernel = kernel_of(served.folder)
    await kernel.start()
    assert not is_copy(kernel)
    await kernel.stop()
    monkeypatch.delenv(warmth.VARIABLE)
    assert forkserver.start(0, "", [], environment={}, cwd="/") is None


@pytest.mark.parametrize("how", ["retired", "killed"])
async def test_copies_outlive_their_server(served: Served, how: str) -> None:
    kernel = kernel_of(served.folder)
    await kernel.start()
    assert is_copy(kernel)
    if how == "killed":
        served.process.kill()
        served.process.wait()
    else:
        served.process.terminate()
        until(lambda: not _answers(served.path), "it takes no more")
        assert served.process.poll() is None  # its copies are its to reap
    assert await run(kernel, "told = 6 * 7") == 42
    supervisor = kernel.supervisor_pid
    await kernel.stop()
    if how == "retired":
        served.process.wait(5)
    until(lambda: not psutil.pid_exists(supervisor), "nothing is left, no zombie either")


def _answers(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1)
            probe.connect(str(path))
            return bool(probe.recv(1))
        except OSError:
            return False


async def test_a_copys_memory_has_its_limit(served: Served) -> None:
    kernel = kernel_of(served.folder, memory_bytes=400 * 2**20)
    await kernel.start()
    assert is_copy(kernel)
    kernel.send(kernel.shell, "execute_request", {"code": "x = bytearray(600 * 2**20)"}, "x")
    assert (await kernel.ended)["reason"] == "memory"
    await kernel.stop()


def test_a_copy_cannot_use_a_gpu_that_the_server_has_begun_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Driver:
        answer = 0

        def cuDeviceGetCount(self, _: object) -> int:  # CUDA's name
            return self.answer

    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert forkserver._has_cuda()
    driver.answer = forkserver.NOT_INITIALIZED
    assert not forkserver._has_cuda()


def test_a_server_is_kept_while_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmth, "WAIT_S", 0.2)
    server = warmth.ForkServer(Path(f"/tmp/mlc-{os.getpid()}"))
    environment = {**os.environ, "LD_PRELOAD": "of Ray's raylet"}
    order = {"modules": ["numpy"], "threads": 2}

    def kept() -> subprocess.Popen[bytes] | None:
        server.keep(order, environment)
        return server._process

    assert kept() is None  # not at once
    until(lambda: kept() is not None, "it is started")
    first = kept()
    assert first is not None
    until(server.path.exists, "it listens")
    assert server.path.parent.stat().st_mode & 0o777 == 0o700
    variables = psutil.Process(first.pid).environ()
    assert variables["OMP_NUM_THREADS"] == "2"
    assert "LD_PRELOAD" not in variables

    order = {"modules": ["numpy"], "threads": 1}
    until(lambda: kept() not in (None, first), "another one for another order")
    second = kept()
    assert second is not None
    assert first.wait(5) == 0
    second.kill()
    second.wait()
    assert kept() is None  # not again and again
    server.keep(None, environment)
    assert not server.path.exists()
