"""What the benchmarks of cells and output measure beside, each started for one run and ended by it.

local_kernel()      a jupyter_client kernel on this machine
ipyparallel()       a controller, one engine, and the view that `%%px` uses
ray_tasks()         a Ray of its own: a warm actor that `exec`s a cell, and a GPU task per cell
remote_session()    mlcloud's embedded cluster, in a home of its own
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel


@contextlib.contextmanager
def local_kernel() -> Iterator[BlockingKernelClient]:
    manager, client = start_new_kernel(kernel_name="python3")
    assert isinstance(client, BlockingKernelClient)
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def ipyparallel() -> Iterator[Any]:
    """A direct view of one engine, as `%%px` has it."""
    import logging

    import ipyparallel as ipp

    with tempfile.TemporaryDirectory(prefix="mlc-ipp-") as folder:
        os.environ["IPYTHONDIR"] = folder
        cluster = ipp.Cluster(n=1, controller_ip="127.0.0.1", log_level=logging.WARNING)
        client = cluster.start_and_connect_sync(activate=False)
        try:
            view = client[:]
            view.block = True
            yield view
        finally:
            cluster.stop_cluster_sync()


@contextlib.contextmanager
def remote_session(name: str = "bench") -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="mlc-bench-") as home:
        os.environ["MLCLOUD_HOME"] = home
        import mlcloud

        client = mlcloud.connect()
        try:
            yield client.session(name)
        finally:
            client.cluster.down()


RAY = """
import sys, time, ray
cell, actor_rounds, task_rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, _node_ip_address="127.0.0.1",
         log_to_driver=False, logging_level="ERROR")

@ray.remote
class Runs:
    def __init__(self):
        self.names = {}
    def run(self, cell):
        exec(cell, self.names)

@ray.remote(num_gpus=1)
def gpu(cell):
    exec(cell, {})

runs = Runs.remote()
ray.get(runs.run.remote(cell))
print("ready", flush=True)
for line in sys.stdin:
    what = line.strip()
    call = runs.run if what == "actor" else gpu
    start = time.perf_counter()
    ray.get(call.remote(cell))
    print(time.perf_counter() - start, flush=True)
"""


@contextlib.contextmanager
def ray_tasks(cell: str) -> Iterator[Callable[[str], float]]:
    """`run("actor")` and `run("gpu task")` give the seconds of one call. A process of its own: a
    driver joins one Ray alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", RAY, cell, "0", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    inlet, outlet = process.stdin, process.stdout

    def run(what: str) -> float:
        inlet.write("actor\n" if what == "actor" else "gpu\n")
        inlet.flush()
        return float(outlet.readline())

    try:
        until = time.monotonic() + 180
        while outlet.readline().strip() != "ready":
            assert process.poll() is None, "Ray ended while it started"
            assert time.monotonic() < until, "Ray did not start"
        yield run
    finally:
        inlet.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
