"""How long until a session works again: after its node was killed, and after it was parked.

    node killed, spare up     SIGKILL of all of a node's processes in a cell, until the cell runs
                              again, on a node that is up and idle
    node killed, no spare     the same where a node must be started first
    parked, no node up        from sending a cell to a parked session until it has its answer
    parked, a node is up      the same where its node waits still

Beside each, from the same rounds: what starting the node took (from its launch until hosts may be
placed on it), and what is beyond that: noticing, deciding, host, kernel, and the state restored.
Nodes are processes of this machine: a cloud's take a minute or more, what is beyond is the same.

    python benchmarks/recovery.py [--rounds 5] [--mb 50]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from report import report

import mlcloud

WAIT_S = 120.0
WHOLE_NODE = 2  # CPUs: the spare's probe must not share the session's node
# Prints when each node is up: Ray's head lists it as alive, and hosts may be placed on it.
NODES = """
import json, os, sys, time
settings = json.load(open(sys.argv[1]))
os.environ.update(settings["ray_environment"])
from ray._raylet import GcsClient
head, seen = GcsClient(address=f"{settings['node_ip']}:{settings['gcs_port']}"), set()
while True:
    for node in head.get_all_node_info().values():
        if node.state == 0 and node.instance_id not in seen:
            seen.add(node.instance_id)
            print(node.instance_id, time.time(), flush=True)
    time.sleep(0.05)
"""
CELL = """
import os, time
with open({ran!r}, "a") as file: print(time.time(), file=file)
while not os.path.exists({go!r}): time.sleep(0.02)
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        if time.monotonic() > end:
            raise RuntimeError(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(0.02)
    return found


class Bench:
    """An embedded cluster in a home of its own, and one session with `mb` of state."""

    def __init__(self, home: Path, mb: int) -> None:
        self.home = home
        self.up: dict[str, float] = {}  # nodes, and when they were
        self.client = mlcloud.connect()
        self.session = self.client.session("bench", cpus=WHOLE_NODE, namespace={})
        self.session.run(
            f"import numpy as np\nbig = np.random.default_rng(0).bytes({mb} * 1_000_000)\n"
            "kept = {i: [i] for i in range(10_000)}\ncount = 0",
            durable=True,
            quiet=True,
        )
        self._watch = subprocess.Popen(
            [sys.executable, "-c", NODES, str(home / "cloud" / "cluster.json")],
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        until(lambda: self.nodes().keys() <= self.up.keys(), "the nodes are seen")

    def _read(self) -> None:
        assert self._watch.stdout is not None
        for line in self._watch.stdout:
            node, at = line.split()
            self.up[node] = float(at)

    def close(self) -> None:
        self._watch.kill()
        self._watch.wait()

    def start_of(self, node: str, known: set[str]) -> float:
        """Seconds from the launch of a node until it was up; 0 for one that was there already."""
        if node in known:
            return 0.0
        launched = datetime.fromisoformat(self.nodes()[node]["launched_at"]).timestamp()
        return self.up[node] - launched

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The live workers' records."""
        found = {}
        for path in (self.home / "cloud" / "instances").glob("i-*.json"):
            with contextlib.suppress(OSError, ValueError):
                record = json.loads(path.read_text())
                if record["node_type"] != "head" and record["ended_at"] is None:
                    found[record["id"]] = record
        return found

    def kill_node(self) -> float:
        """All processes of the session's node at once; when that was."""
        agent = psutil.Process(self.nodes()[self.session.info.node]["pid"])
        doomed = [agent, *agent.children(recursive=True)]
        at = time.time()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return at

    def keep_spare(self) -> None:
        """Until another node is up, and idle."""
        probe = self.client.session("probe", cpus=WHOLE_NODE, namespace={})
        probe.run("1", quiet=True)
        probe.close()


def killed(bench: Bench, folder: Path) -> dict[str, float]:
    ran, go = folder / f"ran-{time.time_ns()}", folder / f"go-{time.time_ns()}"
    known = set(bench.nodes())
    with ThreadPoolExecutor() as pool:
        code = CELL.format(ran=str(ran), go=str(go))
        cell = pool.submit(bench.session.run, code, on_preempt="rerun", quiet=True)
        until(lambda: ran.exists() and ran.read_text(), "the cell runs")
        time.sleep(1)
        at = bench.kill_node()
        times = until(lambda: ran.read_text().split()[1:], "it runs again")
        go.touch()
        cell.result(WAIT_S)
    node = bench.start_of(str(bench.session.info.node), known)
    return {"total": float(times[0]) - at, "node": node}


def parked(bench: Bench, *, no_node: bool) -> dict[str, float]:
    bench.session.park()
    if no_node:
        until(lambda: not bench.nodes(), "its node was given back")
    known = set(bench.nodes())
    start = time.perf_counter()
    bench.session.run("count += len(kept)", quiet=True)
    total = time.perf_counter() - start
    return {"total": total, "node": bench.start_of(str(bench.session.info.node), known)}


@contextlib.contextmanager
def cluster(mb: int, **settings: str) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="mlc-recovery-") as home:
        os.environ["MLCLOUD_HOME"] = home
        for name, value in settings.items():
            os.environ[f"MLCLOUD_{name.upper()}"] = value
        bench = None
        try:
            bench = Bench(Path(home), mb)
            yield bench
        finally:
            if bench is not None:
                bench.close()
            mlcloud.connect().cluster.down()
            for name in settings:
                del os.environ[f"MLCLOUD_{name.upper()}"]


def row(what: str, rounds: list[dict[str, float]], aim: str) -> dict[str, Any]:
    totals = [each["total"] for each in rounds]
    beyond = [each["total"] - each["node"] for each in rounds]
    nodes = [each["node"] for each in rounds]
    return {
        "what": what,
        "median s": statistics.median(totals),
        "max s": max(totals),
        "node start s": statistics.median(nodes) if any(nodes) else "",
        "beyond it, median s": statistics.median(beyond),
        "beyond it, max s": max(beyond),
        "aim": aim,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=50, help="of state in the session")
    options = parser.parse_args()
    numbers = range(options.rounds)
    load = os.getloadavg()[0]
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="mlc-recovery-cells-") as folder:
        # Nodes of the smallest shape in all: the session's, and one that is free.
        with cluster(options.mb, warm_spares="2", node_idle="60s") as bench:
            found["spare"] = []
            for _ in numbers:
                bench.keep_spare()
                found["spare"].append(killed(bench, Path(folder)))
            found["up"] = [parked(bench, no_node=False) for _ in numbers]
        with cluster(options.mb, node_idle="2s") as bench:
            found["no spare"] = [killed(bench, Path(folder)) for _ in numbers]
            found["parked"] = [parked(bench, no_node=True) for _ in numbers]
            assert bench.session["count"] == options.rounds * 10_000, "a state was lost"
    rows = [
        row("node killed in a cell, spare up: it runs again", found["spare"], "15 s"),
        row("node killed in a cell, no spare: it runs again", found["no spare"], ""),
        row("parked, no node up: the next cell answers", found["parked"], "10 s beyond node start"),
        row("parked, a node is up: the next cell answers", found["up"], ""),
    ]
    report("recovery", rows, rounds=options.rounds, mb=options.mb, load=load, details=found)


if __name__ == "__main__":
    main()
