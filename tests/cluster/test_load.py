"""How busy a node is, as its agent sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlcloud.cluster.load import Load
from mlcloud.processes import used
from tests.live import Embedded, until


def test_the_tree_below_is_measured() -> None:
    load = Load(1.0, gpus=False)
    load.look()
    assert load.latest is None  # there is nothing to compare with yet
    before = used(os.getpid())[1]
    child = subprocess.Popen([sys.executable, "-c", "held = b'1' * 100_000_000\nwhile True: pass"])
    try:

        def busy() -> bool:
            load.look()
            assert load.latest is not None
            return load.latest["cpus"] > 0.1 and load.latest["memory"] > before + 90_000_000

        until(busy, "it computes", 20, every=0.3)
    finally:
        child.kill()
        child.wait()
    load.look()
    assert load.latest is not None
    assert load.latest["memory"] < before + 90_000_000
    assert load.latest["cpus"] >= 0


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '93, 10240, 23028'\necho '[N/A], 1, 2'\necho '0, 3, 23028'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    load = Load(1.0, gpus=True)
    load.look()
    load.look()
    assert load.latest is not None
    assert load.latest["gpus"] == [
        {"busy": 0.93, "memory": 10240 * 2**20, "memory_there": 23028 * 2**20},
        {"busy": 0.0, "memory": 3 * 2**20, "memory_there": 23028 * 2**20},
    ]
    smi.write_text("#!/bin/sh\nexit 9\n")  # a driver that does not load
    load.look()
    assert load.latest["gpus"] == []


def test_a_node_says_what_it_does(cluster: Embedded, session: Callable[..., object]) -> None:
    """It is in `GET /v1/cluster` within some heartbeats."""
    made = session()
    made.run("while True: pass", detach=True, quiet=True)  # type: ignore[attr-defined]

    def seen() -> bool:
        with cluster.http() as http:
            nodes = http.get("/v1/cluster").json()["nodes"]
        found = [each for each in nodes if made.name in each["sessions"]]  # type: ignore[attr-defined]
        use = found[0]["use"] if found else None
        return use is not None and use["cpus"] > 0.1 and use["memory"] > 50_000_000

    until(seen, "the node is seen to work", 30, every=0.5)
    made.interrupt()  # type: ignore[attr-defined]
