"""What a cell prints: how soon it is in the notebook, and how fast much of it comes.

    one line       an unflushed `print`, paced: from the cell's clock to the front end's message
    many lines     100,000 lines, from running the cell to its end, all of them there, in order

Measured at the front end (jupyter_client), which reads the local kernel's messages as JupyterLab
does: the local kernel runs `%%remote`, ipyparallel's `%%px`, or the cell itself. Memory is what
each process grew by at most while the lines came. Ray's driver log prints a worker's lines too.

    python benchmarks/streaming.py [--lines 100000] [--prints 200]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from typing import Any

import psutil
from jupyter_client.blocking import BlockingKernelClient
from peers import local_kernel
from report import report

PACED = """
import time
for i in range({n}):
    print("at", time.time())
    time.sleep(0.03)
"""
MANY = "for i in range({n}): print('line', i)"
RAY = """
import os, ray
os.environ["RAY_AUTH_MODE"] = "disabled"
ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="ERROR")
@ray.remote
def cell(code):
    exec(code, {})
"""
PX = """
import ipyparallel as ipp, logging
cluster = ipp.Cluster(n=1, controller_ip="127.0.0.1", log_level=logging.WARNING)
rc = cluster.start_and_connect_sync(activate=True)
"""


class Front:
    """A front end of the local kernel: text, and when each message of it came."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client

    def run(self, code: str, timeout: float = 600) -> tuple[str, list[tuple[float, str]], float]:
        """(all text of stdout, its messages with their times, seconds)."""
        came: list[tuple[float, str]] = []
        shown = ""

        def hook(message: dict[str, Any]) -> None:
            nonlocal shown
            now, content = time.time(), message["content"]
            if message["header"]["msg_type"] == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            if message["header"]["msg_type"] == "stream":
                came.append((now, content["text"]))
            if message["header"]["msg_type"] in ("display_data", "update_display_data"):
                # ipyparallel shows all of an engine's text anew each time
                text = content["data"].get("text/plain", "")
                if text.startswith("[stdout:"):
                    text = text.partition("] ")[2]
                    came.append((now, text[len(shown) :]))
                    shown = text

        start = time.perf_counter()
        self._client.execute_interactive(code, timeout=timeout, output_hook=hook)
        took = time.perf_counter() - start
        return "".join(text for _, text in came), came, took


def delays(came: list[tuple[float, str]]) -> list[float]:
    """Milliseconds from each line's own clock to the message that ended it."""
    found = []
    begun = ""
    for at, text in came:
        *lines, begun = (begun + text).split("\n")
        for line in lines:
            word = line.rpartition("at ")[2].strip() if "at " in line else ""
            if word.replace(".", "").isdigit():
                found.append((at - float(word)) * 1e3)
    return found


class Growth:
    """The most that each process of a tree grew by, in MB."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.most: dict[str, float] = {}

    def __enter__(self) -> Growth:
        self._base = {p.pid: rss for p, rss in self._all()}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _all(self) -> list[tuple[psutil.Process, int]]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MLC_BENCH") == "streaming":
                    found.append((process, process.memory_info().rss))
            except psutil.Error:
                continue
        return found

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for process, rss in self._all():
                try:
                    words = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                name = next((n for n, mark in MARKS.items() if mark in words), None)
                if name is not None and process.pid in self._base:
                    grown = (rss - self._base[process.pid]) / 1e6
                    self.most[name] = max(self.most.get(name, 0.0), grown)


MARKS = {
    "notebook's kernel": "ipykernel_launcher",
    "gateway": "mlcloud.gateway",
    "host": "ray::Host",
    "remote kernel": "mlcloud.kernel.launch",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--prints", type=int, default=200)
    arguments = parser.parse_args()
    lines, prints = arguments.lines, arguments.prints
    expected = "".join(f"line {i}\n" for i in range(lines))
    rows: list[dict[str, Any]] = []

    def measure(front: Front, what: str, wrap: str, *, growth: bool = False) -> None:
        front.run(wrap.format(cell="print('warm')"))
        waits = delays(front.run(wrap.format(cell=PACED.format(n=prints)))[1])
        watch = Growth()
        with watch:
            text, came, took = front.run(wrap.format(cell=MANY.format(n=lines)))
        shown = "".join(line for line in text.splitlines(True) if line.startswith("line "))
        rows.append(
            {
                "what": what,
                "one line p50 ms": statistics.median(waits),
                "p99 ms": statistics.quantiles(waits, n=100)[-1],
                "many lines s": took,
                "all there": shown == expected,
                "messages": len(came),
                **({f"{name} +MB": mb for name, mb in watch.most.items()} if growth else {}),
            }
        )

    os.environ["MLC_BENCH"] = "streaming"
    with tempfile.TemporaryDirectory(prefix="mlc-bench-") as home:
        os.environ |= {"MLCLOUD_HOME": home, "IPYTHONDIR": home + "/ipython"}
        with local_kernel() as client:
            front = Front(client)
            measure(front, "local kernel", "{cell}")
        with local_kernel() as client:
            front = Front(client)
            front.run("%load_ext mlcloud")
            try:
                measure(front, "%%remote", "%%remote --quiet\n{cell}", growth=True)
            finally:
                front.run("import mlcloud; mlcloud.connect().cluster.down()")
        with local_kernel() as client:
            front = Front(client)
            front.run(PX)
            try:
                measure(front, "ipyparallel %%px", "%%px --stream\n{cell}")
            finally:
                front.run("cluster.stop_cluster_sync()")
        with local_kernel() as client:
            front = Front(client)
            front.run(RAY)
            code = PACED.format(n=prints)
            waits = delays(
                front.run(f"ray.get(cell.remote({code!r})); import time; time.sleep(2)")[1]
            )
            if len(waits) > 1:
                rows.append(
                    {
                        "what": "Ray's driver log",
                        "one line p50 ms": statistics.median(waits),
                        "p99 ms": statistics.quantiles(waits, n=100)[-1],
                    }
                )
            front.run("ray.shutdown()")
    for row in rows:
        if "many lines s" in row:
            row["of ipyparallel's"] = row["many lines s"] / next(
                each["many lines s"] for each in rows if each["what"].startswith("ipyparallel")
            )
    report("streaming", rows, lines=lines, prints=prints)


if __name__ == "__main__":
    main()
