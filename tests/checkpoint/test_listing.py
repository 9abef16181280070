"""What a step has in it, and how two differ: in Python and in a shell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from mlcloud import Checkpoints
from mlcloud.checkpoint.listing import Difference, Row
from mlcloud.cli import main


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    torch.manual_seed(1)
    made = Checkpoints(str(tmp_path / "store"), "run")
    model = torch.nn.Linear(3, 2)
    state = {"model": model, "seen": np.arange(4), "epoch": 1, "note": "first", "old": [1.5]}
    made.save(state, 1, metric=0.5)
    with torch.no_grad():
        model.bias += 0.25
    del state["old"]
    state.update(epoch=2, lr=0.1, seen=np.array([0, 1, 2, 9]))
    made.save(state, 2, metric=0.25)
    return made


def test_what_is_in_a_step(ckpts: Checkpoints) -> None:
    found = {row.name: row for row in ckpts.show(1)}
    assert found["model.weight"] == Row("model.weight", "float32", (2, 3), 24)
    assert found["seen"] == Row("seen", "int64", (4,), 32)
    assert found["epoch"] == Row("epoch", "int", None, 0, "1")
    assert found["old.0"].value == "1.5"


def test_how_two_differ(ckpts: Checkpoints) -> None:
    found = {each.name: each for each in ckpts.diff(1, 2)}
    assert found.keys() == {"model.bias", "seen", "epoch", "old.0", "lr"}
    assert found["model.bias"].most == pytest.approx(0.25)
    assert found["seen"].most == 6
    assert found["epoch"] == Difference("epoch", "changed", "1", "2")
    assert found["old.0"].what == "removed"
    assert found["lr"] == Difference("lr", "added", "", "0.1")
    assert ckpts.diff(2, 2) == []


def mlc(*words: str) -> Result:
    return CliRunner().invoke(main, ["checkpoints", *words])


def test_in_a_shell(ckpts: Checkpoints, tmp_path: Path) -> None:
    url = ckpts.store.url
    listed = mlc("ls", url).output.splitlines()
    assert listed[0].split() == ["step", "bytes", "new", "age", "metric"]
    assert [line.split()[0] for line in listed[1:]] == ["1", "2"]
    assert "model.weight" in mlc("show", url).output
    assert "0.25" in mlc("diff", url, "1", "2").output
    assert "2 steps: all is well" in mlc("verify", url).output
    file = tmp_path / "model.pt"
    assert mlc("export", url, str(file), "--step", "1", "--part", "model").exit_code == 0
    assert torch.load(file)["weight"].shape == (2, 3)
    assert "removed 1 step" in mlc("prune", url, "--keep", "1", "--best", "1").output
    assert ckpts.steps() == [2]


def test_damage_and_wrong_names_are_said(ckpts: Checkpoints, tmp_path: Path) -> None:
    url = ckpts.store.url
    Checkpoints(url, "other").save({"x": 1}, 1)
    wrong = mlc("ls", url)
    assert wrong.exit_code == 1
    assert "other, run; choose one by --name" in wrong.output
    assert "no checkpoints 'nobody'" in mlc("ls", url, "--name", "nobody").output
    assert "has 0 series" in mlc("ls", str(tmp_path / "empty")).output
    for chunk in (tmp_path / "store" / "chunks").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    damaged = mlc("verify", url, "--name", "run")
    assert damaged.exit_code == 1
    assert "does not match" in damaged.output
