"""What a step has in it, and how two differ: in Python and in a shell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
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
    assert listed[0].startswith("run: 2 steps in ")
    assert listed[1].split() == ["step", "bytes", "new", "age", "metric", "state"]
    assert [line.split()[0] for line in listed[2:]] == ["1", "2"]
    assert "… 1 earlier step\n" in mlc("ls", url, "--last", "1").output
    assert "model.weight" in mlc("show", url).output
    assert "0.25" in mlc("diff", url, "1", "2").output
    assert mlc("diff", url, "1", "1").output == "steps 1 and 1 hold the same\n"
    assert "2 steps: all is well" in mlc("verify", url).output
    file = tmp_path / "model.pt"
    assert mlc("export", url, str(file), "--step", "1", "--part", "model").exit_code == 0
    assert torch.load(file)["weight"].shape == (2, 3)
    assert "removed 1 step" in mlc("prune", url, "--keep", "1", "--best", "1").output
    assert ckpts.steps() == [2]


def test_out_and_in_again_in_a_shell(ckpts: Checkpoints, tmp_path: Path) -> None:
    url, folder, copy = ckpts.store.url, tmp_path / "plain", str(tmp_path / "copy")
    assert mlc("export", url, str(folder), "--part", "model").output == f"written to {folder}\n"
    loaded = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    dcp.load(loaded, checkpoint_id=folder)
    assert torch.equal(loaded["weight"], ckpts.load(2)["model"]["weight"])
    assert "is there already" in mlc("export", url, str(folder)).output
    odd = tmp_path / "odd.name"
    assert mlc("export", url, str(odd), "--part", "model", "--format", "pt").exit_code == 0
    # into a store that has nothing yet, and into a series of a name of its own
    made = mlc("import", copy, str(folder), "--part", "model", "--metric", "0.5")
    assert made.output.startswith("step 0 of checkpoints: ")
    words = ["--name", "exp/7", "--step", "40", "--format", "pt"]
    assert "step 40 of exp/7" in mlc("import", copy, str(odd), *words).output
    model = torch.nn.Linear(3, 2)
    Checkpoints(copy).restore({"model": model})
    assert torch.equal(model.weight, loaded["weight"])
    assert Checkpoints(copy).info()[0].metric == 0.5
    assert ckpts.diff(2, 2) == []
    several = mlc("import", copy, str(folder))
    assert (several.exit_code, "choose one by --name" in several.output) == (1, True)
    bad = mlc("import", copy, str(tmp_path), "--name", "checkpoints")
    assert bad.exit_code == 1
    assert bad.output.startswith("NotImportable: ")


def test_a_damaged_step_is_listed_and_passed_over(ckpts: Checkpoints, tmp_path: Path) -> None:
    url = ckpts.store.url
    newest = tmp_path / "store" / "manifests" / "checkpoint" / "run" / f"{2:012d}.json"
    newest.chmod(0o644)
    newest.write_bytes(newest.read_bytes()[:-9])
    listed = mlc("ls", url)
    assert listed.exit_code == 0
    assert listed.output.splitlines()[3].split() == ["2", "damaged"]
    assert "step 2: manifest " in listed.output
    shown = mlc("show", url)
    assert shown.exit_code == 0
    assert "warning: checkpoint 'run': step 2 cannot be loaded" in shown.output
    assert "UserWarning" not in shown.output
    assert mlc("show", url, "2").output.startswith("Damaged: manifest ")
    assert mlc("show", url, "7").output.startswith("NoCheckpoint: ")


def test_every_command_says_what_it_is_for() -> None:
    listed = mlc("--help").output
    assert "..." not in listed.partition("Commands:")[2]  # no line is cut
    for name in ("ls", "show", "diff", "verify", "export", "import", "prune"):
        assert f"\n  {name} " in listed
        told = mlc(name, "--help")
        assert told.exit_code == 0
        assert "STORE" in told.output


def test_damage_and_wrong_names_are_said(ckpts: Checkpoints, tmp_path: Path) -> None:
    url = ckpts.store.url
    unlike = mlc("ls", url, "--name", "rum")
    assert "no checkpoints 'rum'; it has run; did you mean 'run'?" in unlike.output
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
