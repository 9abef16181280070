"""What reserving a file's blocks before it is written does for the store's local backend.

    plain       16 MiB files, written
    reserved    `store.allocation.reserve` first, as the store does

Written into the page cache, in turns, and synced between the rounds; the folder is the system's
temporary one, or `--folder`.

    python benchmarks/disk.py [--files 40] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from report import report

from mlcloud.store.allocation import reserve

SIZE = 16 * 2**20


def write(folder: Path, data: bytes, files: int, *, reserved: bool) -> float:
    """Seconds for `files` files."""
    paths = [folder / str(number) for number in range(files)]
    start = time.perf_counter()
    for path in paths:
        with open(path, "xb", buffering=0) as file:
            if reserved:
                reserve(file.fileno(), len(data))
            file.write(data)
    took = time.perf_counter() - start
    for path in paths:
        path.unlink()
    os.sync()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder")
    options = parser.parse_args()
    data = os.urandom(SIZE)
    times: dict[str, list[float]] = {"plain": [], "reserved": []}
    with tempfile.TemporaryDirectory(prefix="mlc-disk-", dir=options.folder) as folder:
        for _ in range(options.rounds):
            for name, values in times.items():
                reserved = name == "reserved"
                values.append(write(Path(folder), data, options.files, reserved=reserved))
    base = statistics.median(times["plain"])
    rows = [
        {
            "what": name,
            "s": statistics.median(values),
            "MB/s": options.files * SIZE / 1e6 / statistics.median(values),
            "times as fast": base / statistics.median(values),
        }
        for name, values in times.items()
    ]
    report("disk", rows, files=options.files, rounds=options.rounds)


if __name__ == "__main__":
    main()
