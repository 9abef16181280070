"""What a session's state costs between two cells: arrays, a million small objects, small names.

    unrelated        a cell that mentions none of them
    through an alias a cell that changes one small object through another name
    an array         a cell that changes an array
    pickled whole    `cloudpickle` of the same names, as a yardstick: nothing of it is written

Measured are, in a namespace like a session's, in one process, from the cell's last statement

    end ms    until its end can be told: the notebook goes on
    ms        until its snapshot is in the store (a folder), where nothing runs meanwhile

and what was written, and the memory beyond the state.

    python benchmarks/boundaries.py [--gb 2] [--objects 1000000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import builtins
import statistics
import tempfile
import threading
import time
from typing import Any

import cloudpickle
import numpy as np
import psutil
from report import report

from mlcloud.kernel.mentions import mentions
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.store import Store
from mlcloud.values.messages import Shipment

ARRAY = 10**9  # bytes


class Peak:
    """The most memory of this process while it is open, beyond that at its beginning, in MB."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            grown = (self._process.memory_info().rss - self._before) / 1e6
            self.mb = max(self.mb, grown)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Session:
    def __init__(self, root: str) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        self.side = RemoteSide(self.names)
        self.snapshots = Snapshots(Store(root), self.side)
        self.known: dict[str, int] = {}

    def cell(self, code: str) -> tuple[float, float, int]:
        """Run it; seconds until its end can be told, until the snapshot is there, bytes written."""
        names = mentions(code)
        shipment = Shipment(known=dict(self.known), reads=sorted(names))
        self.side.load(shipment)
        exec(compile(code, "<cell>", "exec"), self.names)
        start = time.perf_counter()
        self.known |= self.side.collect(shipment, names).versions
        told = time.perf_counter() - start
        body = self.snapshots.take()
        return told, time.perf_counter() - start, body["new_bytes"]


def measure(session: Session, codes: list[str]) -> dict[str, Any]:
    told, times, written = [], [], []
    with Peak() as peak:
        for code in codes:
            end, took, size = session.cell(code)
            told.append(end)
            times.append(took)
            written.append(size)
    return {
        "end ms": statistics.median(told) * 1e3,
        "ms": statistics.median(times) * 1e3,
        "written MB": statistics.median(written) / 1e6,
        "extra MB": peak.mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rounds = range(options.rounds)
    with tempfile.TemporaryDirectory(prefix="mlc-boundaries-") as root:
        session = Session(root)
        session.names["np"] = np
        arrays = round(options.gb * 1e9 / ARRAY)
        session.cell(f"arrays = [np.full({ARRAY // 8}, float(i)) for i in range({arrays})]")
        session.cell(f"objects = [[i] for i in range({options.objects})]\nfirst = objects[0]")
        session.cell("small = {i: str(i) for i in range(100)}")
        rows = [
            {"what": "unrelated", **measure(session, [f"x = {n}" for n in rounds])},
            {
                "what": "through an alias",
                **measure(session, [f"first.append({n})" for n in rounds]),
            },
            {"what": "an array", **measure(session, [f"arrays[0][{n}] = -1" for n in rounds])},
        ]
        values = {name: session.names[name] for name in ("objects", "first", "small")}
        with Peak() as peak:
            start = time.perf_counter()
            size = len(cloudpickle.dumps(values))
            took = time.perf_counter() - start
        whole = {"ms": took * 1e3, "written MB": size / 1e6, "extra MB": peak.mb}
        rows.append({"what": "pickled whole, without the arrays", **whole})
    report("boundaries", rows, gb=arrays * ARRAY / 1e9, objects=options.objects)


if __name__ == "__main__":
    main()
