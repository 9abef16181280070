"""Saves that go on beside the training: what is in them, what they cost, how they fail."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints, staging
from mlcloud.store import Store

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"), "exp/1")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is stored before it is set."""
    opened, real = threading.Event(), Store.put_chunk

    def put_chunk(self: Store, data: Any, **options: Any) -> Any:
        assert opened.wait(60)
        return real(self, data, **options)

    monkeypatch.setattr(Store, "put_chunk", put_chunk)
    yield opened
    opened.set()


def test_what_comes_after_is_not_in_it(ckpts: Checkpoints, gate: threading.Event) -> None:
    model = torch.nn.Linear(700, 700)
    opt = torch.optim.Adam(model.parameters())
    strided = torch.arange(12.0).reshape(3, 4).t()
    values, plain = np.arange(10.0), [1, 2]
    state = {"model": model, "opt": opt, "t": strided, "np": values, "plain": plain, "n": 1}
    model(torch.ones(700)).sum().backward()
    opt.step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = opt.state_dict()["state"][0]["exp_avg"].clone()
    saving = ckpts.save(state, 1, metric=0.5, wait=False)
    assert not saving.done()
    opt.step()
    strided.zero_()
    values[:] = 0
    plain.append(3)
    state["n"] = 2
    gate.set()
    assert saving.result(60).metric == 0.5
    assert ckpts.steps() == [1]
    assert ckpts.restore(state) == 1
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert torch.equal(opt.state_dict()["state"][0]["exp_avg"], moments)
    assert torch.equal(strided, torch.arange(12.0).reshape(3, 4).t())
    assert list(values) == list(range(10))
    assert (plain, state["n"]) == ([1, 2], 1)


def test_the_next_one_waits_and_each_is_its_own(ckpts: Checkpoints, gate: threading.Event) -> None:
    weights = torch.zeros(3_000_000)
    first = ckpts.save({"w": weights}, 1, wait=False)
    weights += 1
    opener = threading.Timer(0.2, gate.set)
    opener.start()
    second = ckpts.save({"w": weights}, 2, wait=False)
    assert first.done()
    weights += 1
    third = ckpts.save({"w": weights}, 3)
    assert second.done()
    assert third.step == 3
    assert [float(ckpts.load(step)["w"][7]) for step in (1, 2, 3)] == [0.0, 1.0, 2.0]


def test_the_newest_is_what_is_on_its_way(ckpts: Checkpoints, gate: threading.Event) -> None:
    ckpts.save({"n": 1}, 1, wait=False)
    threading.Timer(0.2, gate.set).start()
    assert ckpts.load() == {"n": 1}


def test_whoever_reads_the_series_waits_for_it(ckpts: Checkpoints, gate: threading.Event) -> None:
    """As a notebook does that trains again, after an interrupt, with a `Checkpoints` of its own."""
    ckpts.save({"n": 1}, 1, wait=False)
    threading.Timer(0.2, gate.set).start()
    assert Checkpoints(ckpts.store.url, ckpts.name).load() == {"n": 1}


def test_a_failure_is_raised_by_who_asks_and_else_told_by_the_next(
    ckpts: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, *_: Any, **__: Any) -> Any:
        raise errors.StoreFull("the store is full")

    state = {"w": torch.zeros(10)}
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_chunk", full)
        saving = ckpts.save(state, 1, wait=False)
        with pytest.raises(errors.StoreFull):
            saving.result(60)
        with pytest.raises(errors.StoreFull):
            ckpts.wait()
        ckpts.save(state, 2, wait=False).exception(60)
    with pytest.warns(UserWarning, match="step 2 was not saved: the store is full"):
        ckpts.save(state, 3)
    assert ckpts.steps() == [3]


def test_an_unchanged_state_is_a_manifest_only(ckpts: Checkpoints) -> None:
    state = {"w": torch.randn(5_000_000), "small": torch.randn(10)}
    torch.manual_seed(0)
    ckpts.save(state, 1, wait=False)
    ckpts.wait()
    chunks = ckpts.store.usage().chunks
    info = ckpts.save(state, 2, wait=False).result()
    assert info.new_bytes == 0
    assert ckpts.store.usage().chunks == chunks


def test_frozen_trained_and_remembered_share_no_chunk(ckpts: Checkpoints) -> None:
    """A LoRA-like step: what is frozen is not uploaded again, however small its tensors are."""
    model = torch.nn.ModuleList(torch.nn.Linear(60, 60) for _ in range(40))
    for layer in list(model)[::2]:
        layer.requires_grad_(False)
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    state = {"model": model, "opt": opt}

    def step() -> None:
        sum(layer(torch.ones(60)).sum() for layer in list(model)[1::2]).backward()
        opt.step()

    step()
    first = ckpts.save(state, 1, wait=False).result()
    step()
    second = ckpts.save(state, 2, wait=False).result()
    frozen = 20 * 61 * 60 * 4
    assert second.new_bytes < first.new_bytes - frozen * 0.95


def test_chunks_that_were_known_and_pruned_are_stored_again(ckpts: Checkpoints) -> None:
    state = {"w": torch.randn(5_000_000)}
    ckpts.save(state, 1)
    # Somebody else removes the step, and its chunks.
    other = Store(ckpts.store.url)
    other.discard("checkpoint", ckpts.name, 1)
    assert other.prune(grace_s=0).chunks > 0
    info = ckpts.save(state, 2, wait=False).result()
    assert info.new_bytes >= 20_000_000
    assert Checkpoints(ckpts.store.url, ckpts.name).verify() == []


def test_a_resumed_process_uploads_only_what_changed(ckpts: Checkpoints) -> None:
    state = {"a": torch.randn(5_000_000), "b": torch.randn(5_000_000)}
    ckpts.save(state, 1)
    again = Checkpoints(ckpts.store.url, ckpts.name)
    again.restore(state)
    asked: list[int] = []
    real = again.store.put_chunk

    def put_chunk(data: Any, **options: Any) -> Any:
        asked.append(memoryview(data).nbytes)
        return real(data, **options)

    again.store.put_chunk = put_chunk  # type: ignore[method-assign]
    state["b"] += 1
    again.save(state, 2)
    assert 20_000_000 <= sum(asked) < 21_000_000


def test_the_stage_is_one_and_stays(ckpts: Checkpoints) -> None:
    state = {"w": torch.zeros(3_000_000)}
    ckpts.prepare(state)
    size = ckpts._stage.nbytes
    for step in range(3):
        state["w"] += 1
        ckpts.save(state, step, wait=False)
    ckpts.wait()
    assert ckpts._stage.nbytes == size
    state["more"] = torch.ones(20_000_000)
    ckpts.save(state, 3, wait=False).result()
    assert ckpts._stage.nbytes > size
    assert ckpts.load(0)["w"][0] == 1.0
    assert ckpts.load(3)["more"][-1] == 1.0


def test_without_room_for_a_copy_the_training_waits(
    ckpts: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlcloud.checkpoint.staging.SHARE", 0.0)
    weights = torch.ones(3_000_000)
    saving = ckpts.save({"w": weights}, 1, wait=False)
    assert saving.done()
    assert ckpts._stage.nbytes == 0
    weights.zero_()
    assert ckpts.load(1)["w"][0] == 1.0


def test_gaps_hold_nothing_of_an_earlier_save(ckpts: Checkpoints) -> None:
    """Else an unchanged slab would be another chunk each time."""
    state = {"a": torch.ones(5), "b": torch.ones(7, dtype=torch.int8), "c": torch.ones(3)}
    first = ckpts.save(state, 1, wait=False).result()
    ckpts.save({"w": torch.full((3_000_000,), 7.0)}, 2, wait=False).result()
    third = Checkpoints(ckpts.store.url, "other").save(state, 3)
    again = ckpts.save(state, 4, wait=False).result()
    assert again.new_bytes == 0
    assert third.new_bytes == 0
    assert first.bytes == again.bytes


@pytest.mark.parametrize("verify", ["blake3", "xxh3"])
def test_damage_is_noticed_by_either_hash(tmp_path: Path, verify: Any) -> None:
    ckpts = Checkpoints(str(tmp_path), "exp", verify=verify)
    state = {"w": torch.randn(5_000_000), "n": 1}
    ckpts.save(state, 1)
    state["w"] += 1
    ckpts.save(state, 2)
    newest = ckpts.store.read("checkpoint", "exp", 2)["segments"][0][0].split(":")[1]
    file = tmp_path / "chunks" / newest[:2] / newest
    raw = bytearray(file.read_bytes())
    raw[12_345_678] ^= 64
    file.write_bytes(raw)
    with pytest.warns(UserWarning, match="going back to step 1"):
        assert ckpts.restore(state) == 1


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    ckpts = Checkpoints(str(tmp_path), "exp")
    ckpts.save({"model": torch.ones(5_000_000), "opt": torch.zeros(9_000_000), "n": 3}, 1)
    for ref in set(ckpts.store.read("checkpoint", "exp", 1)["segments"][1]):
        hash_ = ref.split(":")[1]
        (tmp_path / "chunks" / hash_[:2] / hash_).unlink()
    state = {"model": torch.zeros(5_000_000)}
    assert ckpts.restore(state) == 1
    assert float(state["model"].sum()) == 5_000_000
    with pytest.raises(errors.Damaged):
        ckpts.load(1)


def test_it_travels_as_a_place(ckpts: Checkpoints) -> None:
    ckpts.save({"n": 1}, 1)
    again = pickle.loads(pickle.dumps(Checkpoints(ckpts.store, ckpts.name, keep=3, verify="xxh3")))
    assert again.load() == {"n": 1}
    assert (again.keep.last, again._verify_by) == (3, "xxh3")
    sealed = Checkpoints(Store(ckpts.store.url, key=b"k" * 32), ckpts.name)
    with pytest.raises(errors.NotPicklable, match="may hold a key"):
        pickle.dumps(sealed)


LAST_LINE = """
import torch, sys
from mlcloud import Checkpoints
state = {"w": torch.ones(20_000_000)}
Checkpoints(sys.argv[1], "exp").save(state, 1, wait=False)
"""


def test_a_script_that_ends_waits_for_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LAST_LINE, str(tmp_path)], check=True, timeout=120)
    assert Checkpoints(str(tmp_path), "exp").verify() == []
    assert Checkpoints(str(tmp_path), "exp").steps() == [1]


def test_memory_is_touched_before_it_is_needed() -> None:
    stage = staging.Stage()
    stage.prepare(64 * 2**20)
    memory = stage.take(64 * 2**20)
    resident = Path("/proc/self/smaps_rollup")
    if resident.exists():
        assert any(memory[i] == 0 for i in (0, len(memory) - 1))
    assert memory.nbytes == 64 * 2**20


def test_tensors_of_every_form_are_copied_as_they_are(ckpts: Checkpoints) -> None:
    raw = torch.arange(192, dtype=torch.uint8)
    state: dict[str, Any] = {}
    for dtype in {d for d in vars(torch).values() if isinstance(d, torch.dtype)}:
        if "torch.q" in str(dtype):
            continue  # quantized: nothing that such a view would be
        try:
            state[str(dtype)] = raw.view(dtype).reshape(2, -1)
            state[str(dtype)].t().contiguous()
            state[f"{dtype} turned"] = state[str(dtype)].t()
        except (RuntimeError, NotImplementedError, TypeError):
            pass  # torch makes none of that form
    conj = torch.randn(4, dtype=torch.complex64).conj()
    state |= {"conj": conj, "imag": conj.imag, "none": torch.zeros(0, 3), "one": torch.tensor(3.5)}
    state["wide"] = torch.tensor([1.0, 2.0]).expand(3, 2)
    assert len(state) > 25
    ckpts.save(state, 1, wait=False).result()
    beside = ckpts.load(1)
    ckpts.save(state, 2)
    here = ckpts.load(2)
    for name, value in beside.items():
        assert value.dtype == here[name].dtype
        assert value.shape == here[name].shape
        if value.numel():
            assert bytes(bits(value)) == bytes(bits(here[name])), name


def bits(tensor: Any) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
