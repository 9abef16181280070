"""Sharded states: saved by some ranks, restored by another number of them, or one process."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="sharded states need torch")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402
from torch.distributed.checkpoint.metadata import MetadataIndex  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor  # noqa: E402

from mlcloud import errors  # noqa: E402
from mlcloud.checkpoint import Checkpoints, regions  # noqa: E402
from mlcloud.checkpoint.sharding import parse  # noqa: E402
from mlcloud.store import CHUNK_BYTES, ChunkRef, Store  # noqa: E402
from mlcloud.store.blocks import BLOCK_BYTES  # noqa: E402
from tests.checkpoint.ranks import Ended, good, net, optimizer, run, train  # noqa: E402

MIB = 2**20


def quiet_load(*args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dcp tells that there is no group
        dcp.load(*args, **kwargs)


def quiet_save(*args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(*args, **kwargs)


def raised(call: Callable[[], Any]) -> BaseException:
    """What it raises, also what dcp raises past `Exception`."""
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def full(value: Any) -> Any:
    """Plain tensors for DTensors, anywhere in it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: full(item) for key, item in value.items()}
    return value


def fsdp() -> tuple[Any, Any]:
    model = net()
    fully_shard(model[0])
    fully_shard(model)
    return model, optimizer(model)


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def chunk_file(path: str, ref: str) -> Path:
    hash_ = ChunkRef.parse(ref).hash
    return Path(path) / "chunks" / hash_[:2] / hash_


def flip(file: Path, at: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


# --- FSDP2 ----------------------------------------------------------------------------------------


def save_fsdp(rank: int, path: str) -> Any:
    model, opt = fsdp()
    sched = torch.optim.lr_scheduler.StepLR(opt, 2)
    state = {"model": model, "opt": opt, "sched": sched, "epoch": 7, "seen": [1, 2]}
    ckpts = Checkpoints(path, "exp")
    infos = []
    for step in (1, 2):
        train(model, opt, range(3 * step - 3, 3 * step))
        torch.manual_seed(step * 100 + rank)
        infos.append(ckpts.save(state, step, metric=1 / step, extra={"by": "test"}))
    return infos, torch.rand(2)


def restore_fsdp(rank: int, path: str, step: int | None) -> Any:
    model, opt = fsdp()
    sched = torch.optim.lr_scheduler.StepLR(opt, 2)
    seen: list[int] = []
    state = {"seen": seen, "opt": opt, "model": model, "epoch": 0, "sched": sched}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = Checkpoints(path, "exp").restore(state, step)
    drawn = torch.rand(2)
    train(model, opt, range(3 * restored, 3 * restored + 3))
    moments = full({n: opt.state[p]["exp_avg"] for n, p in model.named_parameters()})
    counts = {float(each["step"]) for each in opt.state.values()}
    fell_back = [str(w.message) for w in caught if "going back" in str(w.message)]
    return {
        "step": restored,
        "model": full(model.state_dict()),
        "moments": moments,
        "counts": counts,
        "rest": (state["epoch"], seen, sched.last_epoch),
        "drawn": drawn,
        "fell back": fell_back,
    }


def reference(steps: int) -> tuple[Any, Any]:
    model = net()
    opt = optimizer(model)
    train(model, opt, range(steps))
    return model, opt


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    path = str(tmp_path_factory.mktemp("fsdp") / "store")
    return path, good(4, save_fsdp, path)


@pytest.fixture
def copy(saved: tuple[str, list[Any]], tmp_path: Path) -> str:
    """A store of one's own to damage."""
    import shutil

    return shutil.copytree(saved[0], str(tmp_path / "store"))


def test_every_rank_is_told_of_the_one_step(saved: tuple[str, list[Any]]) -> None:
    ckpts = Checkpoints(saved[0], "exp")
    assert ckpts.steps() == [1, 2]
    assert all(infos == saved[1][0][0] for infos, _ in saved[1])
    info = ckpts.info()[-1]
    assert (info.step, info.metric, info.extra) == (2, 0.5, {"by": "test"})
    assert info.bytes == info.new_bytes > 10_000
    assert ckpts.verify() == []
    assert ckpts.store.usage().unnamed == 0


@pytest.mark.parametrize("world", [2, 3, 4])
def test_another_number_of_ranks_goes_on(saved: tuple[str, list[Any]], world: int) -> None:
    model, opt = reference(9)
    moments = {n: opt.state[p]["exp_avg"] for n, p in model.named_parameters()}
    for rank, found in enumerate(good(world, restore_fsdp, saved[0], None)):
        assert found["step"] == 2
        assert found["rest"] == (7, [1, 2], 0)
        assert found["counts"] == {9.0}
        same(found["model"], dict(model.state_dict()))
        same(found["moments"], moments)
        # Random numbers go on where each rank was, if there are as many.
        assert torch.equal(found["drawn"], saved[1][rank][1]) == (world == 4)


def test_one_process_goes_on(saved: tuple[str, list[Any]]) -> None:
    model = net()
    opt = optimizer(model)
    state = {"model": model, "opt": opt, "epoch": 0}
    assert Checkpoints(saved[0], "exp").restore(state, 2) == 2
    assert state["epoch"] == 7
    same(dict(model.state_dict()), dict(reference(6)[0].state_dict()))
    train(model, opt, range(6, 9))
    wanted, wanted_opt = reference(9)
    same(dict(model.state_dict()), dict(wanted.state_dict()))
    same(opt.state_dict()["state"], wanted_opt.state_dict()["state"])


def test_one_process_loads_whole_tensors(saved: tuple[str, list[Any]], tmp_path: Path) -> None:
    ckpts = Checkpoints(saved[0], "exp")
    loaded = ckpts.load(1)
    model, opt = reference(3)
    assert list(loaded) == ["model", "opt", "sched", "epoch", "seen"]
    same(loaded["model"], dict(model.state_dict()))
    assert list(loaded["model"]) == list(model.state_dict())
    same(
        loaded["opt"]["state"]["2.weight"]["exp_avg"],
        opt.state[model[2].weight]["exp_avg"],
    )
    assert (loaded["epoch"], loaded["seen"], loaded["sched"]["last_epoch"]) == (7, [1, 2], 0)
    assert "model.0.weight" in {row.name for row in ckpts.show()}
    assert {d.what for d in ckpts.diff(1, 2)} == {"changed"}
    exported = torch.load(ckpts.export(tmp_path / "model.pt", part="model"))
    same(exported, dict(reference(6)[0].state_dict()))


def test_another_module_is_refused_in_one_process(saved: tuple[str, list[Any]]) -> None:
    model = nn.Sequential(nn.Linear(16, 32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(errors.UsageError, match=r"no place for .*1\.bias"):
        Checkpoints(saved[0], "exp").restore({"model": model})
    same(dict(model.state_dict()), before)


def misfit(rank: int, path: str) -> Any:
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 7))
    fully_shard(model)
    opt = optimizer(model)
    before = full({n: v.clone() for n, v in model.state_dict().items()})
    ckpts = Checkpoints(path, "exp")
    found = [
        raised(lambda: ckpts.restore({"model": model, "opt": opt})),
        raised(lambda: ckpts.restore({"other": model})),
        raised(lambda: ckpts.restore({"model": model}, 9)),
        raised(lambda: ckpts.restore({"opt": opt})),
        raised(lambda: Checkpoints(path, "none").restore({"model": model})),
        # One rank that cannot go on takes all with it.
        raised(lambda: ckpts.save({"model": model, "f": print if rank == 1 else 1}, 5 + rank)),
        raised(lambda: ckpts.save({"model": model, "rest": print}, 5)),
    ]
    same(full(dict(model.state_dict())), before)
    assert not opt.state
    return [(type(each).__name__, str(each)) for each in found]


def test_what_does_not_fit_is_refused_on_all_ranks(saved: tuple[str, list[Any]]) -> None:
    ranks = good(2, misfit, saved[0])
    assert ranks[0] == ranks[1]
    kinds, texts = zip(*ranks[0], strict=True)
    assert kinds == (
        *("UsageError", "UsageError", "NoCheckpoint", "NotCheckpointable", "NoCheckpoint"),
        *("UsageError", "NotCheckpointable"),
    )
    assert "another module" in texts[0]
    assert "has no state['other']" in texts[1]
    assert "step 9" in texts[2]
    assert "no module in the state has all of its parameters" in texts[3]
    assert "different steps (5, 6)" in texts[5]
    assert "state['rest']" in texts[6]
    assert Checkpoints(saved[0], "exp").steps() == [1, 2]


# --- faults ---------------------------------------------------------------------------------------


def shard_of(path: str, step: int, name: str, rank: int = 0) -> Path:
    """The file in which a rank's shard of a tensor lies."""
    store = Store(path)
    body = store.read("checkpoint", "exp", step)
    described = parse(store, body, "it")
    shards = described.metadata.state_dict_metadata[name].chunks
    place = described.metadata.storage_data[MetadataIndex(name, shards[rank].offsets)]
    return chunk_file(path, body["chunks"][place.first])


@pytest.mark.parametrize("what", ["shard", "content", "manifest", "missing"])
def test_damage_takes_all_ranks_a_step_back(copy: str, what: str) -> None:
    body = Store(copy).read("checkpoint", "exp", 2)
    if what == "shard":
        flip(shard_of(copy, 2, "opt.state.2.weight.exp_avg", 3))
    elif what == "missing":
        shard_of(copy, 2, "model.0.weight", 1).unlink()
    elif what == "content" and isinstance(body["content"], list):
        flip(chunk_file(copy, body["content"][0]))
    else:
        flip(next(Path(copy).rglob("000000000002.json")), 200)
    wanted = dict(reference(6)[0].state_dict())
    for found in good(3, restore_fsdp, copy, None):
        assert found["step"] == 1
        assert len(found["fell back"]) == 1
        assert "step 2 cannot be loaded" in found["fell back"][0]
        same(found["model"], wanted)
        assert found["counts"] == {6.0}
    assert Checkpoints(copy, "exp").verify(2) != []
    with pytest.warns(UserWarning, match="going back to step 1"):
        same(Checkpoints(copy, "exp").load()["model"], dict(reference(3)[0].state_dict()))


def restore_damaged(rank: int, path: str) -> Any:
    model, opt = fsdp()
    before = full({n: v.clone() for n, v in model.state_dict().items()})
    ckpts = Checkpoints(path, "exp")
    sched = torch.optim.lr_scheduler.StepLR(opt, 2)
    state = {"model": model, "opt": opt, "sched": sched, "epoch": 0, "seen": [1]}
    error = raised(lambda: ckpts.restore(state, 2))
    untouched = not opt.state and state["epoch"] == 0
    same(full(dict(model.state_dict())), before)
    weights = {"model": dict(model.state_dict())}
    stock = raised(lambda: dcp.load(weights, storage_reader=ckpts.reader(2)))
    assert isinstance(stock, CheckpointException)
    causes = {type(pair[0]).__name__ for pair in stock.failures.values()}
    # Saved again. Each rank knows of the damage what it met, and tells the others.
    ckpts.restore(state, 1)
    train(model, opt, range(3, 6))
    torch.manual_seed(200 + rank)
    ckpts.save(state, 2)
    healed = ckpts.verify(2)
    # With other content, over a step that cannot be loaded.
    dist.barrier()
    if rank == 0:
        flip(next(Path(path).rglob("000000000001.json")), 200)
    dist.barrier()
    ckpts.save({"model": model}, 1)
    replaced = ckpts.verify(1)
    kept = type(raised(lambda: ckpts.save({"model": model, "more": 1}, 1))).__name__
    return type(error).__name__, untouched, causes, healed, replaced, kept


def test_a_damaged_step_changes_nothing_and_is_replaced(copy: str) -> None:
    flip(shard_of(copy, 2, "model.0.weight"))
    for found in good(4, restore_damaged, copy):
        assert found == ("Damaged", True, {"Damaged"}, [], [], "StepExists")
    ckpts = Checkpoints(copy, "exp")
    same(ckpts.load(2)["model"], dict(reference(6)[0].state_dict()))
    assert list(ckpts.load(1)) == ["model"]


def heard(rank: int, path: str) -> Any:
    model, _ = fsdp()
    ckpts = Checkpoints(path, "exp")
    ckpts.save({"model": model}, 1)
    if rank == 1:  # it alone meets the damage of what rank 0 will write
        flip(shard_of(path, 1, "model.0.weight", 0))
        assert isinstance(raised(ckpts.load), errors.Damaged)
    dist.barrier()
    sizes = [ckpts.save({"model": model}, step).new_bytes for step in (2, 3)]
    return ckpts.verify(), sizes[0] > sizes[1]


def test_what_one_rank_found_damaged_another_writes_again(tmp_path: Path) -> None:
    assert good(2, heard, str(tmp_path / "store")) == [([], True)] * 2


def die_in_save(rank: int, path: str) -> Any:
    model, opt = fsdp()
    ckpts = Checkpoints(path, "exp")
    ckpts.restore({"model": model, "opt": opt})
    train(model, opt, range(6, 9))
    if rank == 1:
        put = ckpts.store.put_chunk

        def last(*args: Any, **kwargs: Any) -> Any:
            put(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        ckpts.store.put_chunk = last  # type: ignore[method-assign]
    ckpts.save({"model": model, "opt": opt}, 3)


def test_a_rank_killed_in_a_save_commits_nothing(copy: str) -> None:
    ended = run(3, die_in_save, copy)
    assert all(isinstance(each, Ended) for each in ended)
    assert ended[1].code == -signal.SIGKILL
    ckpts = Checkpoints(copy, "exp")
    assert ckpts.steps() == [1, 2]
    assert ckpts.store.usage().unnamed > 0  # it had begun to upload
    assert {found["step"] for found in good(2, restore_fsdp, copy, None)} == {2}
    ckpts.store.prune(grace_s=0)
    assert ckpts.store.usage().unnamed == 0
    assert ckpts.verify() == []


def swept_meanwhile(rank: int, path: str) -> Any:
    model, opt = fsdp()
    ckpts = Checkpoints(path, "exp")
    content = {"model": model, "opt": opt}
    commit = ckpts.store.commit
    sweeps = []

    def late(*args: Any, **kwargs: Any) -> Any:
        # A collector runs when all is uploaded, and nothing of it is named yet.
        if not sweeps:
            sweeps.append(Store(path).prune(grace_s=0))
        return commit(*args, **kwargs)

    ckpts.store.commit = late  # type: ignore[method-assign]
    info = ckpts.save(content, 3)
    return info.step, bool(sweeps)


def test_a_save_whose_chunks_are_swept_is_done_again(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    assert good(2, swept_meanwhile, path) == [(3, True), (3, False)]
    ckpts = Checkpoints(path, "exp")
    assert ckpts.steps() == [3]
    assert ckpts.verify() == []


# --- what is saved --------------------------------------------------------------------------------


def save_fresh(rank: int, path: str) -> Any:
    model, opt = fsdp()
    ckpts = Checkpoints(path, "exp", keep=2)
    ckpts.save({"model": model, "opt": opt}, 0)
    fresh = not opt.state
    train(model, opt, range(3))
    ckpts.restore({"model": model, "opt": opt}, 0)
    reset = not opt.state
    train(model, opt, range(3))
    same(full(dict(model.state_dict())), dict(reference(3)[0].state_dict()))
    # Only the head is trained: all else is the same chunks.
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    head = optimizer(model[2])
    sizes = []
    for step in (1, 2, 3):
        train(model, head, range(step, step + 1))
        torch.manual_seed(0)
        sizes.append(ckpts.save({"model": model, "head": head}, step).new_bytes)
    again = ckpts.save({"model": model, "head": head}, 3)
    return fresh, reset, sizes, again.new_bytes, ckpts.steps()


def test_fresh_optimizers_frozen_parameters_and_repeated_saves(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    for fresh, reset, sizes, again, steps in good(2, save_fresh, path):
        assert fresh  # a save is no step of the optimizer
        assert reset
        assert sizes[1] < sizes[0]
        assert again == 0
        assert steps == [2, 3]
    for rank in (0, 1):
        frozen, head = ("model.0.weight", "model.1.bias"), "model.2.weight"
        before, after = ([shard_of(path, n, name, rank) for name in frozen] for n in (2, 3))
        assert before == after  # the same chunk, not written again
        assert shard_of(path, 2, head, rank) != shard_of(path, 3, head, rank)


def sealed(rank: int, path: str) -> Any:
    model, opt = fsdp()
    train(model, opt, range(3))
    ckpts = Checkpoints(Store(path, key=b"k" * 32), "exp")
    saving = ckpts.save({"model": model, "opt": opt}, 1, wait=False)
    committed = saving.done()  # together they save at once
    again, other = fsdp()
    ckpts.restore({"model": again, "opt": other})
    same(full(dict(again.state_dict())), dict(reference(3)[0].state_dict()))
    keyless = raised(lambda: Checkpoints(path, "exp").restore({"model": again}))
    return committed, type(keyless).__name__


def test_sealed_stores(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    assert good(2, sealed, path) == [(True, "Sealed")] * 2
    loaded = Checkpoints(Store(path, key=b"k" * 32), "exp").load()
    same(loaded["model"], dict(reference(3)[0].state_dict()))


def lone_rank(rank: int, path: str) -> Any:
    ckpts = Checkpoints(path, "ddp")
    model = net()
    ddp = nn.parallel.DistributedDataParallel(model)
    opt = optimizer(ddp)
    train(ddp, opt, range(2))
    if rank == 0:  # as ever: the others need not be there
        ckpts.save({"model": ddp, "opt": opt}, 1)
    dist.barrier()
    other = nn.parallel.DistributedDataParallel(nn.Sequential(*net()))
    ckpts.restore({"model": other})
    same(dict(other.state_dict()), dict(ddp.state_dict()))
    # A step of sharded ranks is read by a plain model, each rank for itself.
    if rank == 1:
        Checkpoints(path.replace("ddp", "fsdp"), "exp").restore({"model": ddp, "opt": opt}, 1)
        same(dict(model.state_dict()), dict(reference(3)[0].state_dict()))
    return Checkpoints(path, "ddp").store.read("checkpoint", "ddp", 1)["format"]


def test_plain_tensors_in_a_group_are_saved_by_one_rank(
    saved: tuple[str, list[Any]], tmp_path: Path
) -> None:
    os.symlink(saved[0], tmp_path / "fsdp")
    assert good(2, lone_rank, str(tmp_path / "ddp")) == [2, 2]


def alone(rank: int, path: str) -> Any:
    mesh = init_device_mesh("cpu", (1,))
    tensor = distribute_tensor(torch.arange(4.0), mesh, [Shard(0)])
    dist.destroy_process_group()
    return str(raised(lambda: Checkpoints(path).save({"w": tensor}, 1)))


def test_a_shard_without_its_group_is_refused(tmp_path: Path) -> None:
    (text,) = good(1, alone, str(tmp_path))
    assert "state['w']" in text
    assert "not supported yet" in text
    assert "every rank of an initialized torch.distributed group" in text


# --- dcp's own front door, and how much is read ---------------------------------------------------


def layouts(world: int) -> dict[str, tuple[Any, list[Any]]]:
    line = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, 2) if world == 4 else (world, 1))
    return {
        "rows": (line, [Shard(0)]),
        "columns": (line, [Shard(1)]),
        "whole": (line, [Replicate()]),
        "grid": (grid, [Shard(0), Shard(1)]),
        "hybrid": (grid, [Replicate(), Shard(1)]),
    }


def tensors(world: int, *, filled: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for number, (name, (mesh, placements)) in enumerate(layouts(world).items()):
        for size in (2048, 17):  # 8 MiB each, and a small one that cannot be cut evenly
            rows = 1024 if size == 2048 else 5
            whole = torch.arange(rows * size, dtype=torch.float32).reshape(rows, size) + number
            made[f"{name}{size}"] = distribute_tensor(
                whole if filled else torch.zeros_like(whole), mesh, placements
            )
    return made


OBJECTS = {
    "text": "é" * 5000,
    "number": 2**80,
    "nothing": None,
    "pair": (1, 2.5, b"x"),
    "array": np.arange(4.0),
    "groups": [{"lr": 0.1, "params": ["a"]}],
}


def stock_save(rank: int, path: str, asynchronously: bool) -> Any:
    state = {
        "w": tensors(dist.get_world_size(), filled=True),
        "objects": OBJECTS,
        "half": torch.arange(10, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "z": torch.arange(6.0).to(torch.complex64).reshape(2, 3).t(),
        "none": torch.empty(0, 3),
    }
    writer = Checkpoints(path, "dcp").writer(4, metric=2.0)
    if asynchronously:
        pending = dcp.async_save(state, storage_writer=writer)
        pending.result()
    else:
        dcp.save(state, storage_writer=writer)
    return writer.made is not None


def stock_load(rank: int, path: str) -> Any:
    world = dist.get_world_size()
    objects: dict[str, Any] = dict.fromkeys(OBJECTS)
    objects["groups"] = [{"lr": 0, "params": []}]
    state: dict[str, Any] = {
        "w": tensors(world, filled=False),
        "objects": objects,
        "half": torch.zeros(10),
        "flag": torch.tensor(False),
        "z": torch.zeros(3, 2, dtype=torch.complex64),
        "none": torch.empty(0, 3),
    }
    reader = Checkpoints(path, "dcp").reader()
    dcp.load(state, storage_reader=reader)
    for name, wanted in tensors(world, filled=True).items():
        assert torch.equal(state["w"][name].to_local(), wanted.to_local()), name
    array = state["objects"].pop("array")
    assert np.array_equal(array, OBJECTS["array"])
    assert state["objects"] == {k: v for k, v in OBJECTS.items() if k != "array"}
    assert torch.equal(state["half"], torch.arange(10.0))
    assert state["flag"]
    assert state["z"][1, 1] == 4
    ratios = {}
    for name in layouts(world):
        part = {"w": {f"{name}2048": tensors(world, filled=False)[f"{name}2048"]}}
        one = Checkpoints(path, "dcp").reader(4)
        dcp.load(part, storage_reader=one)
        assert one.bytes_needed == part["w"][f"{name}2048"].to_local().nbytes
        ratios[name] = (one.bytes_read, one.bytes_needed)
    return ratios, (reader.bytes_read, reader.bytes_needed)


@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 3)])
def test_dcp_saves_and_loads_by_its_own_planners(tmp_path: Path, old: int, new: int) -> None:
    path = str(tmp_path / "store")
    assert good(old, stock_save, path, old == 2) == [True] + [False] * (old - 1)
    found = good(new, stock_load, path)
    # Of each tensor of 8 MiB, and of everything together.
    for name in found[0][0]:
        read, needed = (sum(each[0][name][n] for each in found) for n in (0, 1))
        assert needed <= read <= 1.1 * needed, (name, read / needed)
    read, needed = (sum(each[1][n] for each in found) for n in (0, 1))
    assert read <= 1.1 * needed
    ckpts = Checkpoints(path, "dcp")
    assert ckpts.info()[0].metric == 2.0
    whole = ckpts.load()
    for name in ("rows", "columns", "whole", "grid", "hybrid"):
        number = list(layout_names()).index(name)
        wanted = torch.arange(5 * 17, dtype=torch.float32).reshape(5, 17) + number
        assert torch.equal(whole["w"][f"{name}17"], wanted)
    assert whole["objects"]["pair"] == (1, 2.5, b"x")
    assert whole["half"].dtype == torch.bfloat16
    # Written once: what is whole on every rank, and what is twice on the mesh.
    body = ckpts.store.read("checkpoint", "dcp", 4)
    assert body["bytes"] < 5 * 8 * MIB + MIB


def layout_names() -> list[str]:
    return ["rows", "columns", "whole", "grid", "hybrid"]


def spread(rank: int, path: str) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {f"t{n}": distribute_tensor(torch.rand(1000), mesh, [Replicate()]) for n in range(8)}
    ckpts = Checkpoints(path)
    put, sizes = ckpts.store.put_chunk, []

    def count(data: Any, **kwargs: Any) -> Any:
        sizes.append(len(data))
        return put(data, **kwargs)

    ckpts.store.put_chunk = count  # type: ignore[method-assign]
    dcp.save(state, storage_writer=ckpts.writer(1))
    return sum(sizes)


def test_what_all_ranks_have_is_written_once_by_several(tmp_path: Path) -> None:
    sizes = good(2, spread, str(tmp_path / "store"))
    assert all(12_000 < size < 24_000 for size in sizes)
    assert sum(sizes) < 8 * 4000 + 4000


# --- in one process: the planner's protocol without a group ---------------------------------------


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"), "exp")


def test_the_store_holds_no_pickle(ckpts: Checkpoints) -> None:
    """What is no tensor is JSON, and what is loaded by `torch.load` was made here."""
    quiet_save({"a": torch.ones(3), "o": {"x": (1, "y")}}, storage_writer=ckpts.writer(1))
    body = ckpts.store.read("checkpoint", "exp", 1)
    assert (body["format"], len(body["chunks"])) == (3, 1)
    assert chunk_file(ckpts.store.folder, body["chunks"][0]).read_bytes() == (
        np.ones(3, np.float32).tobytes()
    )
    assert body["content"]["objects"] == {
        "o.x": {"tree": {"$": "tuple", "v": [1, "y"]}, "blobs": []}
    }
    for file in Path(ckpts.store.folder).rglob("*.json"):
        json.loads(file.read_text())


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (print, "no form that can be saved"),
        (random.Random(1), r"state_dict\(\)"),
        (torch.eye(3).to_sparse(), "sparse"),
    ],
)
def test_what_has_no_safe_form_is_refused_by_name(ckpts: Checkpoints, value: Any, why: str) -> None:
    error = raised(lambda: quiet_save({"a": {"bad": value}}, storage_writer=ckpts.writer(1)))
    assert isinstance(error, CheckpointException)
    (cause, _) = error.failures[0]
    assert isinstance(cause, errors.NotCheckpointable)
    assert "state['a.bad']" in str(cause)
    assert __import__("re").search(why, str(cause))
    assert ckpts.steps() == []


def test_steps_and_what_is_said_of_them(ckpts: Checkpoints) -> None:
    none = raised(lambda: quiet_load({}, storage_reader=ckpts.reader()))
    assert isinstance(none.failures[0][0], errors.NoCheckpoint)  # type: ignore[attr-defined]
    state = {"a": torch.arange(3.0)}
    quiet_save(state, storage_writer=ckpts.writer(1))
    quiet_save(state, storage_writer=ckpts.writer(1))  # the same again
    other = raised(lambda: quiet_save({"a": torch.ones(3)}, storage_writer=ckpts.writer(1)))
    assert isinstance(other.failures[0][0], errors.StepExists)  # type: ignore[attr-defined]
    quiet_save({"a": torch.ones(3)}, storage_writer=ckpts.writer(0), checkpoint_id="2")
    assert ckpts.steps() == [1, 2]
    target = {"a": torch.zeros(3)}
    reader = ckpts.reader()
    quiet_load(target, storage_reader=reader)
    assert target["a"].tolist() == [1, 1, 1]
    quiet_save({"a": torch.full((3,), 3.0)}, storage_writer=ckpts.writer(3))
    quiet_load(target, storage_reader=reader)  # a reader used again looks again
    assert target["a"].tolist() == [3, 3, 3]
    quiet_load(target, storage_reader=ckpts.reader(1))
    assert target["a"].tolist() == [0, 1, 2]
    # A step that one process saved whole is no step for dcp, and says how to read it.
    ckpts.save({"a": 1}, 4)
    whole = raised(lambda: quiet_load(target, storage_reader=ckpts.reader(4)))
    assert "Checkpoints.load" in str(whole)
    with pytest.raises(errors.UsageError):
        ckpts.writer(1).set_up_storage_writer(True, rank=0, use_collectives=False)


def test_a_state_that_is_too_long_for_the_manifest(ckpts: Checkpoints) -> None:
    state = {f"layer{n}": torch.full((4,), float(n)) for n in range(1500)}
    quiet_save(state, storage_writer=ckpts.writer(1))
    body = ckpts.store.read("checkpoint", "exp", 1)
    assert isinstance(body["content"], list)
    ckpts.store.prune(grace_s=0)
    loaded = ckpts.load()
    assert loaded["layer1499"].tolist() == [1499.0] * 4
    # Small tensors that lie side by side are read at once.
    reader = ckpts.reader()
    target = {f"layer{n}": torch.zeros(4) for n in range(1500)}
    quiet_load(target, storage_reader=reader)
    assert reader.bytes_read < 2 * 1500 * 64
    assert target["layer7"].tolist() == [7.0] * 4


SHAPES = [(1, (7, 5, 3)), (2, (3, 300_000)), (3, (2200, 900)), (4, (2**21 + 9,)), (5, ())]


@pytest.mark.parametrize(("seed", "shape"), SHAPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_any_box_of_a_shard(
    ckpts: Checkpoints, monkeypatch: pytest.MonkeyPatch, seed: int, shape: Any, axis: int
) -> None:
    """Against slices of the tensor; chunks and blocks made small, so that boxes cross many."""
    if axis >= len(shape):
        axis = 0
    draw = random.Random(seed)
    whole = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    stored = whole.movedim(axis, 0).contiguous() if shape else whole
    quiet_save({"t": stored}, storage_writer=ckpts.writer(1))
    step = parse(ckpts.store, ckpts.store.read("checkpoint", "exp", 1), "step 1")
    (place,) = step.metadata.storage_data.values()
    place = type(place)(place.first, place.offset, place.nbytes, axis, shape)
    monkeypatch.setattr(regions, "CHUNK_BYTES", 300_000)  # the buffers
    for _ in range(12):
        low = [draw.randrange(size) for size in shape]
        high = [draw.randrange(at, size) + 1 for at, size in zip(low, shape, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        for target in (
            torch.zeros_like(whole[box]),
            torch.zeros(whole[box].shape).double().mT.contiguous().mT
            if len(shape) > 1
            else torch.zeros_like(whole[box]),
        ):
            read = regions.read(
                ckpts.store, step, [regions.Region(place, low, whole.dtype, target)]
            )
            assert torch.equal(target, whole[box])
            assert read <= stored.nbytes + 4 * BLOCK_BYTES * (1 + stored.nbytes // 300_000)


def test_far_apart_rows_are_read_by_themselves(ckpts: Checkpoints) -> None:
    whole = torch.arange(20 * 250_000, dtype=torch.float32).reshape(20, 250_000)
    assert whole.nbytes > CHUNK_BYTES
    quiet_save({"t": whole}, storage_writer=ckpts.writer(1))
    step = parse(ckpts.store, ckpts.store.read("checkpoint", "exp", 1), "step 1")
    (place,) = step.metadata.storage_data.values()
    target = torch.zeros(20, 100)
    read = regions.read(
        ckpts.store, step, [regions.Region(place, (0, 1000), torch.float32, target)]
    )
    assert torch.equal(target, whole[:, 1000:1100])
    assert read <= 20 * 2 * BLOCK_BYTES < whole.nbytes
