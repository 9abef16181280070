"""Saving a training state: how long the training stands still, what is written, how it is read.

    mlcloud    `Checkpoints.save(wait=False)`, its memory made ready by `prepare`
    dcp        torch.distributed.checkpoint's `async_save`, as it is by default
    dcp kept   the same with a stager of its own (`DefaultStager`), which keeps its memory
    torch      `torch.save` to a file and fsync
    tensors    `safetensors.torch.save_file` and fsync

Each way runs in a process of its own, on the same state of `--mib` MiB (tensors of 64 MiB, four of
16, and 200 small ones), which changes wholly from one save to the next unless said otherwise:

    first ms, stall ms   the call that saves, the first time and after (median)
    slower ms            by how much longer training steps took in all while a save went on; they
                         compute on `--threads` threads (1: as where a GPU does the work)
    both ms              `stall` and `slower`
    save s               from the call until the state is safe, with nothing beside it
    lora s, MiB          48 MiB of the state change
    same s, MiB          nothing does
    load s               back into the tensors, from the page cache; `xxh3` with `verify="xxh3"`
    beyond MiB           memory at its highest while it saves, beyond the state and the copy of it

`memcpy` is a bare copy of the state into memory that was touched before. With `--device cuda` state
and steps are on a GPU: the memory that ours and a bare copy go to is registered with it (pinned),
and a kept stager of DCP's pins its own. With `--s3` the state goes
to a server on this machine (SeaweedFS), beside raw puts and gets of pieces of the same size, eight
at a time, of the client that the store uses, each round in the other order:

    of raw            our speed in that of the raw ones, the median of the rounds' ratios
    raw CPU, CPU s    processor time of this process a GiB, without the server's
    beyond MiB        as above, the highest of all rounds, the first too; of raw ones beside it

    python benchmarks/checkpoint.py [--mib 1024] [--rounds 3] [--only mlcloud,dcp] [--s3]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
from functools import partial
from pathlib import Path
from typing import Any

from report import report

WAYS = ("mlcloud", "dcp", "dcp kept", "torch", "tensors")
PIECE = 4 * 2**20  # floats: 16 MiB
LORA = 3 * PIECE  # floats


class Way:
    """A way to save and load a dict of tensors. `save` returns what waits until it is safe."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state, self.step = folder, state, 0

    def prepare(self) -> None: ...

    def save(self) -> Callable[[], Any]:
        raise NotImplementedError

    def load(self, step: int, **options: Any) -> None:
        raise NotImplementedError

    def written(self) -> int:
        """Bytes of all that lies there."""
        return sum(each.stat().st_size for each in self.folder.rglob("*") if each.is_file())


class MLCloud(Way):
    def __init__(self, folder: Path, state: dict[str, Any], url: str = "") -> None:
        super().__init__(folder, state)
        from mlcloud import Checkpoints

        self.checkpoints = Checkpoints(url or str(folder), "exp")

    def prepare(self) -> None:
        self.checkpoints.prepare(self.state)

    def save(self) -> Callable[[], Any]:
        self.step += 1
        return self.checkpoints.save(self.state, self.step, wait=False).result

    def save_here(self) -> None:
        self.step += 1
        self.checkpoints.save(self.state, self.step)

    def load(self, step: int, *, verify: Any = "blake3") -> None:
        from mlcloud import Checkpoints

        Checkpoints(self.checkpoints.store, "exp", verify=verify).restore(self.state, step)


class DCP(Way):
    kept = False

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        super().__init__(folder, state)
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.dcp = dcp
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        self.options: dict[str, Any] = {}
        if self.kept:
            gpu = any(tensor.is_cuda for tensor in state.values())
            stager = DefaultStager(StagingOptions(gpu, gpu, False, gpu))
            self.options["async_stager"] = stager

    def _writer(self, step: int) -> Any:
        return self.dcp.FileSystemWriter(self.folder / str(step), thread_count=2)

    def save(self) -> Callable[[], Any]:
        self.step += 1
        writer = self._writer(self.step)
        future: Any = self.dcp.async_save(self.state, storage_writer=writer, **self.options)
        done: Callable[[], Any] = getattr(future, "upload_completion", future).result
        return done

    def load(self, step: int, **options: Any) -> None:
        self.dcp.load(self.state, storage_reader=self.dcp.FileSystemReader(self.folder / str(step)))


class KeptDCP(DCP):
    kept = True


class Torch(Way):
    def _path(self, step: int) -> Path:
        return self.folder / f"{step}.bin"

    def _write(self, path: Path) -> None:
        import torch

        torch.save(self.state, path)

    def save(self) -> Callable[[], Any]:
        self.step += 1
        self._write(self._path(self.step))
        with open(self._path(self.step), "rb") as file:
            os.fsync(file.fileno())
        return lambda: None

    def load(self, step: int, **options: Any) -> None:
        import torch

        found = torch.load(self._path(step), weights_only=True)
        for name, tensor in self.state.items():
            tensor.copy_(found[name])


class Tensors(Torch):
    def _write(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.state, path)

    def load(self, step: int, **options: Any) -> None:
        from safetensors.torch import load_file

        found = load_file(self._path(step))
        for name, tensor in self.state.items():
            tensor.copy_(found[name])


KINDS: dict[str, type[Way]] = {
    "mlcloud": MLCloud,
    "dcp": DCP,
    "dcp kept": KeptDCP,
    "torch": Torch,
    "tensors": Tensors,
}


def make_state(mib: int, device: str = "cpu") -> dict[str, Any]:
    import torch

    randn = partial(torch.randn, device=device)
    state = {f"layer.{n:03}.weight": randn(4 * PIECE) for n in range(mib // 64 - 1)}
    state |= {f"layer.{n:03}.adapter": randn(PIECE) for n in range(4)}
    return state | {f"layer.{n:03}.bias": randn(500) for n in range(200)}


def settle(device: str) -> None:
    """Until the GPU has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def change(state: dict[str, Any], most: int | None = None) -> None:
    """Changes all tensors, or so many floats of the adapters."""
    left = most or 0
    for name, tensor in state.items():
        if most is None:
            tensor.add_(1.0)
        elif "adapter" in name and left >= tensor.numel():
            tensor.add_(1.0)
            left -= tensor.numel()


def training_step(device: str = "cpu") -> Callable[[], float]:
    """A step of about 20 ms that keeps all cores, or the GPU, busy; returns its seconds."""
    import torch

    size = 8192 if device == "cuda" else 700
    weights, inputs = (torch.randn(size, size, device=device) for _ in range(2))

    def step() -> float:
        began = time.perf_counter()
        for _ in range(1 if device == "cuda" else 4):
            weights @ inputs
        settle(device)
        return time.perf_counter() - began

    return step


class Peak:
    """The highest resident memory of this process meanwhile, in bytes."""

    def __enter__(self) -> Peak:
        import psutil

        self._process, self._over = psutil.Process(), threading.Event()
        self.before = self.highest = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.highest = max(self.highest, self._process.memory_info().rss)

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(
    name: str, mib: int, rounds: int, folder: Path, threads: int, device: str
) -> dict[str, Any]:
    """One way, in this process."""
    import torch

    state = make_state(mib, device)
    torch.set_num_threads(threads)
    way = KINDS[name](folder, state)
    way.prepare()
    time.sleep(3.0)  # the steps before the first save
    step = training_step(device)
    row: dict[str, Any] = {"way": name}
    stalls, slower = list[float](), list[float]()
    for number in range(rounds + 1):
        quiet = statistics.median(step() for _ in range(30))
        change(state)
        settle(device)
        began = time.perf_counter()
        wait = way.save()
        stalls.append(time.perf_counter() - began)
        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        took = list[float]()
        while waiter.is_alive():
            took.append(step())
        if number:
            slower.append(sum(took) - quiet * len(took))
    row["first ms"], row["stall ms"] = stalls[0] * 1e3, statistics.median(stalls[1:]) * 1e3
    row["slower ms"] = statistics.median(slower) * 1e3
    row["both ms"] = row["stall ms"] + row["slower ms"]
    saves, loras, sames = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        change(state)
        os.sync()
        saves.append(timed(lambda: way.save()()))
    with Peak() as peak:
        change(state)
        way.save()()
    row["beyond MiB"] = (peak.highest - peak.before) / 2**20
    for _ in range(rounds):
        os.sync()
        change(state, LORA)
        before = way.written()
        loras.append(timed(lambda: way.save()()))
        row["lora MiB"] = (way.written() - before) / 2**20
        before = way.written()
        sames.append(timed(lambda: way.save()()))
        row["same MiB"] = (way.written() - before) / 2**20
    row["save s"], row["lora s"] = statistics.median(saves), statistics.median(loras)
    row["same s"] = statistics.median(sames)
    wanted = {key: tensor.clone() for key, tensor in state.items()}
    for key, options in {"load s": {}, "xxh3 s": {"verify": "xxh3"}}.items():
        if key == "xxh3 s" and name != "mlcloud":
            continue
        took = []
        for _ in range(rounds):
            for tensor in state.values():
                tensor.zero_()
            settle(device)
            took.append(
                timed(lambda options=options: (way.load(way.step, **options), settle(device)))
            )
            assert all(bool((state[key] == wanted[key]).all()) for key in wanted)
        row[key] = statistics.median(took)
    return row


def memcpy(mib: int, rounds: int, device: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    state = list(make_state(mib, device).values())
    into = [torch.ones_like(each, device="cpu", pin_memory=each.is_cuda) for each in state]

    def copy() -> None:
        for source, target in zip(state, into, strict=True):
            target.copy_(source, non_blocking=True)
        settle(device)

    copy()
    return {
        "way": "memcpy",
        "stall ms": statistics.median(timed(copy) for _ in range(rounds)) * 1e3,
    }


@contextlib.contextmanager
def bucket() -> Iterator[str]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests import seaweed

    with (
        tempfile.TemporaryDirectory(prefix="mlc-s3-") as folder,
        seaweed.server(Path(folder) / "weed") as endpoint,
    ):
        os.environ |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": seaweed.KEY,
            "AWS_SECRET_ACCESS_KEY": seaweed.SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield "s3://bucket"


def objects(mib: int, rounds: int) -> list[dict[str, Any]]:
    """Ours beside raw puts and gets of the same pieces, one round of each after the other."""
    with bucket() as url:
        import s3fs

        fs = s3fs.S3FileSystem(use_listings_cache=False)
        state = make_state(mib)
        way = MLCloud(Path(), state, f"{url}/ours")
        pieces = [
            piece
            for tensor in state.values()
            if tensor.numel() >= PIECE
            for piece in tensor.split(PIECE)
        ]
        turn = 0

        def each(call: Callable[[int], Any]) -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(call, range(len(pieces))))

        def put(number: int) -> None:
            body = bytes(memoryview(pieces[number].numpy()).cast("B"))
            fs.pipe_file(key(number), body)

        def get(number: int) -> None:
            fs.cat_file(key(number))

        def key(number: int) -> str:
            # Spread over as many prefixes as chunks are: this server makes a folder of each.
            name = hashlib.sha256(f"{turn} {number}".encode()).hexdigest()
            return f"bucket/raw/{name[:2]}/{name}"

        took: dict[str, list[tuple[float, float, float]]] = {}

        def in_turn(*calls: tuple[str, Callable[[], Any]]) -> tuple[tuple[str, Any], ...]:
            return calls[:: -1 if turn % 2 else 1]

        def note(name: str, call: Callable[[], Any]) -> None:
            with Peak() as peak:
                began, used = time.perf_counter(), time.process_time()
                call()
                seconds, cpu = time.perf_counter() - began, time.process_time() - used
            took.setdefault(name, []).append((seconds, cpu, peak.highest - peak.before))

        for turn in range(rounds):
            change(state)
            for name, call in in_turn(("save", way.save_here), ("puts", lambda: each(put))):
                note(name, call)
            load = partial(way.load, turn + 1)
            for name, call in in_turn(("load", load), ("gets", lambda: each(get))):
                note(name, call)

        def row(what: str, ours: str, raw: str) -> dict[str, Any]:
            pairs = list(zip(took[raw], took[ours], strict=True))
            used = [statistics.median(cpu for _, cpu, _ in took[name]) for name in (raw, ours)]
            return {
                "what": what,
                "raw MiB/s": mib / min(seconds for seconds, _, _ in took[raw]),
                "mlcloud MiB/s": mib / min(seconds for seconds, _, _ in took[ours]),
                "of raw": statistics.median(theirs[0] / mine[0] for theirs, mine in pairs),
                "raw CPU s": used[0] * 1024 / mib,
                "CPU s": used[1] * 1024 / mib,
                "raw beyond MiB": max(peak for _, _, peak in took[raw]) / 2**20,
                "beyond MiB": max(peak for _, _, peak in took[ours]) / 2**20,
            }

        return [row("up", "save", "puts"), row("down", "load", "gets")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--folder")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.s3:
        report("checkpoint_s3", objects(options.mib, options.rounds), mib=options.mib)
        return
    with tempfile.TemporaryDirectory(prefix="mlc-ckpt-", dir=options.folder) as folder:
        if options.way:
            row = measure(
                options.way,
                options.mib,
                options.rounds,
                Path(folder),
                options.threads,
                options.device,
            )
            print(json.dumps(row))
            return
        rows = [memcpy(options.mib, 5, options.device)]
        for way in options.only.split(","):
            command = [sys.executable, __file__, "--way", way, "--mib", str(options.mib)]
            command += ["--rounds", str(options.rounds), "--folder", folder]
            command += ["--threads", str(options.threads), "--device", options.device]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode and way == "mlcloud":
                raise SystemExit(f"{way}:\n{done.stderr[-3000:]}")
            if done.returncode:
                print(f"{way} failed:\n{done.stderr[-600:]}\n")
                continue
            rows.append(json.loads(done.stdout.rstrip().rpartition("\n")[2]))
    report("checkpoint", rows, mib=options.mib, rounds=options.rounds, threads=options.threads)


if __name__ == "__main__":
    main()
