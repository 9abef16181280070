"""Ranks of a `torch.distributed` group, as processes of a clean server that has torch loaded.

`run(4, work, …)` calls `work(rank, …)` in four processes and returns what each returned. A rank
that dies or raises is an `Ended` in its place; the others are given time to notice it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

# What the ranks use (fully_shard imports dynamo), so that the server has it before it forks them.
import torch._dynamo
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor
from torch import nn

import mlcloud.checkpoint.collective
import mlcloud.checkpoint.distributed  # noqa: F401

TIMEOUT_S = 120.0


@dataclass
class Ended:
    """A rank that returned nothing: its exit code, or the error it raised."""

    code: int | None
    error: str = ""


def run(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory(prefix="mlc-ranks-") as folder:
        ranks, pipes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            task = (rank, world, f"{folder}/group", theirs, work, args)
            process = context.Process(target=_rank, args=task, daemon=True)
            with pytest.MonkeyPatch.context() as patch:
                # Their server stays until this process ends: it is no part of a cluster under test.
                patch.delenv("MLCLOUD_HOME", raising=False)
                process.start()
            theirs.close()
            ranks.append(process)
            pipes.append(ours)
        found = []
        for process, pipe in zip(ranks, pipes, strict=True):
            try:
                if not pipe.poll(TIMEOUT_S):
                    raise TimeoutError("a rank hangs")
                found.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                process.join(TIMEOUT_S)
                found.append(Ended(process.exitcode))
            finally:
                pipe.close()
        for process in ranks:
            process.join(TIMEOUT_S)
        return found


def good(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """`run`, where no rank may fail."""
    found = run(world, work, *args)
    for each in found:
        assert not isinstance(each, Ended), each.error or each
    return found


def _rank(
    rank: int, world: int, group: str, out: Connection, work: Callable[..., Any], args: Any
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{group}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=60),
        )
        # As plain bytes: torch would hand over its memory, and the rank ends.
        out.send_bytes(pickle.dumps(work(rank, *args)))
    except BaseException:
        out.send_bytes(pickle.dumps(Ended(None, traceback.format_exc())))
    # Not by destroy_process_group: it waits for ranks that have died.
    out.close()
    os._exit(0)


# --- what the ranks train -------------------------------------------------------------------------


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 7))


def optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.8, 0.9))


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    """The same batches wherever it runs: each rank has all of it."""
    for step in steps:
        batch = torch.randn(6, 16, generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        model(batch).square().sum().backward()
        opt.step()
