"""Training states on a GPU: what is copied off it, pinned memory, and places without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlcloud import Checkpoints

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def training() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 8)
    )
    model = model.cuda()
    opt = torch.optim.AdamW(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cuda")
    return {"model": model, "opt": opt, "scaler": scaler}


def step(state: dict[str, Any]) -> float:
    opt, scaler = state["opt"], state["scaler"]
    x = torch.randn(64, 256, device="cuda")
    opt.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = state["model"](x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(opt)
    scaler.update()
    return float(loss)


def test_a_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    state = training()
    checkpoints = Checkpoints(str(tmp_path), "run")
    checkpoints.prepare(state)
    for _ in range(3):
        step(state)
    checkpoints.save(state, 3, wait=False)
    assert checkpoints._stage._pinned, "the memory is registered with the GPU"
    # The optimizer goes on at once; what is written is of step 3 all the same.
    later = [step(state) for _ in range(4)]
    checkpoints.wait()
    again = training()
    assert Checkpoints(str(tmp_path), "run").restore(again) == 3
    assert [step(again) for _ in range(4)] == later
    for mine, theirs in zip(state["model"].parameters(), again["model"].parameters(), strict=True):
        assert mine.is_cuda
        assert theirs.is_cuda
        assert torch.equal(mine, theirs)


def test_the_copy_is_of_its_moment_in_the_stream(tmp_path: Path) -> None:
    """Kernels that were launched before the save are in it, those launched after are not."""
    a = torch.zeros(64 * 2**20, device="cuda")
    checkpoints = Checkpoints(str(tmp_path), "run")
    checkpoints.prepare({"a": a})
    for number in range(1, 4):
        for _ in range(100):
            a += 1
        checkpoints.save({"a": a}, number, wait=False)
        for _ in range(100):
            a += 1
    checkpoints.wait()
    for number in range(1, 4):
        b = torch.empty_like(a)
        Checkpoints(str(tmp_path), "run").restore({"a": b}, number)
        assert bool((b == 200.0 * number - 100).all())


def test_saved_on_a_gpu_and_restored_without_one(tmp_path: Path) -> None:
    state = training()
    step(state)
    Checkpoints(str(tmp_path), "run").save(state, 1)
    there = (
        "import sys, torch, mlcloud\n"
        "assert not torch.cuda.is_available()\n"
        "model = torch.nn.Sequential(torch.nn.Linear(256, 2048), torch.nn.ReLU(), "
        "torch.nn.Linear(2048, 8))\n"
        "opt = torch.optim.AdamW(model.parameters())\n"
        "mlcloud.Checkpoints(sys.argv[1], 'run').restore({'model': model, 'opt': opt})\n"
        "model(torch.ones(2, 256)).sum().backward()\n"
        "torch.save({'model': model.state_dict(), 'moments': opt.state_dict()}, sys.argv[2])\n"
        "opt.step()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", there, str(tmp_path), str(tmp_path / "found")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found", weights_only=True)
    for name, tensor in state["model"].state_dict().items():
        assert found["model"][name].device.type == "cpu"
        assert torch.equal(found["model"][name], tensor.cpu())
    for number, moments in state["opt"].state_dict()["state"].items():
        assert torch.equal(found["moments"]["state"][number]["exp_avg"], moments["exp_avg"].cpu())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int8", "bool"])
def test_every_kind_comes_back(tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    a = (torch.randn(1000, 33, device="cuda") * 3).to(kind)
    state = {"a": a, "turned": a.t(), "part": a[::2], "none": a[:0]}
    checkpoints = Checkpoints(str(tmp_path), "run")
    for number, wait in enumerate((True, False), 1):
        checkpoints.save(state, number, wait=wait)
        checkpoints.wait()
        found = {name: torch.empty_like(tensor).cuda() for name, tensor in state.items()}
        Checkpoints(str(tmp_path), "run").restore(found, number)
        for name, tensor in state.items():
            here, there = (each.contiguous().view(torch.uint8) for each in (tensor, found[name]))
            assert found[name].dtype == kind
            assert torch.equal(here, there), name
