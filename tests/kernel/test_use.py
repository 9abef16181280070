"""What cells use is measured beside the kernel, at little cost; GPUs by a fake `nvidia-smi`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcloud.kernel import supervisor
from mlcloud.kernel.gpus import Gpus, parsed
from mlcloud.kernel.use import Use
from mlcloud.processes import used, used_by
from tests.live import ROOT, until

MIB = 2**20
BURN = "import time; end = time.process_time() + {0}\nwhile time.process_time() < end: pass"


@pytest.fixture
def children() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started = []

    def start(code: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def test_a_tree_is_measured_with_all_it_has_waited_for() -> None:
    """A child that has had a child of its own burn 0.3 s, and holds 100 MiB; another one that does
    not count."""
    nested = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-S', '-c', {BURN.format(0.3)!r}])\n"
        "held = b'x' * (100 * 2**20)\n"
        "print(flush=True)\ninput()"
    )
    code = (
        "import json, os, subprocess, sys\n"
        "from mlcloud.processes import used, used_by\n"
        "start = lambda code: subprocess.Popen([sys.executable, '-S', '-c', code],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        f"aside, child = start('print(flush=True); input()'), start({nested!r})\n"
        "aside.stdout.readline(), child.stdout.readline()\n"
        "me = os.getpid()\n"
        "print(json.dumps([used(me, frozenset({aside.pid})), used(me), used_by(child.pid)]))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
    (cpu, resident), (_, everything), (own, _) = json.loads(done.stdout)
    assert 0.25 <= own <= cpu < 2
    assert 100 * MIB < resident < everything < 200 * MIB
    assert used_by(2**22 + 1) == (0.0, 0)


def test_executions_have_what_was_used_between_their_beginning_and_end(
    monkeypatch: pytest.MonkeyPatch, children: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr("mlcloud.kernel.use.LOOK_S", 0.2)
    kernel = children("import sys\nfor line in sys.stdin: exec(line)")
    assert kernel.stdin is not None
    monkeypatch.setattr("mlcloud.kernel.use.used", lambda *_: used_by(kernel.pid))
    use = Use()
    use.of(kernel.pid, 0, frozenset())
    use.begin("x")
    spun = BURN.format(0.4).replace("\n", "\\n")
    kernel.stdin.write(f'exec("{spun}")\n'.encode())
    kernel.stdin.flush()
    until(lambda: used_by(kernel.pid)[0] >= 0.35, "it has spun")
    use.report({"use": used_by(kernel.pid)})
    use.report({"gpus": [[0, 20, 6 * MIB, 80 * MIB], [1, 0, 1 * MIB, 80 * MIB]]})
    use.report({"gpus": [[0, 40, 4 * MIB, 80 * MIB]]})
    found = use.end("x")
    assert found is not None
    assert 0.3 <= found["cpu_seconds"] <= found["seconds"] + 0.05
    assert 0.2 < found["cpus_peak"] < 1.2
    assert MIB < found["memory_mean"] <= found["memory_peak"] < 100 * MIB
    assert found["gpu"] == {
        **{"mean": 0.2, "max": 0.4, "memory_peak": 6 * MIB},
        **{"memory_there": 80 * MIB, "gpus": 2, "busy": 1},
    }
    assert use.end("x") is None
    # The next one begins at nothing.
    use.begin("y")
    after = use.end("y")
    assert after is not None
    assert after["cpu_seconds"] < 0.1
    assert "gpu" not in after
    # Of a kernel that is gone, what was seen until then.
    use.begin("z")
    kernel.kill()
    kernel.wait()
    assert use.end("z") is None


def test_lines_of_nvidia_smi() -> None:
    assert parsed("0, 14, 6144, 81559") == [0, 14, 6144 * MIB, 81559 * MIB]
    for line in ("0, [N/A], 6144, 81559", "", "No devices were found"):
        assert parsed(line) is None


SMI = """#!{python} -S
import sys, time
assert "--query-gpu=index,utilization.gpu,memory.used,memory.total" in sys.argv
assert sys.argv[sys.argv.index("-i") + 1] == "0,1"
while True:
    print("0, 14, 6144, 81559", flush=True)
    print("1, 0, 3, 81559", flush=True)
    time.sleep(0.2)
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI.format(python=sys.executable))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


def test_without_gpus_nothing_is_started(smi: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpus = Gpus(5.0)
    assert (gpus.pipe, gpus.pids) == (None, frozenset())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Gpus(5.0).pipe is None


def test_the_supervisor_tells_what_its_kernel_uses(
    smi: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real supervisor and kernel: a cell that spins for a look and more, on two GPUs; none of
    what looks is left behind, or counted."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from mlcloud.kernel.process import KernelProcess

    folder = tempfile.mkdtemp(prefix="mlc-")

    async def run() -> tuple[dict[str, Any], frozenset[int]]:
        use = Use()
        kernel = KernelProcess(
            Path(folder) / "k",
            session_id="s",
            store_url=f"file://{folder}/store",
            workspace=Path(folder) / "work",
            memory_bytes=0,
        )
        kernel.on_use = use.report
        await kernel.start()
        use.of(kernel.pid, kernel.supervisor_pid, kernel.aside)
        use.begin("x")
        content = {"code": BURN.format(supervisor.LOOK_S + 1), "silent": False}
        kernel.send(kernel.shell, "execute_request", {**content, "allow_stdin": False}, "x")
        await kernel.shell.recv_multipart()
        found = use.end("x")
        await kernel.stop()
        assert found is not None
        return found, kernel.aside

    try:
        found, aside = asyncio.run(run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert supervisor.LOOK_S <= found["cpu_seconds"] <= found["seconds"] + 1
    assert found["cpus_peak"] > 0.1
    assert found["gpu"]["mean"] == pytest.approx(0.07, abs=0.01)
    assert (found["gpu"]["gpus"], found["gpu"]["busy"]) == (2, 1)
    assert found["gpu"]["memory_peak"] == 6144 * MIB
    assert len(aside) == 1
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in aside), "the tool is gone", 10)


def test_looking_costs_next_to_nothing() -> None:
    """Half a percent of a core at most, every `LOOK_S`; a cell's two looks take less than 1 ms."""
    looks = 20
    begin = time.process_time()
    for _ in range(looks):
        used(os.getpid())
    each = (time.process_time() - begin) / looks
    assert each / supervisor.LOOK_S < 0.005
    use = Use()
    use.of(os.getpid(), 0, frozenset())
    begin = time.process_time()
    for number in range(1000):
        use.begin(str(number))
        use.end(str(number))
    assert (time.process_time() - begin) / 1000 < 0.001
