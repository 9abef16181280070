"""A step in other tools' formats, read back by those tools and not by us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from mlcloud import Checkpoints, errors

pytest.importorskip("safetensors")

from safetensors import safe_open
from safetensors.torch import load_file

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"), "run")


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name != "store")


# --- torch.distributed.checkpoint -----------------------------------------------------------------


def test_stock_dcp_reads_a_folder(ckpts: Checkpoints, tmp_path: Path) -> None:
    model, optimizer = trained()
    state = {
        "model": model,
        "opt": optimizer,
        "epoch": 7,
        "note": "best so far",
        "betas": (0.9, 0.95),
        "losses": [2.5, 1.25],
        "parts": [torch.arange(3), {"lr": 0.1}],
        "seen": np.arange(5),
    }
    ckpts.save(state, 3)
    folder = ckpts.export(tmp_path / "plain")
    assert {each.suffix for each in folder.iterdir()} == {"", ".distcp"}
    other, fresh = trained(1)
    loaded: dict[str, Any] = {
        "model": other.state_dict(),
        "opt": fresh.state_dict(),
        "epoch": 0,
        "note": "",
        "betas": None,
        "losses": None,
        "parts": [torch.zeros(3, dtype=torch.int64), {"lr": 0.0}],
        "seen": None,
    }
    dcp.load(loaded, checkpoint_id=folder)
    other.load_state_dict(loaded["model"])
    fresh.load_state_dict(loaded["opt"])
    assert equal(other.state_dict(), model.state_dict())
    assert equal(fresh.state_dict(), optimizer.state_dict())
    assert (loaded["epoch"], loaded["note"], loaded["betas"]) == (7, "best so far", (0.9, 0.95))
    assert loaded["losses"] == [2.5, 1.25]
    assert equal(loaded["parts"], [torch.arange(3), {"lr": 0.1}])
    assert loaded["seen"].tolist() == [0, 1, 2, 3, 4]


def test_stock_dcp_reads_names_as_fsdp_has_them(ckpts: Checkpoints, tmp_path: Path) -> None:
    model, optimizer = trained()
    names, moments = get_state_dict(model, optimizer)
    ckpts.save({"app": {"model": names, "optim": moments}}, 3)
    folder = ckpts.export(f"{tmp_path}/fsdp/")
    other, fresh = trained(1)
    named, empty = get_state_dict(other, fresh)
    loaded = {"app": {"model": named, "optim": empty}}
    dcp.load(loaded, checkpoint_id=folder)
    set_state_dict(other, fresh, model_state_dict=named, optim_state_dict=loaded["app"]["optim"])
    assert equal(other.state_dict(), model.state_dict())
    assert equal(fresh.state_dict(), optimizer.state_dict())
    metadata = dcp.FileSystemReader(folder).read_metadata()
    assert "app.model.0.weight" in metadata.state_dict_metadata


def test_what_a_dcp_folder_cannot_be(ckpts: Checkpoints, tmp_path: Path) -> None:
    ckpts.save({"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)}, 1)
    with pytest.raises(errors.UsageError, match="duplicated"):
        ckpts.export(tmp_path / "folder")
    there = tmp_path / "there"
    there.mkdir()
    assert ckpts.export(there, part="a") == there  # an empty one is taken
    before = sorted(each.read_bytes() for each in there.iterdir())
    with pytest.raises(errors.UsageError, match="is there already"):
        ckpts.export(there, part="a")
    assert sorted(each.read_bytes() for each in there.iterdir()) == before
    with pytest.raises(errors.UsageError, match="format='dcp'"):
        ckpts.export(tmp_path / "run.v1", part="a")
    assert (ckpts.export(tmp_path / "run.v1", part="a", format="dcp") / ".metadata").is_file()
    with pytest.raises(errors.UsageError, match="knows the formats"):
        ckpts.export(tmp_path / "x", format="hdf5")  # type: ignore[arg-type]
    assert left(tmp_path) == ["run.v1", "there"]


# --- safetensors ----------------------------------------------------------------------------------


def test_safetensors_keeps_every_bit(ckpts: Checkpoints, tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    state = {
        "tied": {"embed": tied, "head": tied},
        "bf16": torch.randn(3).bfloat16(),
        **{str(dtype)[6:]: torch.randn(9).to(dtype) for dtype in FP8},
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "every_other": torch.arange(10)[::2],
        "flag": torch.tensor([True, False]),
        "array": np.arange(3, dtype=np.int16),
        "words": np.array(["a", "b"]),
        "epoch": 4,
    }
    ckpts.save(state, 12, metric=0.1)
    found = load_file(ckpts.export(tmp_path / "all.safetensors"))
    assert torch.equal(found["tied.embed"], tied)
    assert torch.equal(found["tied.head"], tied)
    for name in ("bf16", "scalar", "empty", "turned", "every_other", "flag"):
        assert equal(found[name], state[name]), name
    for dtype in FP8:
        name = str(dtype)[6:]
        assert found[name].dtype == dtype
        assert found[name].view(torch.uint8).tolist() == state[name].view(torch.uint8).tolist()
    assert found["array"].dtype == torch.int16
    assert found.keys().isdisjoint({"words", "epoch"})
    with safe_open(tmp_path / "all.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "step": "12", "metric": "0.1"}


def test_what_safetensors_does_not_take_is_said(ckpts: Checkpoints, tmp_path: Path) -> None:
    ckpts.save(
        {
            "strange": {"x": torch.ones(2, dtype=torch.complex128)},
            "same": {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)},
            "none": {"epoch": 1},
        },
        1,
    )
    path = tmp_path / "x.safetensors"
    for part, why in (("strange", "complex128"), ("same", "'a.b'"), ("none", "no tensor")):
        with pytest.raises(errors.UsageError, match=why):
            ckpts.export(path, part=part)
    assert left(tmp_path) == []


# --- whole or not at all --------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import torch, torch.distributed.checkpoint as dcp, safetensors.torch
from mlcloud import Checkpoints

save, form = torch.save, sys.argv[2].rpartition("/")[2]

def die(*given, **named):
    os.kill(os.getpid(), signal.SIGKILL)

if form == "folder":  # all of its files are there, and the folder's name is not
    os.replace = die
elif form == "folder2":  # in the middle of DCP's own work
    dcp.FileSystemWriter.finish = die
else:
    os.fsync = die
Checkpoints(sys.argv[1], "run").export(sys.argv[2])
"""


@pytest.mark.parametrize("name", ["folder", "folder2", "x.pt", "x.safetensors"])
def test_a_killed_export_leaves_nothing_under_the_name(
    ckpts: Checkpoints, tmp_path: Path, name: str
) -> None:
    ckpts.save({"w": torch.ones(1000)}, 1)
    if "." in name:
        (tmp_path / name).write_bytes(b"an older one")
    ended = subprocess.run([sys.executable, "-c", KILLED, ckpts.store.url, str(tmp_path / name)])
    assert ended.returncode == -signal.SIGKILL
    assert [each for each in left(tmp_path) if not each.startswith(".")] == (
        [name] if "." in name else []
    )
    assert any(each.startswith(f".{name}.") for each in left(tmp_path))  # it was under way
    if "." in name:
        assert (tmp_path / name).read_bytes() == b"an older one"
    else:
        ckpts.export(tmp_path / name)


@pytest.mark.parametrize("name", ["folder", "x.pt", "x.safetensors"])
def test_an_export_that_fails_leaves_nothing(ckpts: Checkpoints, tmp_path: Path, name: str) -> None:
    resource = pytest.importorskip("resource")
    ckpts.save({"w": torch.randn(2**20)}, 1)
    loaded = ckpts.read(1)
    assert loaded.info.step == 1
    pid = os.fork()
    if pid == 0:  # a disk that ends after 1 MB, for this process
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try:
            ckpts.export(tmp_path / name)
        except errors.StoreError as error:
            os._exit(7 if name in str(error) else 8)
        except BaseException:
            os._exit(9)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert left(tmp_path) == []
