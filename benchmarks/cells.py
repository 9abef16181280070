"""A trivial cell: how long from sending it to its end, here and in a remote session.

    local kernel   a jupyter_client kernel on this machine: execute, wait for reply and idle
    %%remote       the same cell through client, gateway, Ray actor and remote kernel, warm

Both are measured in turns in one run, so a noisy machine hits them alike. Beside them: what
`%load_ext mlcloud` takes in a fresh IPython, and whether it imported Ray or torch.

    python benchmarks/cells.py [--rounds 200]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from report import report

CELL = "x = 1"

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


@contextlib.contextmanager
def local_kernel() -> Iterator[Callable[[], None]]:
    manager, client = start_new_kernel(kernel_name="python3")
    assert isinstance(client, BlockingKernelClient)

    def run() -> None:
        # execute_interactive returns after the reply and the idle message
        client.execute_interactive(CELL, timeout=30, output_hook=lambda _: None)

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def remote_session() -> Iterator[Callable[[], None]]:
    with tempfile.TemporaryDirectory(prefix="mlc-bench-") as home:
        os.environ["MLCLOUD_HOME"] = home
        import mlcloud

        client = mlcloud.connect()
        session = client.session("bench")
        try:
            yield lambda: session.run(CELL, quiet=True)
        finally:
            client.cluster.down()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    loading, heavy = load_times()
    with local_kernel() as local, remote_session() as remote:
        start = time.perf_counter()
        remote()
        first = time.perf_counter() - start
        times: dict[str, list[float]] = {"local kernel": [], "%%remote": []}
        for number in range(rounds + 20):
            for name, run in (("local kernel", local), ("%%remote", remote)):
                start = time.perf_counter()
                run()
                if number >= 20:
                    times[name].append(time.perf_counter() - start)
    base = statistics.median(times["local kernel"])
    rows = [
        {
            "what": name,
            "p50 ms": statistics.median(values) * 1e3,
            "p90 ms": statistics.quantiles(values, n=10)[-1] * 1e3,
            "ratio p50": statistics.median(values) / base,
        }
        for name, values in times.items()
    ]
    rows.append({"what": "%load_ext mlcloud", "p50 ms": loading * 1e3, "heavy imports": heavy})
    rows.append({"what": "first cell, cluster and node from nothing", "p50 ms": first * 1e3})
    report("cells", rows, rounds=rounds)


if __name__ == "__main__":
    main()
