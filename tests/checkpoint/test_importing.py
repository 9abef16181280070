"""What other tools wrote, as steps of a series; and what is refused, with nothing committed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from mlcloud import Checkpoints, errors
from tests.checkpoint.test_export import equal, left, trained

pytest.importorskip("safetensors")

from safetensors.torch import save_file


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"), "run")


def restored(ckpts: Checkpoints, step: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and optimizer that were something else before."""
    model, optimizer = trained(9)
    assert ckpts.restore({"model": model, "opt": optimizer}, step) == step
    return model, optimizer


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "all.pt"])
def test_a_training_goes_on_from_an_import(ckpts: Checkpoints, tmp_path: Path, name: str) -> None:
    model, optimizer = trained()
    state = {"model": model, "opt": optimizer, "epoch": 7, "betas": (0.9, 0.95), "l": [1, {}, [2]]}
    ckpts.save(state, 3, metric=0.5)
    made = ckpts.import_from(ckpts.export(tmp_path / name), 8, metric=0.25, extra={"from": "x"})
    assert (made.step, made.metric, made.extra) == (8, 0.25, {"from": "x"})
    assert equal(ckpts.load(8)["l"], [1, {}, [2]])
    assert (ckpts.load(8)["epoch"], ckpts.load(8)["betas"]) == (7, (0.9, 0.95))
    other, fresh = restored(ckpts, 8)
    assert equal(other.state_dict(), model.state_dict())
    assert equal(fresh.state_dict(), optimizer.state_dict())
    for m, o in ((model, optimizer), (other, fresh)):  # and the next step is the same, bit by bit
        o.zero_grad()
        m(torch.ones(2, 4)).square().sum().backward()
        o.step()
    assert equal(other.state_dict(), model.state_dict())


def test_a_stock_dcp_folder(ckpts: Checkpoints, tmp_path: Path) -> None:
    model, _ = trained()
    momentumless = torch.optim.SGD(model.parameters(), lr=0.1)  # its state is empty
    state = {
        "model": model.state_dict(),
        "opt": momentumless.state_dict(),
        "half": torch.randn(5).bfloat16(),
        "mixed": [torch.ones(1), {"note": "x"}, [torch.zeros(0)]],
        "scheduler": {"last_epoch": 3, "milestones": {"1": 2}},
    }
    dcp.save(state, checkpoint_id=tmp_path / "plain")
    assert ckpts.import_from(tmp_path / "plain").step == 0
    assert equal(ckpts.load(0), state)
    momentumless.load_state_dict(ckpts.load(0)["opt"])
    other = trained(1)[0]
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    ckpts.restore({"model": other})
    assert torch.equal(torch.rand(3), drawn)  # an import has no random state to put back


RANK = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, where = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
w = torch.arange(35, dtype=torch.float32).reshape(7, 5)
state = {
    "model": {"layers.0.weight": distribute_tensor(w, mesh, [Shard(0)]),
              "layers.0.bias": distribute_tensor(w[0].clone(), mesh, [Replicate()])},
    "step": 40,
}
dcp.save(state, checkpoint_id=f"{where}/sharded")
dist.destroy_process_group()
"""


def test_shards_of_two_ranks_are_put_together(ckpts: Checkpoints, tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    assert [rank.wait(100) for rank in ranks] == [0, 0]
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2
    ckpts.import_from(tmp_path / "sharded")
    whole = torch.arange(35.0).reshape(7, 5)
    wanted = {"model": {"layers.0.weight": whole, "layers.0.bias": whole[0]}, "step": 40}
    assert equal(ckpts.load(0)["model"], wanted["model"])
    assert ckpts.load(0)["step"] == 40
    next((tmp_path / "sharded").glob("__1_*")).unlink()
    with pytest.raises(errors.NotImportable, match=r"__1_0.distcp with .* is missing"):
        ckpts.import_from(tmp_path / "sharded")


def test_safetensors_come_back_with_step_and_metric(ckpts: Checkpoints, tmp_path: Path) -> None:
    model, _ = trained()
    half = {"b": torch.randn(3).bfloat16(), "f": torch.randn(4).to(torch.float8_e4m3fn)}
    ckpts.save({"model": model, "half": half}, 12, metric=0.1)
    file = ckpts.export(tmp_path / "model.safetensors", part="model")
    other = Checkpoints(ckpts.store, "other")
    made = other.import_from(file, part="model")
    assert (made.step, made.metric) == (12, 0.1)
    fresh = trained(1)[0]
    other.restore({"model": fresh})
    assert equal(fresh.state_dict(), model.state_dict())
    whole = ckpts.export(tmp_path / "all.safetensors")
    assert other.import_from(whole, 13, metric=2).metric == 2.0
    found = other.load(13)
    assert torch.equal(found["half.b"], half["b"])
    assert torch.equal(found["half.f"].view(torch.uint8), half["f"].view(torch.uint8))
    assert other.import_from(whole, 13).new_bytes == 0  # again: the same, and no error
    with pytest.raises(errors.StepExists):
        other.import_from(file)
    assert other.steps() == [12, 13]


def hugging_face(folder: Path, **files: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A sharded model as `save_pretrained` leaves it."""
    folder.mkdir()
    where = {}
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, f"{name}.safetensors"))
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return {name: tensor for tensors in files.values() for name, tensor in tensors.items()}


def test_a_hugging_face_folder(ckpts: Checkpoints, tmp_path: Path) -> None:
    shards = {"a": {"x.w": torch.randn(3), "x.b": torch.randn(2)}, "b": {"y.w": torch.randn(4)}}
    wanted = hugging_face(tmp_path / "hf", **shards)
    assert ckpts.import_from(tmp_path / "hf", part="model").step == 0
    assert equal(ckpts.load(0), {"model": wanted})
    single = tmp_path / "single"
    single.mkdir()
    os.symlink(tmp_path / "hf" / "a.safetensors", single / "model.safetensors")  # as its cache does
    ckpts.import_from(single)
    assert equal(ckpts.load(1), {"x.b": wanted["x.b"], "x.w": wanted["x.w"]})


# --- what is refused ------------------------------------------------------------------------------


class Boom:
    """Runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _dcp(folder: Path) -> Path:
    dcp.save({"w": torch.ones(100), "n": 1}, checkpoint_id=folder)
    return folder


def bad_pickle(where: Path) -> Path:
    torch.save({"x": Boom(where / "ran")}, where / "x.pt")
    return where / "x.pt"


def bad_module(where: Path) -> Path:
    torch.save(nn.Linear(1, 1), where / "x.pt")
    return where / "x.pt"


def old_pickle(where: Path) -> Path:
    (where / "x.pt").write_bytes(pickle.dumps(Boom(where / "ran")))
    return where / "x.pt"


def cut_pt(where: Path) -> Path:
    torch.save({"w": torch.ones(100)}, where / "x.pt")
    cut(where / "x.pt")
    return where / "x.pt"


def no_dict(where: Path) -> Path:
    torch.save(torch.ones(2), where / "x.pt")
    return where / "x.pt"


def cut_safetensors(where: Path) -> Path:
    save_file({"w": torch.ones(100)}, where / "x.safetensors")
    cut(where / "x.safetensors")
    return where / "x.safetensors"


def pt_as_safetensors(where: Path) -> Path:
    torch.save({"w": torch.ones(100)}, where / "x.safetensors")
    return where / "x.safetensors"


def unknown(where: Path) -> Path:
    (where / "x.h5").write_bytes(b"\x89HDF")
    return where / "x.h5"


def a_zip(where: Path) -> Path:
    with zipfile.ZipFile(where / "x.pt", "w") as file:
        file.writestr("hello", "world")
    return where / "x.pt"


def empty_pt(where: Path) -> Path:
    (where / "x.pt").touch()
    return where / "x.pt"


def empty_folder(where: Path) -> Path:
    (where / "folder").mkdir()
    return where / "folder"


def cut_dcp(where: Path) -> Path:
    cut(next(_dcp(where / "folder").glob("*.distcp")))
    return where / "folder"


def cut_metadata(where: Path) -> Path:
    cut(_dcp(where / "folder") / ".metadata")
    return where / "folder"


def bad_metadata(where: Path) -> Path:
    (_dcp(where / "folder") / ".metadata").write_bytes(pickle.dumps(Boom(where / "ran")))
    return where / "folder"


def bad_value_in_dcp(where: Path) -> Path:
    dcp.save({"w": torch.ones(3), "x": Boom(where / "ran")}, checkpoint_id=where / "folder")
    return where / "folder"


def edited(folder: Path, edit: Callable[[Any], None]) -> Path:
    file = _dcp(folder) / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    edit(metadata)
    file.write_bytes(pickle.dumps(metadata))
    return folder


def climbing_dcp(where: Path) -> Path:
    def edit(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = f"../folder/{info.relative_path}"

    return edited(where / "folder", edit)


def holes_in_dcp(where: Path) -> Path:
    def edit(metadata: Any) -> None:
        metadata.state_dict_metadata["w"].size = torch.Size([200])

    return edited(where / "folder", edit)


def climbing_index(where: Path) -> Path:
    hugging_face(where / "hf", a={"w": torch.ones(2)})
    save_file({"w": torch.ones(2)}, where / "out.safetensors")
    index = where / "hf" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("a.safetensors", "../out.safetensors"))
    return where / "hf"


def missing_shard(where: Path) -> Path:
    hugging_face(where / "hf", a={"w": torch.ones(2)}, b={"v": torch.ones(2)})
    (where / "hf" / "b.safetensors").unlink()
    return where / "hf"


def wrong_shard(where: Path) -> Path:
    hugging_face(where / "hf", a={"w": torch.ones(2)}, b={"v": torch.ones(2)})
    save_file({"other": torch.ones(2)}, where / "hf" / "b.safetensors")
    return where / "hf"


def bad_index(where: Path) -> Path:
    hugging_face(where / "hf", a={"w": torch.ones(2)})
    (where / "hf" / "model.safetensors.index.json").write_text("{")
    return where / "hf"


def two_files(where: Path) -> Path:
    (where / "hf").mkdir()
    for name in "ab":
        save_file({"w": torch.ones(2)}, where / "hf" / f"{name}.safetensors")
    return where / "hf"


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (bad_pickle, "pathlib.*weights_only=False"),
    (bad_module, "torch.nn.modules.linear.Linear.*add_safe_globals"),
    (old_pickle, "damaged or of another format"),
    (cut_pt, "damaged or of another format"),
    (no_dict, "holds a Tensor and no dict: say by part="),
    (cut_safetensors, "x.safetensors is cut short"),
    (pt_as_safetensors, "no safetensors file"),
    (unknown, "import knows .safetensors, .pt"),
    (a_zip, "damaged or of another format"),
    (empty_pt, "damaged or of another format"),
    (empty_folder, "a folder neither of"),
    (cut_dcp, r"distcp is cut short: 'w' needs \d+ bytes"),
    (cut_metadata, "damaged or of another format"),
    (bad_metadata, "names pathlib.*touch|names .*, which no checkpoint"),
    (bad_value_in_dcp, "more than tensors and plain data"),
    (climbing_dcp, "outside the folder"),
    (holes_in_dcp, "100 elements of 200"),
    (climbing_index, "outside the folder"),
    (missing_shard, "b.safetensors, which .* is missing"),
    (wrong_shard, "b.safetensors has no 'v'"),
    (bad_index, "damaged or of another format"),
    (two_files, "a.safetensors, b.safetensors: name one"),
    (lambda where: where / "nothing.pt", "there is no file or folder"),
]


@pytest.mark.parametrize(("make", "why"), REFUSED, ids=lambda x: getattr(x, "__name__", ""))
def test_bad_input_commits_nothing(
    ckpts: Checkpoints, tmp_path: Path, make: Callable[[Path], Path], why: str
) -> None:
    ckpts.save({"w": torch.ones(1)}, 1)
    place = make(tmp_path)
    with pytest.raises(errors.NotImportable, match=why) as caught:
        ckpts.import_from(place, 2)
    assert str(place) in str(caught.value)
    assert ckpts.steps() == [1]
    assert "ran" not in left(tmp_path)  # and no code of the file's


def test_wrong_words_are_usage_errors(ckpts: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="copy it here"):
        ckpts.import_from("s3://bucket/x.pt")
    with pytest.raises(errors.UsageError, match="knows the formats"):
        ckpts.import_from(tmp_path, format="zip")  # type: ignore[arg-type]
    with pytest.raises(errors.NotImportable, match="writes last"):
        ckpts.import_from(tmp_path, format="dcp")


def test_what_has_no_safe_form_is_named(ckpts: Checkpoints, tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)
    torch.save({"x": {"q": quantized}}, tmp_path / "x.pt")
    with pytest.raises(errors.NotCheckpointable, match=r"state\['x'\]\['q'\]"):
        ckpts.import_from(tmp_path / "x.pt")
    assert ckpts.steps() == []


def test_classes_that_the_user_allows_are_read(ckpts: Checkpoints, tmp_path: Path) -> None:
    torch.save({"seen": frozenset([1, 2]), "w": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(errors.NotImportable, match=r"builtins.frozenset.*add_safe_globals"):
        ckpts.import_from(tmp_path / "x.pt")
    with torch.serialization.safe_globals([frozenset]):
        ckpts.import_from(tmp_path / "x.pt")
    assert ckpts.load(0)["seen"] == {1, 2}


@pytest.mark.parametrize("name", ["plain", "all.pt"])
def test_numpy_comes_back_without_its_unpickler(
    ckpts: Checkpoints, tmp_path: Path, name: str
) -> None:
    state = {
        "best": np.float64(0.25),
        "order": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        "words": np.array(["a", "longer"]),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "complex": np.array([1j], "c8"),
        "random": np.random.RandomState(3).get_state(),
        "list": [np.ones(2), (np.int32(4),), torch.ones(1)],
    }
    ckpts.save(state, 1)
    exported, allowed = ckpts.export(tmp_path / name), set(torch.serialization.get_safe_globals())
    ckpts.import_from(exported, 2)
    assert set(torch.serialization.get_safe_globals()) == allowed
    found = ckpts.load(2)
    for key in ("order", "words", "flags", "empty", "complex"):
        assert found[key].dtype == state[key].dtype, key
        assert found[key].tolist() == state[key].tolist()
    assert (type(found["best"]), found["best"]) == (np.float64, 0.25)
    assert found["random"][1].tolist() == state["random"][1].tolist()
    assert found["list"][0].tolist() == [1, 1]
    assert type(found["list"][1][0]) is np.int32
    assert ckpts.diff(1, 2) == []
    with (
        torch.serialization.safe_globals([np.ndarray]),  # what a user allows, the user gets
        pytest.raises(errors.NotImportable, match="add_safe_globals"),
    ):
        ckpts.import_from(tmp_path / name, 3)


@pytest.mark.parametrize(
    "array",
    [np.array([None]), np.array(["2020"], "M8[D]"), np.zeros(2, [("a", "i4")]), np.void(b"x")],
    ids=str,
)
def test_dtypes_that_are_more_than_bytes_are_refused(
    ckpts: Checkpoints, tmp_path: Path, array: Any
) -> None:
    torch.save({"x": array}, tmp_path / "x.pt")
    with pytest.raises(errors.NotImportable, match="numpy array of"):
        ckpts.import_from(tmp_path / "x.pt")
    assert ckpts.steps() == []
