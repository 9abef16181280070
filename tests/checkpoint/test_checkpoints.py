"""Save and restore: in place, whole, and back to the step before when one is damaged."""

from __future__ import annotations

import collections
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints, RunContext, context
from mlcloud.store import Store

torch = pytest.importorskip("torch", reason="checkpoints of tensors need torch")


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"), "exp/1")


def chunk_files(ckpts: Checkpoints) -> list[Path]:
    root = Path(ckpts.store.url.removeprefix("file://")) / "chunks"
    return sorted(path for path in root.rglob("*") if path.is_file())


def chunks_of_step(ckpts: Checkpoints, step: int) -> list[Path]:
    body = ckpts.store.read("checkpoint", ckpts.name, step)
    hashes = {ref.split(":")[1] for refs in body["segments"] for ref in refs}
    return [path for path in chunk_files(ckpts) if path.name in hashes]


def trained() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    opt = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        opt.step()
    return model, opt


def test_everything_is_restored_in_place(ckpts: Checkpoints) -> None:
    model, opt = trained()
    sched = torch.optim.lr_scheduler.MultiStepLR(opt, [1, 2])
    opt.step()
    generator = torch.Generator().manual_seed(5)
    state: dict[str, Any] = {
        "model": model,
        "opt": opt,
        "sched": sched,
        "nested": [{"models": (model,)}],
        "generator": generator,
        "history": [1.0, 2.0],
        "best": {"loss": 0.5, "at": {3: "x"}},
        "seen": {1, 2},
        "window": collections.deque([1, 2], 5),
        "array": np.arange(3.0),
        "tensor": torch.arange(3.0),
        "epoch": 7,
        "none": None,
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [entry["exp_avg"].clone() for entry in opt.state.values()]
    info = ckpts.save(state, 10, metric=float("nan"), extra={"note": "hi", "k": (1, 2)})
    assert info.step == 10
    assert info.bytes == info.new_bytes > 0
    expected = torch.rand(3, generator=generator)

    objects = dict(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for entry in opt.state.values():
            entry["exp_avg"].zero_()
    sched.step()
    state["history"].append(3.0)
    state["best"]["loss"] = 0.1
    state["seen"].add(9)
    state["window"].append(9)
    state["array"] += 1
    state["tensor"] += 1
    state["epoch"], state["none"] = 8, "something"

    assert ckpts.restore(state) == 10
    for name, value in state.items():
        if name not in ("epoch", "none", "nested"):
            assert value is objects[name]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(
        torch.equal(one, entry["exp_avg"])
        for one, entry in zip(moments, opt.state.values(), strict=True)
    )
    assert sched.last_epoch == 0
    assert torch.equal(torch.rand(3, generator=generator), expected)
    assert state["nested"][0]["models"][0] is model
    assert state["history"] == [1.0, 2.0]
    assert state["best"] == {"loss": 0.5, "at": {3: "x"}}
    assert state["seen"] == {1, 2}
    assert list(state["window"]) == [1, 2]
    assert state["array"].tolist() == state["tensor"].tolist() == [0, 1, 2]
    assert state["epoch"] == 7
    assert state["none"] is None
    (listed,) = ckpts.info()
    assert listed.extra == {"note": "hi", "k": (1, 2)}
    assert listed.metric != listed.metric


def test_random_numbers_go_on_where_they_were(ckpts: Checkpoints) -> None:
    ckpts.save({}, 1)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    ckpts.restore({})
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_no_pickler_is_called(ckpts: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "save", never)
    monkeypatch.setattr(torch, "load", never)
    model, opt = trained()
    ckpts.save({"model": model, "opt": opt}, 1)
    ckpts.restore({"model": model, "opt": opt})
    ckpts.load()


def test_load_gives_plain_data_of_its_own(ckpts: Checkpoints) -> None:
    model, opt = trained()
    ckpts.save({"model": model, "opt": opt, "l": [1]}, 1)
    loaded = ckpts.load()
    assert torch.equal(loaded["model"]["0.weight"], model[0].weight)
    assert loaded["opt"]["param_groups"] == opt.state_dict()["param_groups"]
    loaded["model"]["0.weight"].zero_()
    assert not torch.equal(ckpts.load()["model"]["0.weight"], loaded["model"]["0.weight"])


def test_many_small_tensors_are_few_chunks_and_unchanged_ones_none(ckpts: Checkpoints) -> None:
    small = {i: torch.full((300,), float(i)) for i in range(400)}
    big = torch.arange(20 * 2**20, dtype=torch.uint8)
    ckpts.save({"small": small, "big": big}, 1)
    assert ckpts.store.usage().chunks <= 4
    small[7] += 1
    info = ckpts.save({"small": small, "big": big}, 2)
    assert info.new_bytes < 2**20
    assert info.bytes > 20 * 2**20


def test_a_long_tree_lies_in_chunks_and_comes_back(ckpts: Checkpoints) -> None:
    history = [float(i) for i in range(50_000)]
    ckpts.save({"history": history}, 1)
    assert ckpts.load()["history"] == history
    manifests = Path(ckpts.store.url.removeprefix("file://")) / "manifests"
    assert all(path.stat().st_size < 100_000 for path in manifests.rglob("*.json"))
    assert ckpts.prune(1, sweep=True) == []
    assert ckpts.load()["history"] == history


class TestDamage:
    @pytest.fixture
    def saved(self, ckpts: Checkpoints) -> Checkpoints:
        for step in (1, 2):
            ckpts.save({"w": np.full(3_000_000, step), "epoch": step}, step)
        return ckpts

    def hurt(self, file: Path, damage: str) -> None:
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 4
            file.write_bytes(data)
        elif damage == "cut":
            os.truncate(file, len(data) // 2)
        else:
            file.unlink()

    @pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
    def test_a_damaged_chunk_is_noticed_and_the_previous_step_loads(
        self, saved: Checkpoints, damage: str
    ) -> None:
        only_newest = set(chunks_of_step(saved, 2)) - set(chunks_of_step(saved, 1))
        self.hurt(sorted(only_newest)[0], damage)
        state: dict[str, Any] = {"w": np.zeros(3_000_000, int), "epoch": 0}
        events: list[dict[str, Any]] = []
        run = RunContext(saved.store.url, "s/e", events.append)
        with context.use(run), pytest.warns(UserWarning, match="going back to step 1"):
            assert saved.restore(state) == 1
        assert state["epoch"] == 1
        assert (state["w"] == 1).all()
        assert [(e["type"], e["from"], e["to"]) for e in events] == [("fell_back", 2, 1)]
        assert saved.verify()[0].startswith("step 2")
        assert saved.verify(1) == []
        with pytest.raises(errors.Damaged):
            saved.restore(state, step=2)

    @pytest.mark.parametrize("damage", ["flip", "cut"])
    def test_a_damaged_manifest_is_noticed_and_the_previous_step_loads(
        self, saved: Checkpoints, damage: str
    ) -> None:
        root = Path(saved.store.url.removeprefix("file://"))
        self.hurt(root / "manifests/checkpoint/exp/1/000000000002.json", damage)
        with pytest.warns(UserWarning, match="going back to step 1"):
            assert saved.load()["epoch"] == 1

    @pytest.mark.parametrize("part", ["chunk", "manifest"])
    def test_a_damaged_step_can_be_saved_again(self, saved: Checkpoints, part: str) -> None:
        root = Path(saved.store.url.removeprefix("file://"))
        if part == "chunk":
            self.hurt(chunks_of_step(saved, 2)[0], "flip")
        else:
            self.hurt(root / "manifests/checkpoint/exp/1/000000000002.json", "flip")
        anew = Checkpoints(Store(saved.store.url), saved.name)
        anew.save({"w": np.full(3_000_000, 2), "epoch": 2}, 2)
        assert anew.verify(2) == []
        assert anew.load()["epoch"] == 2

    @pytest.mark.parametrize("how", ["cut", "gone"])
    def test_when_none_loads_it_is_said_and_nothing_is_touched(
        self, saved: Checkpoints, how: str
    ) -> None:
        for file in chunk_files(saved):
            self.hurt(file, how)
        state: dict[str, Any] = {"w": np.zeros(3_000_000, int), "epoch": 0}
        with pytest.raises(errors.Damaged, match="none of the 2 steps") as raised:
            saved.restore(state)
        assert "make the state anew" not in str(raised.value)
        assert state["epoch"] == 0
        assert not state["w"].any()

    def test_when_none_loads_and_something_was_read_it_is_said(self, saved: Checkpoints) -> None:
        for file in chunk_files(saved):
            if file.stat().st_size > 2**20:
                self.hurt(file, "flip")
        state: dict[str, Any] = {"w": np.zeros(3_000_000, int), "epoch": 0}
        with pytest.raises(errors.Damaged, match=r"none of the 2 steps.*make the state anew"):
            saved.restore(state)
        assert state["epoch"] == 0


class TestSteps:
    def test_saving_the_same_again_is_no_error(self, ckpts: Checkpoints) -> None:
        ckpts.save({"a": 1}, 1)
        assert ckpts.save({"a": 1}, 1).new_bytes == 0

    def test_saving_another_state_as_the_same_step_keeps_the_first(
        self, ckpts: Checkpoints
    ) -> None:
        ckpts.save({"a": 1}, 1)
        with pytest.raises(errors.StepExists):
            ckpts.save({"a": 2}, 1)
        assert ckpts.load() == {"a": 1}

    def test_nothing_saved(self, ckpts: Checkpoints) -> None:
        with pytest.raises(errors.NoCheckpoint):
            ckpts.restore({})
        assert ckpts.steps() == []
        assert ckpts.info() == []
        assert ckpts.verify() == []

    def test_prune_keeps_the_newest_and_frees_their_room_when_asked(
        self, ckpts: Checkpoints
    ) -> None:
        for step in range(1, 8):
            ckpts.save({"w": np.full(1000, step)}, step)
        before = ckpts.store.usage()
        assert ckpts.prune() == [1, 2]
        assert ckpts.store.usage().chunks == before.chunks
        assert ckpts.prune(2, sweep=True) == [3, 4, 5]
        assert ckpts.steps() == [6, 7]
        assert ckpts.verify() == []
        assert ckpts.store.usage().chunks < before.chunks
        with pytest.raises(errors.UsageError):
            ckpts.prune(0)

    def test_prune_does_not_leave_only_damaged_steps(self, ckpts: Checkpoints) -> None:
        for step in (1, 2):
            ckpts.save({"w": np.full(1000, step)}, step)
        for path in set(chunks_of_step(ckpts, 2)) - set(chunks_of_step(ckpts, 1)):
            path.unlink()
        with pytest.raises(errors.Damaged, match="others are kept too"):
            ckpts.prune(1)
        assert ckpts.steps() == [1, 2]


class TestFit:
    @pytest.mark.parametrize(
        "state",
        [
            {"w": np.zeros(3), "new": 1},
            {"w": np.zeros(4)},
            {"w": torch.nn.Linear(1, 1)},
            {"m": 3},
            {"w": np.zeros(3), "m": torch.nn.Linear(9, 9), "l": [torch.nn.Linear(1, 1)]},
        ],
        ids=["missing", "shape", "object", "no object", "list"],
    )
    def test_a_state_that_does_not_fit_is_refused_whole(
        self, ckpts: Checkpoints, state: dict[str, Any]
    ) -> None:
        ckpts.save({"w": np.ones(3), "m": torch.nn.Linear(1, 1), "l": []}, 1)
        with pytest.raises(errors.UsageError):
            ckpts.restore(state)
        assert not isinstance(state.get("w"), np.ndarray) or not state["w"].any()

    def test_a_part_can_be_restored(self, ckpts: Checkpoints) -> None:
        model, opt = trained()
        ckpts.save({"model": model, "opt": opt}, 1)
        other = {"model": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))}
        ckpts.restore(other)
        assert torch.equal(other["model"][0].weight, model[0].weight)

    def test_one_array_in_two_places_does_not_mix_them(self, ckpts: Checkpoints) -> None:
        ckpts.save({"l": [np.zeros(2), np.ones(2)]}, 1)
        shared = np.full(2, 5.0)
        state: dict[str, Any] = {"l": [shared, shared]}
        ckpts.restore(state)
        assert [one.tolist() for one in state["l"]] == [[0, 0], [1, 1]]

    def test_what_cannot_be_saved_commits_nothing(self, ckpts: Checkpoints) -> None:
        with pytest.raises(errors.NotCheckpointable, match=r"state\['f'\]"):
            ckpts.save({"f": open}, 1)
        with pytest.raises(errors.NotCheckpointable, match="has to be a dict"):
            ckpts.save([1], 1)  # type: ignore[arg-type]
        assert ckpts.steps() == []


class TestExport:
    def test_safetensors(self, ckpts: Checkpoints, tmp_path: Path) -> None:
        st = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
        model, opt = trained()
        ckpts.save({"model": model, "opt": opt}, 1)
        names = st.load_file(ckpts.export(tmp_path / "all.safetensors"))
        assert torch.equal(names["model.0.weight"], model[0].weight)
        names = st.load_file(ckpts.export(str(tmp_path / "m.safetensors"), part="model"))
        assert set(names) == set(model.state_dict())

    def test_pt(self, ckpts: Checkpoints, tmp_path: Path) -> None:
        model, _ = trained()
        ckpts.save({"model": model}, 1)
        path = ckpts.export(tmp_path / "m.pt", part="model")
        model.load_state_dict(torch.load(path, weights_only=True))
        with pytest.raises(errors.UsageError):
            ckpts.export(tmp_path / "m.onnx")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt", "store"]


def test_small_arrays_that_are_entries_themselves_lie_together(ckpts: Checkpoints) -> None:
    """As of `save(model.state_dict(), step)`: each in a chunk of its own is a request each."""
    state = {f"bias.{n}": torch.full((500,), float(n)) for n in range(200)}
    ckpts.save({**state, "note": {"of": "all"}}, 1)
    # with one for the note's and the random generators' own, if they need any
    assert len(ckpts.store.read("checkpoint", ckpts.name, 1)["segments"]) <= 3
    found = ckpts.read(1, only=["bias.7"]).state
    assert list(found) == ["bias.7"]
    assert bool((found["bias.7"] == 7).all())
    live = {name: torch.zeros(500) for name in state}
    ckpts.restore(live)
    assert all(bool((live[name] == tensor).all()) for name, tensor in state.items())
