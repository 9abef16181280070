"""A trivial cell: how long from sending it to its end, here and in a remote session.

    local kernel     a jupyter_client kernel on this machine: execute, wait for reply and idle
    %%remote         the same cell through client, gateway, Ray actor and remote kernel, warm
    ipyparallel      `%%px` on one engine: execute, wait for its end and its output
    Ray actor        a warm plain actor method that `exec`s the cell: no kernel, no output
    Ray GPU task     a task with `num_gpus=1` per cell, as plain Ray does it: a process each time

All are measured in turns in one run, so a noisy machine hits them alike. Beside them: what
`%load_ext mlcloud` takes in a fresh IPython, and whether it imported Ray or torch.

    python benchmarks/cells.py [--rounds 200]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from peers import ipyparallel, local_kernel, ray_tasks, remote_session
from report import report

CELL = "x = 1"
WARM = 20
GPU_TASKS = 5

LOAD = """
import sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
start = time.perf_counter()
shell.run_line_magic("load_ext", "mlcloud")
took = time.perf_counter() - start
heavy = sorted({"ray", "torch", "pydantic", "httpx", "numpy"} & set(sys.modules))
print(took, ",".join(heavy) or "none")
"""


def load_times(rounds: int = 7) -> tuple[float, str]:
    """Median seconds of `%load_ext mlcloud` in fresh processes, and the heavy modules it loaded."""
    times, heavy = [], ""
    for _ in range(rounds):
        answer = subprocess.run(
            [sys.executable, "-c", LOAD], check=True, capture_output=True, text=True
        )
        took, heavy = answer.stdout.split()[-2:]
        times.append(float(took))
    return statistics.median(times), heavy


def timed(run: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    loading, heavy = load_times()
    with (
        local_kernel() as kernel,
        remote_session() as session,
        ipyparallel() as view,
        ray_tasks(CELL) as ray,
    ):
        ways: dict[str, Callable[[], float]] = {
            # execute_interactive returns after the reply and the idle message
            "local kernel": timed(
                lambda: kernel.execute_interactive(CELL, timeout=30, output_hook=lambda _: None)
            ),
            "%%remote": timed(lambda: session.run(CELL, quiet=True)),
            "ipyparallel %%px": timed(lambda: view.execute(CELL, silent=False)),
            "Ray actor": lambda: ray("actor"),
        }
        first = ways["%%remote"]()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + WARM):
            for name, run in ways.items():
                took = run()
                if number >= WARM:
                    times[name].append(took)
        times["Ray GPU task"] = [ray("gpu task") for _ in range(GPU_TASKS)]
    base = statistics.median(times["local kernel"])
    rows = [
        {
            "what": name,
            "p50 ms": statistics.median(values) * 1e3,
            "p90 ms": statistics.quantiles(values, n=10)[-1] * 1e3,
            "of a local kernel's": statistics.median(values) / base,
            "of %%remote's": statistics.median(values) / statistics.median(times["%%remote"]),
        }
        for name, values in times.items()
    ]
    rows.append({"what": "%load_ext mlcloud", "p50 ms": loading * 1e3, "heavy imports": heavy})
    rows.append({"what": "first cell, cluster and node from nothing", "p50 ms": first * 1e3})
    report("cells", rows, rounds=rounds)


if __name__ == "__main__":
    main()
