"""What a node tells of its memory and GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlcloud.cluster.node_use import NodeUse
from tests.live import until


def test_memory_of_what_runs_below() -> None:
    use = NodeUse(4 * 2**30, alone=False)
    before = use.look()
    assert before["memory_there"] == 4 * 2**30
    assert before["gpu"] is None
    command = "x = b'1' * 80_000_000; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert use.look()["memory"] > before["memory"] + 80_000_000
        child.kill()


def test_memory_of_a_machine() -> None:
    found = NodeUse(1, alone=True).look()
    assert found["memory_there"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found["memory"] < found["memory_there"]


def test_gpus_as_the_tool_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho '0, 14, 6144, 81559'\necho '1, 86, 100, 81559'\necho '2, [N/A], 1, 2'\n"
        "exec sleep 60\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    use = NodeUse(1, alone=True)
    found = until(lambda: (seen := use.look())["gpu"] is not None and seen, "the GPUs are told")
    assert found["gpu"] == pytest.approx(0.5)
    assert found["gpu_memory"] == 6244 * 2**20
    assert found["gpu_memory_there"] == 2 * 81559 * 2**20
    assert use._tool is not None
    use._tool.kill()
    until(lambda: use.look()["gpu"] is None, "a tool that has ended tells nothing old")
