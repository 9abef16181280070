"""A cluster whose nodes have a GPU: cells on it, away from it and back, a training, its use.

The embedded nodes lend their computer's GPU, whatever the simulated shape is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mlcloud
from mlcloud.client.session import Session
from tests.live import until

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

TRAINING = """
import torch
torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
model.to(DEVICE)
opt = torch.optim.AdamW(model.parameters())
x, y = torch.randn(512, 64).to(DEVICE), torch.randn(512, 8).to(DEVICE)
half = x.view(-1)[:100]
def step():
    opt.zero_grad(); loss = torch.nn.functional.mse_loss(model(x), y); loss.backward()
    opt.step(); return loss.item()
"""


def test_a_training_moves_from_a_gpu_to_a_cpu_and_back(session: Callable[..., Session]) -> None:
    names: dict[str, Any] = {}
    s = session(gpu="T4:1", namespace=names)
    s.run("DEVICE = 'cuda'\n" + TRAINING + "losses = [step() for _ in range(5)]", quiet=True)
    s.run("at = [str(x.device), torch.cuda.device_count()]", quiet=True, durable=True)
    assert names["at"] == ["cuda:0", 1]
    s.park()
    s.resume(gpu="none")
    s.run(
        "at = [str(each.device) for each in (x, half, next(model.parameters()))]\n"
        "on = [torch.cuda.is_available(), opt.state[model[0].weight]['exp_avg'].device.type]\n"
        "half.zero_(); tied = float(x.view(-1)[:100].abs().sum())\n"
        "losses += [step() for _ in range(5)]",
        quiet=True,
        durable=True,
    )
    assert (names["at"], names["on"], names["tied"]) == (["cpu"] * 3, [False, "cpu"], 0.0)
    s.park()
    s.resume(gpu="T4:1")
    s.run("losses += [step() for _ in range(5)]\nat = str(x.device)", quiet=True)
    assert len(names["losses"]) == 15
    assert names["losses"][5] > names["losses"][14]
    # What nobody moved says the same.
    plain: dict[str, Any] = {}
    exec("DEVICE = 'cuda'\n" + TRAINING + "losses = [step() for _ in range(5)]", plain)
    assert names["losses"][:5] == pytest.approx(plain["losses"], rel=1e-3)


def test_a_killed_node_gives_the_gpu_back(session: Callable[..., Session], client: Any) -> None:
    """The session goes on with its tensors on the GPU, and the dead kernel's memory is free."""
    names: dict[str, Any] = {}
    s = session(gpu="T4:1", namespace=names)
    s.run(
        "import torch\nheld = torch.ones(2**30, device='cuda')\n"
        "kept = torch.arange(5, device='cuda')\n"
        "free = torch.cuda.mem_get_info()[0]",
        quiet=True,
        durable=True,
    )
    s.run("del held", quiet=True, durable=True)
    before = s.info.node
    client.cluster.preempt(before, "0s")
    until(lambda: s.info.node not in (None, before) and s.state == "idle", "it has moved", 120)
    s.run("kept += 1\nat = kept.tolist()\nafter = torch.cuda.mem_get_info()[0]", quiet=True)
    assert names["at"] == [1, 2, 3, 4, 5]
    assert names["after"] > names["free"] + 3 * 2**30, "nothing of the dead kernel holds memory"


def fit(context: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(256, 16), torch.randn(256, 1))
    model = context.wrap(torch.nn.Linear(16, 1))
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    for bx, by in context.batches(
        data, global_batch=32, epochs=4, state={"model": model, "opt": opt}, every="1s"
    ):
        opt.zero_grad()
        loss = (model(bx) - by).square().mean()
        context.backward(loss)
        opt.step()
        context.report(loss=loss)
    return {
        "device": str(next(model.parameters()).device),
        "batch": str(bx.device),
        "backend": str(torch.distributed.get_backend_config()),
    }


def test_a_training_uses_it(client: Any) -> None:
    found = mlcloud.train(fit, workers=1, gpu="T4:1", quiet=True)
    assert found.value["device"].startswith("cuda")
    assert found.value["batch"].startswith("cuda")
    assert "cuda:nccl" in found.value["backend"]
    assert found.steps == 32
    losses = found.history.values["loss"]
    assert losses[-1] < losses[0]


def test_its_use_is_seen(session: Callable[..., Session], client: Any) -> None:
    """A kernel that computes in a thread on the GPU is not idle, and the use is in the meter."""
    s = session(gpu="T4:1")
    s.run(
        "import threading, torch\nstop = threading.Event()\n"
        "def work():\n"
        "    a = torch.randn(8192, 8192, device='cuda')\n"
        "    while not stop.is_set():\n"
        "        for _ in range(20): b = a @ a\n"
        "        torch.cuda.synchronize()\n"
        "busy = threading.Thread(target=work); busy.start()",
        quiet=True,
    )

    def used() -> Any:
        nodes = client.cluster.status().info.nodes
        looks = [each.use.gpus for each in nodes if s.name in each.sessions and each.use]
        return [gpu for gpus in looks for gpu in gpus if gpu.busy > 0.5]

    (gpu,) = until(used, "the GPU's use in the status", 60)
    assert gpu.memory > 500e6
    assert gpu.memory_there > gpu.memory
    s.run("stop.set(); busy.join()", quiet=True)
