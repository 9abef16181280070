"""State on a GPU: saved there, restored there, and on a node that has none. Needs CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mlcloud.kernel import activity
from mlcloud.kernel.mentions import mentions
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.recipes import CellRun
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.store import Store
from tests.values.pair import execute, notebook

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CELLS = [
    "import torch\ntorch.manual_seed(3)",
    "model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), "
    "torch.nn.Linear(256, 8)).cuda()\nopt = torch.optim.AdamW(model.parameters(), fused=True)",
    "x, y = torch.randn(512, 64, device='cuda'), torch.randn(512, 8, device='cuda')",
    "def step():\n"
    "    opt.zero_grad(); loss = torch.nn.functional.mse_loss(model(x), y); loss.backward()\n"
    "    opt.step(); return float(loss)",
    "losses = [step() for _ in range(5)]",
    "half = x.view(-1)[:100]\nweight = model[0].weight\nnoise = torch.randn(4, device='cuda')",
]
CONTINUE = (
    "half.zero_(); tied = float(x.view(-1)[:100].abs().sum())\n"
    "weight.data.fill_(0.5); same = float(model[0].weight.mean())\n"
    "more = [step() for _ in range(3)]\nnext_noise = torch.randn(4, device=x.device).tolist()\n"
    "place = str(x.device)"
)


def saved(folder: Path) -> tuple[dict[str, Any], RemoteSide]:
    side = RemoteSide(notebook(), cheap_s=0.0)
    snapshots = Snapshots(Store(str(folder / "store")), side)
    body: dict[str, Any] = {}
    for step, code in enumerate(CELLS, 1):
        execute(code, side.namespace)
        side.look(mentions(code))
        body = snapshots.take(run=CellRun(step, f"e-{step}", code, code))
    (folder / "body").write_bytes(msgpack.packb(body))
    return body, side


def restored(folder: Path, visible: str) -> dict[str, Any]:
    """The last cell's names, in a process of its own that sees these devices."""
    script = Path(__file__).resolve()
    path = [str(script.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": visible, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found: dict[str, Any] = msgpack.unpackb(done.stdout)
    return found


@pytest.mark.parametrize("visible", ["0", ""])
def test_a_training_goes_on_elsewhere(tmp_path: Path, visible: str) -> None:
    _, side = saved(tmp_path)
    there = restored(tmp_path, visible)
    execute(CONTINUE, side.namespace)
    here = side.namespace
    assert there["place"] == ("cuda:0" if visible else "cpu")
    assert there["tied"] == 0.0, "a view is a view still"
    assert there["same"] == 0.5, "the optimizer's and the model's parameter are one"
    assert there["more"] == pytest.approx(here["more"], rel=1e-3)
    if visible:
        assert there["next_noise"] == here["next_noise"], "the device's random state came along"


def test_a_busy_gpu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    a = torch.randn(8192, 8192, device="cuda")
    for _ in range(400):
        b = a @ a
    share = activity._gpu_share()
    torch.cuda.synchronize()
    del b
    assert share > activity.BUSY_SHARE


if __name__ == "__main__":
    where = Path(sys.argv[1])
    side = RemoteSide(notebook())
    restoring = Snapshots(Store(str(where / "store")), side).restore(
        msgpack.unpackb((where / "body").read_bytes(), strict_map_key=False)
    )
    assert not list(restoring.cells())
    assert not restoring.end()["missing"]
    execute(CONTINUE, side.namespace)
    wanted = ("place", "tied", "same", "more", "next_noise")
    sys.stdout.buffer.write(msgpack.packb({name: side.namespace[name] for name in wanted}))
