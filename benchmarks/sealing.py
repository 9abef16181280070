"""What a key costs: chunks of 16 MiB put into a store and read back, plain and sealed.

    put, get         a store on a disk of memory where there is one (/dev/shm), else `--folder`
    AES-256-GCM      sealing and opening alone, without a store
    blake3           naming alone, which a plain store does too

By one thread and by two at a time, each on chunks of its own, in turns.

    python benchmarks/sealing.py [--chunks 16] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from report import report

from mlcloud.store import CHUNK_BYTES, ChunkRef, Store
from mlcloud.store.keys import load_key
from mlcloud.store.sealing import OVERHEAD


def rate(work: Callable[[int], None], chunks: int, threads: int) -> float:
    """GB/s of `work(number)` for all numbers, shared by the threads."""

    def some(first: int) -> None:
        for number in range(first, chunks, threads):
            work(number)

    workers = [threading.Thread(target=some, args=[first]) for first in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return chunks * CHUNK_BYTES / 1e9 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    options = parser.parse_args()
    data = [memoryview(os.urandom(CHUNK_BYTES)) for _ in range(options.chunks)]
    into = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(options.chunks)]
    raw = [memoryview(bytearray(CHUNK_BYTES + OVERHEAD)) for _ in range(options.chunks)]
    secret = os.urandom(32)
    key = load_key(secret)
    found: dict[tuple[str, int], list[float]] = {}

    def note(what: str, threads: int, work: Callable[[int], None]) -> None:
        found.setdefault((what, threads), []).append(rate(work, options.chunks, threads))

    with tempfile.TemporaryDirectory(prefix="mlc-sealing-", dir=options.folder) as folder:
        for _ in range(options.rounds):
            for threads in (1, 2):
                note("blake3", threads, lambda number: blake3(data[number]).digest())
                note("seal", threads, lambda number: key.seal(b"name", data[number], raw[number]))
                note("open", threads, lambda number: key.open(b"name", raw[number], into[number]))
                for kind, given in (("plain", None), ("sealed", secret)):
                    place = Path(folder) / kind
                    store = Store(str(place), key=given)
                    refs: list[ChunkRef | None] = [None] * options.chunks

                    def put(number: int, store: Store = store, refs: list = refs) -> None:
                        refs[number] = store.put_chunk(data[number], durable=False)

                    def get(number: int, store: Store = store, refs: list = refs) -> None:
                        for _ in store.fill([(refs[number], into[number])]):
                            pass

                    note(f"put {kind}", threads, put)
                    note(f"get {kind}", threads, get)
                    shutil.rmtree(place)
    rows = [
        {"what": what, "threads": threads, "GB/s": statistics.median(values)}
        for (what, threads), values in sorted(found.items())
    ]
    report("sealing", rows, chunks=options.chunks, rounds=options.rounds)


if __name__ == "__main__":
    main()
