"""What a gang's rank gains by being a copy of its node's fork server.

    new, copy    from nothing until a kernel has run a cell that imports torch and wraps a model in
                 DDP: a process of its own, a copy
    private      memory that no other process shares, of each, after that cell

    python benchmarks/copies.py [--rounds 5]

No cluster: a fork server, supervisors and kernels, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from report import report

from mlcloud.cluster import warmth
from mlcloud.gateway.gangs import WARM
from mlcloud.kernel.process import KernelProcess

CELL = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
DistributedDataParallel(torch.nn.Linear(4, 4))
"""


async def kernel(folder: Path) -> tuple[float, int, str]:
    """Seconds, bytes, and of which command it is."""
    began = time.perf_counter()
    made = KernelProcess(
        folder / "k",
        session_id="s",
        store_url=f"file://{folder}/store",
        workspace=folder / "work",
        memory_bytes=0,
        variables={"MLCLOUD_RANK": "0"},
    )
    await made.start()
    made.send(made.shell, "execute_request", {"code": CELL}, "x")
    reply = made.decode(await made.shell.recv_multipart())
    took = time.perf_counter() - began
    assert reply["content"]["status"] == "ok", reply["content"]
    process = psutil.Process(made.pid)
    private, command = process.memory_full_info().uss, " ".join(process.cmdline())
    await made.stop()
    return took, private, command


async def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    server = folder / "s"
    # As a host has it from its node: a supervisor starts without `site`.
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-Xfrozen_modules=off", "-m", "mlcloud.kernel.forkserver"]
    process = subprocess.Popen([*command, str(server), *WARM])
    while not server.exists():
        time.sleep(0.1)
    found: dict[str, list[tuple[float, int]]] = {"new": [], "copy": []}
    for _ in range(rounds):
        for what in found:
            os.environ[warmth.VARIABLE] = str(server) if what == "copy" else ""
            took, private, made_by = await kernel(folder)
            assert ("forkserver" in made_by) == (what == "copy")
            found[what].append((took, private))
    process.terminate()
    process.wait()
    new, copy = (statistics.median(took for took, _ in found[what]) for what in found)
    rows = [
        {"what": f"s, {what} (median)", "value": value}
        for what, value in (("a new kernel", new), ("a copy", copy))
    ]
    rows += [
        {"what": f"MB private, {what}", "value": statistics.median(b for _, b in each) / 1e6}
        for what, each in found.items()
    ]
    return [*rows, {"what": "of a new one's time", "value": copy / new}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        rows = asyncio.run(measure(Path(folder), options.rounds))
    report("copies", rows, load=load, cpus=os.cpu_count())


if __name__ == "__main__":
    main()
