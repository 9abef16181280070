"""Anything is killed at any moment: no safe cell is lost, none runs twice, no process is left."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mlcloud import errors
from mlcloud.store import Store
from tests.faults.test_host_killed import host_of
from tests.live import Embedded, Running, until

pytestmark = pytest.mark.cluster

CELL = """
with open({file!r}, "a") as file: file.write("{number}\\n")
log.append({number})
big[{number}] = {number} + 1
alias["log"].append(-{number})
time.sleep({pause})
"""


class Storm:
    """One session, its cells one after the other, and what is killed meanwhile."""

    def __init__(self, cluster: Embedded, file: Path, seed: int) -> None:
        self.cluster, self.file = cluster, file
        self.random = random.Random(seed)
        self.session = cluster.connect().session("storm", namespace={})
        self.expected: list[int] = []
        self.safe: dict[int, int] = {}  # cells, and how often each had run when it was safe
        self.session.run(
            "import time, numpy as np\nlog = []\nalias = {'log': log}\n"
            "big = np.zeros(3_000_000)\nimport threading\nlock = threading.Lock()",
            durable=True,
            quiet=True,
        )

    def runs(self) -> Counter[int]:
        return Counter(map(int, self.file.read_text().split()))

    def kernel(self) -> psutil.Process | None:
        for each in self.cluster.processes():
            if "mlcloud.kernel.launch" in each.command and each.alive:
                return psutil.Process(each.pid)
        return None

    def kill(self, what: str) -> None:
        with contextlib.suppress(psutil.Error, AssertionError):
            if what == "gateway":
                self.cluster.kill_gateway()
            elif what == "node":
                for record in self.cluster.workers():
                    agent = psutil.Process(record["pid"])
                    for each in [agent, *agent.children(recursive=True)]:
                        each.kill()
            elif kernel := self.kernel():
                (kernel if what == "kernel" else host_of(kernel)).kill()

    def cell(self, number: int, what: str | None) -> None:
        pause = self.random.uniform(0, 0.5)
        code = CELL.format(file=str(self.file), number=number, pause=pause)
        cell = Running(self.session, code, on_preempt="rerun")
        if what is not None:
            # Before it, in it, in its snapshot, or in the restore of an earlier one.
            time.sleep(self.random.uniform(0, 1.2))
            self.kill(what)
        error = cell.error(120)
        if isinstance(error, errors.KernelDied):
            return  # its cell fails, and has changed nothing
        assert error is None, f"cell {number}: {error}"
        self.expected.append(number)
        if self.random.random() < 0.5:
            # One whose node died between its end and its snapshot runs again before the next cell.
            until(lambda: self.is_safe() or self.session.info.node is None, "it is safe", 30)
            if self.is_safe():
                self.safe[number] = self.runs()[number]

    def is_safe(self) -> bool:
        return not self.session.saved().state.unsafe

    def check(self) -> None:
        self.session.run("locked = lock.acquire(blocking=False)", quiet=True)
        assert self.session["locked"] is True, "what cannot be pickled was made again"
        log = self.session["log"]
        assert [each for each in log if each > 0] == self.expected
        assert [-each for each in log if each < 0] == self.expected, "aliases are aliases still"
        big = self.session["big"].get() if hasattr(self.session["big"], "get") else None
        big = self.session["big"] if big is None else big
        assert [i for i, value in enumerate(big[:1000]) if value] == self.expected
        runs = self.runs()
        assert {n: runs[n] for n in self.safe} == self.safe, "a safe cell has run again"


def weather(own_cluster: Callable[..., Embedded], folder: Path, seed: int, cells: int) -> None:
    cluster = own_cluster(max_nodes="6", node_idle="30s")
    storm = Storm(cluster, folder / "runs", seed)
    for number in range(1, cells + 1):
        targets = ["kernel", "host", "gateway", "node"]
        storm.cell(number, storm.random.choice(targets) if number % 2 else None)
    storm.check()
    store = Store(f"file://{cluster.home}/store")
    step = store.latest("sessions", storm.session.info.id)
    assert step is not None
    assert store.verify("sessions", storm.session.info.id, step) == []


def test_a_shower(own_cluster: Callable[..., Embedded], tmp_path: Path) -> None:
    weather(own_cluster, tmp_path, seed=7, cells=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_storm(own_cluster: Callable[..., Embedded], tmp_path: Path, seed: int) -> None:
    weather(own_cluster, tmp_path, seed=seed, cells=24)
