"""Many small items: a map of ours, and plain Ray tasks, on the same cluster in one run.

    map              `f.map(range(n))`, results read in order, first worker warm
    Ray tasks        `ray.get([f.remote(i) for i in range(n)])` from a driver of its own
    map, GPU         items that hold a (simulated) GPU: warm workers
    Ray GPU tasks    the same: plain Ray starts a worker process for each

They are measured in turns, so a busy machine hits both alike.

    python benchmarks/jobs.py [--items 10000] [--gpu-items 20] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import report

RAY = """
import sys, time
import mlcloud.cluster.lean as lean
lean.leave_out()
import ray
address = sys.argv[1]
ray.init(address=address, _node_ip_address=address.rpartition(":")[0], log_to_driver=False)

@ray.remote(num_cpus=1)
def f(x): return x

@ray.remote(num_gpus=1, num_cpus=1, resources={"A10G": 1})
def g(x): return x

ray.get([f.remote(i) for i in range(50)])
ray.get(g.remote(0))
print("told ready", flush=True)
for line in sys.stdin:
    what, count = line.split()
    function = f if what == "cpu" else g
    began = time.perf_counter()
    assert ray.get([function.remote(i) for i in range(int(count))]) == list(range(int(count)))
    print("told", time.perf_counter() - began, flush=True)
"""


def item(x: int) -> int:
    return x


def mapped(function: Any, count: int) -> float:
    began = time.perf_counter()
    assert list(function.map(range(count))) == list(range(count))
    return time.perf_counter() - began


class Ray:
    """A plain driver of the same cluster."""

    def __init__(self, home: Path) -> None:
        settings = json.loads((home / "cloud" / "cluster.json").read_text())
        address = f"{settings['node_ip']}:{settings['gcs_port']}"
        environment = {**os.environ, **settings["ray_environment"]}
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        self._process = subprocess.Popen(
            [sys.executable, "-c", RAY, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # Ray prints here too
            if line.startswith("told "):
                return line.removeprefix("told ").strip()
        raise RuntimeError("the driver has ended")

    def run(self, what: str, count: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--gpu-items", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlcloud-jobs-") as folder:
        os.environ |= {"MLCLOUD_HOME": folder, "MLCLOUD_NODE_IDLE": "10m"}
        import mlcloud
        from mlcloud.client.embedded import down
        from mlcloud.config import Settings

        mlcloud.connect()
        try:
            cpu = mlcloud.remote(quiet=True)(item)
            gpu = mlcloud.remote(quiet=True, gpu="A10G:1", max_workers=1)(item)
            mapped(cpu, 100)
            mapped(gpu, 2)
            time.sleep(25)  # our idle workers let go of their node
            plain = Ray(Path(folder))
            times: dict[str, list[float]] = {name: [] for name in ("map", "ray", "gpu", "ray gpu")}
            for _ in range(options.rounds):
                times["ray gpu"].append(plain.run("gpu", options.gpu_items) / options.gpu_items)
                times["ray"].append(plain.run("cpu", options.items) / options.items)
                mapped(cpu, 100)
                times["map"].append(mapped(cpu, options.items) / options.items)
                mapped(gpu, 2)
                times["gpu"].append(mapped(gpu, options.gpu_items) / options.gpu_items)
                time.sleep(25)
            plain.close()
        finally:
            down(Settings())
    each = {name: statistics.median(found) for name, found in times.items()}
    rows: list[dict[str, Any]] = [
        {
            "what": title,
            "items": count,
            "ms an item": f"{each[ours] * 1000:.3f}",
            "plain Ray, ms": f"{each[theirs] * 1000:.3f}",
            "throughput / Ray's": f"{each[theirs] / each[ours]:.2f}",
            "aim": aim,
        }
        for title, count, ours, theirs, aim in (
            ("no-op", options.items, "map", "ray", "0.8"),
            ("no-op on a GPU", options.gpu_items, "gpu", "ray gpu", "20"),
        )
    ]
    report("jobs", rows, times=times)


if __name__ == "__main__":
    main()
