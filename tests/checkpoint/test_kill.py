"""kill -9 anywhere in a save: the last committed step loads, bit for bit.

One driver process forks a child per point, so that numpy is imported once. Steps go on from child
to child, as they do when a preempted run starts again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mlcloud.checkpoint import Checkpoints

COMMON = """
import os, random, signal, sys, time
import numpy as np
from mlcloud.checkpoint import Checkpoints

def state_of(step):
    # A part that never changes, a large part that does, and small ones: dedup, chunks and slabs.
    return {
        "frozen": np.arange(2_000_000, dtype=np.float32),
        "large": np.random.default_rng(step).random(2_300_000),
        "small": {i: np.full(50, step) for i in range(20)},
        "step": step,
    }

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def check(path, at_least):
    ckpts = Checkpoints(path)
    steps = ckpts.steps()
    if not steps:
        assert at_least == 0
        return 0
    assert steps[-1] >= at_least, (steps, at_least)
    loaded, want = ckpts.load(), state_of(steps[-1])
    assert loaded["step"] == steps[-1]
    for name in ("frozen", "large"):
        assert loaded[name].tobytes() == want[name].tobytes(), name
    assert all((loaded["small"][i] == steps[-1]).all() for i in range(20))
    return steps[-1]
"""

# The n-th of the calls that change the disk kills the process, before or after it took effect.
EVERY_POINT = """
path, committed, killed = sys.argv[1], 0, 0
for point in range(200):
    pid = os.fork()
    if pid == 0:
        import threading
        count, lock = [0], threading.Lock()
        def watch(real):
            def call(*args, **kwargs):
                with lock:
                    count[0] += 1
                    mine = count[0]
                if mine == point // 2 + 1 and point % 2 == 0:
                    die()
                result = real(*args, **kwargs)
                if mine == point // 2 + 1:
                    die()
                return result
            return call
        for name in ("fsync", "replace", "link", "mkdir", "unlink"):
            setattr(os, name, watch(getattr(os, name)))
        Checkpoints(path).save(state_of(committed + 1), committed + 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -9), code
    committed = check(path, committed + (code == 0))
    if code == 0:
        break
    killed += 1
print(killed, committed)
"""

# Saves go on beside the next state's making, and old steps are removed meanwhile.
BESIDE = """
path, committed, times = sys.argv[1], 0, random.Random(11)
for point in range(POINTS):
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        ckpts, before = Checkpoints(path, keep=3, verify="xxh3"), None
        ckpts.restore({}) if ckpts.steps() else None
        os.write(send, b".")
        for step in range(committed + 1, committed + 100):
            saving = ckpts.save(state_of(step), step, wait=False)
            if before is not None:
                assert before.done()
                os.write(send, b".")
            before = saving
    os.close(send)
    os.read(receive, 1)
    time.sleep(times.uniform(0, 0.5))  # the point of the kill, not a wait for something
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    said = 0
    while data := os.read(receive, 4096):
        said += len(data)
    os.close(receive)
    committed = check(path, committed + said)
print(POINTS, committed)
"""

RANDOM_TIMES = """
path, committed, times = sys.argv[1], 0, random.Random(7)
began = time.monotonic()
Checkpoints(path + "-timed").save(state_of(1), 1)
took = time.monotonic() - began
for point in range(15):
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        ckpts = Checkpoints(path)
        os.write(send, b".")
        for step in range(committed + 1, committed + 100):
            ckpts.save(state_of(step), step)
            os.write(send, b".")
    os.close(send)
    os.read(receive, 1)
    time.sleep(times.uniform(0, 2 * took))  # the point of the kill, not a wait for something
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    said = 0
    while data := os.read(receive, 4096):
        said += len(data)
    os.close(receive)
    committed = check(path, committed + said)
print(15, committed)
"""


def drive(script: str, path: Path) -> tuple[int, int]:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMMON + script), str(path)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed, committed = done.stdout.split()
    return int(killed), int(committed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestKill:
    def test_at_every_call_that_changes_the_disk(self, tmp_path: Path) -> None:
        killed, committed = drive(EVERY_POINT, tmp_path / "store")
        assert killed >= 15
        assert committed >= 1
        assert np.array_equal(
            Checkpoints(str(tmp_path / "store")).load()["frozen"],
            np.arange(2_000_000, dtype=np.float32),
        )

    def test_at_random_times(self, tmp_path: Path) -> None:
        killed, committed = drive(RANDOM_TIMES, tmp_path / "store")
        assert killed == 15
        assert committed >= 1
        assert Checkpoints(str(tmp_path / "store")).verify() == []

    def test_of_saves_beside_the_training(self, tmp_path: Path) -> None:
        self._beside(tmp_path / "store", 12)

    @pytest.mark.slow
    def test_of_saves_beside_the_training_at_a_hundred_points(self, tmp_path: Path) -> None:
        self._beside(tmp_path / "store", 100)

    def _beside(self, path: Path, points: int) -> None:
        killed, committed = drive(BESIDE.replace("POINTS", str(points)), path)
        assert killed == points
        assert committed >= 1
        assert Checkpoints(str(path)).verify() == []
        assert (
            len(Checkpoints(str(path)).steps()) <= 4
        )  # a kill may come before the last is removed
