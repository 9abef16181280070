"""What a machine has, and what it lacks of what was declared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlcloud.cluster.machine import measure, shortfall

GIB = 2.0**30


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA L4 (UUID: x)'\necho 'GPU 1: NVIDIA L4'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = measure()
    assert found["CPU"] == len(os.sched_getaffinity(0))
    assert found["memory"] > GIB / 2
    assert found["GPU"] == 2


@pytest.mark.parametrize(
    ("declared", "lacks"),
    [
        ({"CPU": 4, "memory": 13.6 * GIB, "GPU": 1}, None),
        ({"CPU": 8}, "4 CPUs of 8"),
        ({"CPU": 4, "GPU": 2, "A10G": 2}, "1 GPUs of 2"),
        ({"CPU": 1, "memory": 27.2 * GIB}, "15.6 GiB of memory of 27.2"),
    ],
)
def test_shortfall(declared: dict[str, float], lacks: str | None) -> None:
    machine = {"CPU": 4.0, "memory": 15.6 * GIB, "GPU": 1.0}
    told = shortfall(declared, machine)
    assert told == (None if lacks is None else f"undersized: it has {lacks}")
