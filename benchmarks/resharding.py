"""A sharded state loaded by another number of ranks: bytes read for those needed, and seconds.

    rows        tensors sharded by rows, as FSDP2 does it
    columns     by columns, as a tensor-parallel layer is
    replicated  whole on every rank
    mesh        by rows and columns, on a mesh of two dimensions

from 4 ranks to 2, and from 2 to 3, with tensors of 64 and of 8 MiB, beside dcp's own
FileSystemReader on the same disk. Bytes are those that the ranks' read calls returned
(`/proc/self/io`), manifests and metadata included; seconds are the slowest rank's, best of the
rounds, with the files in the page cache.

    python benchmarks/resharding.py [--rounds 3] [--mib 128]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from report import report
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from mlcloud.checkpoint import Checkpoints

LAYOUTS = ("rows", "columns", "replicated", "mesh")
MIB = 2**20
RANKS = ((4, 2), (2, 3))


def state_of(layout: str, mib: int, count: int, world: int, *, filled: bool) -> dict[str, Any]:
    """`count` tensors of `mib` MiB, float32; what is in an element follows from its place."""
    columns = 2048 if mib >= 32 else 1024
    rows = mib * MIB // 4 // columns
    if layout == "mesh":
        shape = (2, world // 2) if world % 2 == 0 else (world, 1)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
        placements: list[Any] = [Shard(0), Shard(1)]
    else:
        mesh = init_device_mesh("cpu", (world,))
        placements = [{"rows": Shard(0), "columns": Shard(1), "replicated": Replicate()}[layout]]
    made = {}
    for number in range(count):
        whole = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns) + number
        tensor = whole if filled else torch.zeros_like(whole)
        parts: list[Any] = [tensor]
        for dim, placement in enumerate(placements):
            if isinstance(placement, Shard):
                # As torch cuts: full pieces first.
                size = -(-parts[-1].size(placement.dim) // mesh.size(dim))
                pieces = parts[-1].split(size, placement.dim)
                at = mesh.get_local_rank(dim)
                empty = parts[-1].narrow(placement.dim, 0, 0)
                parts.append(pieces[at] if at < len(pieces) else empty)
        made[f"t{number}"] = DTensor.from_local(
            parts[-1].contiguous(),
            mesh,
            placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
    return made


def rank(number: int, world: int, port: int, task: dict[str, Any], out: Any) -> None:
    warnings.filterwarnings("ignore")
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=world)
    shape = (task["layout"], task["mib"], task["count"], world)
    folder = Path(task["folder"])
    if task["do"] == "save":
        state = state_of(*shape, filled=True)
        dcp.save(state, storage_writer=Checkpoints(str(folder / "ours")).writer(1))
        dcp.save(state, checkpoint_id=str(folder / "dcp"))
    else:
        wanted = state_of(*shape, filled=True)
        for _ in range(task["rounds"]):
            found = {}
            for name in ("ours", "dcp"):
                state = state_of(*shape, filled=False)
                reader: Any = dcp.FileSystemReader(str(folder / "dcp"))
                if name == "ours":
                    reader = Checkpoints(str(folder / "ours")).reader()
                dist.barrier()
                before, start = bytes_read(), time.perf_counter()
                dcp.load(state, storage_reader=reader)
                took = time.perf_counter() - start
                found[name] = (bytes_read() - before, took)
                for key, tensor in wanted.items():
                    assert torch.equal(tensor.to_local(), state[key].to_local()), (name, key)
            needed = sum(t.to_local().nbytes for t in wanted.values())
            out.put((number, needed, found))
    dist.destroy_process_group()


def bytes_read() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise RuntimeError("no rchar")


def run(world: int, task: dict[str, Any], results: int) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    out: Any = context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ranks = [context.Process(target=rank, args=(n, world, port, task, out)) for n in range(world)]
    for each in ranks:
        each.start()
    found = [out.get(timeout=300) for _ in range(results)]
    for each in ranks:
        each.join()
        if each.exitcode:
            raise RuntimeError(f"a rank ended with {each.exitcode}")
    return found


def measure(layout: str, mib: int, total: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for old, new in RANKS:
        with tempfile.TemporaryDirectory(prefix="mlc-reshard-") as folder:
            task = {"layout": layout, "mib": mib, "count": total // mib, "folder": folder}
            task["rounds"] = rounds
            run(old, {**task, "do": "save"}, 0)
            found = run(new, {**task, "do": "load"}, new * rounds)
        needed = sum(each[1] for each in found) / rounds
        row: dict[str, Any] = {"layout": layout, "MiB each": mib, "ranks": f"{old} → {new}"}
        for name in ("ours", "dcp"):
            read = sum(each[2][name][0] for each in found) / rounds
            times: dict[int, list[float]] = {}
            for number, _, each in found:
                times.setdefault(number, []).append(each[name][1])
            by_round = [max(each) for each in zip(*times.values(), strict=True)]
            row[f"{name} read / needed"] = read / needed
            row[f"{name} s"] = min(by_round)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--mib", type=int, default=128, help="of tensors in a state")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed.checkpoint"])
    rows = []
    for layout in options.layouts:
        for mib in (64, 8):
            rows += measure(layout, mib, options.mib, options.rounds)
    report("resharding", rows, rounds=options.rounds, mib=options.mib, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
