"""`context.batches` in a process group: the same training on any number of ranks, and a change of
that number in its middle."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlcloud import errors

torch = pytest.importorskip("torch")

from mlcloud.checkpoint import Checkpoints  # noqa: E402
from mlcloud.checkpoint import context as run_context  # noqa: E402
from mlcloud.training.context import TrainContext, _moved  # noqa: E402
from mlcloud.training.result import History  # noqa: E402
from tests.checkpoint import ranks  # noqa: E402

STEPS = 12


class Squares(torch.utils.data.Dataset[Any]):
    """200 samples of a linear task with noise; remembers which were read."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(200, 5, generator=generator)
        self.y = self.x @ torch.arange(5.0) + 0.1 * torch.randn(200, generator=generator)
        self.read: list[int] = []

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.x[index], self.y[index]


class Stop(Exception):
    """Stands for a node that is gone."""


def train(rank: int, folder: str, stop: int | None, every: int, strategy: str) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    checkpoints = Checkpoints(folder, "series")
    context = TrainContext(most=4, every=every, checkpoints=checkpoints, elastic=False)
    model = context.wrap(
        torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), strategy
    )
    opt = torch.optim.AdamW(model.parameters(), lr=0.05)
    data = Squares()
    state = {"model": model, "opt": opt}
    began = None
    for x, y in context.batches(data, global_batch=22, epochs=2, state=state, seed=3):
        began = context.step if began is None else began
        if context.step == stop:
            break
        opt.zero_grad()
        loss = (model(x).squeeze(1) - y).square().mean()
        context.backward(loss)
        opt.step()
        context.report(loss=loss)
    history = context.history
    return began, context.step, history.steps, history.values.get("loss"), history.worlds, data.read


def run(world: int, folder: Path, stop: int | None = None, strategy: str = "ddp") -> list[Any]:
    return ranks.good(world, train, str(folder), stop, 4, strategy)


def losses(found: list[Any]) -> list[float]:
    return [pytest.approx(each, rel=1e-5) for each in found[0][3]]


@pytest.mark.slow
def test_the_loss_curve_is_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    alone = run(1, tmp_path / "1")
    assert alone[0][2] == list(range(1, 19))
    for world in (2, 3):
        found = run(world, tmp_path / str(world))
        assert found[0][3] == losses(alone)
        assert all(each[3] == found[0][3] for each in found)  # means, the same on all ranks
        read = sorted(index for each in found for index in each[5])
        assert read == sorted(alone[0][5])


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_it_goes_on_with_another_number_of_ranks(tmp_path: Path, strategy: str) -> None:
    whole = run(2, tmp_path / "whole", strategy=strategy)
    folder = tmp_path / "cut"
    first = run(3, folder, stop=10, strategy=strategy)
    assert first[0][1] == 10
    steps = Checkpoints(str(folder), "series").steps()
    assert steps
    assert steps[-1] <= 10
    second = run(1, folder, stop=15, strategy=strategy)
    assert second[0][0] == steps[-1]  # from the last commit on, and nothing before it again
    third = run(2, folder, strategy=strategy)
    assert third[0][2] == list(range(1, 19))
    assert third[0][3] == losses(whole)
    assert [world for _, world in third[0][4]] == [3, 1, 2]
    assert run(2, folder, strategy=strategy)[0][0] is None  # it has ended


def report(rank: int, folder: str) -> Any:
    """A loss at each step, a validation now and then, and something of rank 0's alone."""
    torch.set_num_threads(1)
    checkpoints = Checkpoints(folder, "series")
    context = TrainContext(most=4, every=7, checkpoints=checkpoints, elastic=False)
    state = {"model": context.wrap(torch.nn.Linear(5, 1))}
    for _ in context.batches(Squares(), global_batch=20, state=state, epochs=2):
        context.report(loss=float(rank))
        if context.step % 4 == 3:
            context.report(validation=10.0 * context.step, hard=float("nan"))
        if rank == 0 and context.step == 5:
            context.report(mine=3.0)
        if rank == 1 and context.step in (5, 7):
            context.report(theirs=4.0 + context.step)
    history = context.history
    again = History.from_state(history.to_state())
    return history.steps, history.values, history.latest, again.latest, context.step


def test_a_name_may_be_reported_now_and_then_and_by_some_ranks(tmp_path: Path) -> None:
    found = ranks.good(2, report, str(tmp_path))
    assert repr(found[0]) == repr(found[1])  # which have NaN
    steps, values, latest, again, done = found[0]
    assert steps == list(range(1, done + 1)) == list(range(1, 21))
    assert set(map(len, values.values())) == {20}
    assert values["loss"] == [0.5] * 20

    def told(name: str) -> dict[int, float]:
        pairs = zip(steps, values[name], strict=True)
        return {step: value for step, value in pairs if not math.isnan(value)}

    assert told("validation") == {4: 30.0, 8: 70.0, 12: 110.0, 16: 150.0, 20: 190.0}
    assert told("mine") == {6: 3.0}
    assert told("theirs") == {6: 9.0, 8: 11.0}
    assert math.isnan(latest.pop("hard"))  # a loss that is NaN is shown
    assert again == latest == {"loss": 0.5, "validation": 190.0, "mine": 3.0, "theirs": 11.0}


def too_many(rank: int, folder: str) -> Any:
    context = TrainContext(most=2, every=5, checkpoints=Checkpoints(folder, "a"), elastic=False)
    for _ in context.batches(Squares(), global_batch=20, state={}):
        context.report(**{f"v{number}{rank}": number for number in range(8)})


def test_reports_have_fifteen_names_on_all_ranks_together(tmp_path: Path) -> None:
    for found in ranks.run(2, too_many, str(tmp_path)):
        assert isinstance(found, ranks.Ended)
        assert "takes up to 15 names, and 'v71' is one more" in found.error


def leave(rank: int, folder: str) -> Any:
    """A notice in the middle of step 5: all save after the same step, at once."""
    torch.set_num_threads(1)
    from datetime import datetime, timedelta, timezone

    notice = run_context.Notice()
    told: list[dict[str, Any]] = []
    run_context.set_current(
        run_context.RunContext(folder, "s/x", report=told.append, notice=notice)
    )
    context = TrainContext(most=2, every=1000, checkpoints=None, elastic=False)
    model = context.wrap(torch.nn.Linear(5, 1))
    saved_at = []
    for _ in context.batches(Squares(), global_batch=20, state={"model": model}):
        if context.step == 5 and rank == 0:
            notice.set(datetime.now(timezone.utc) + timedelta(seconds=60))
        time.sleep(0.3)
        saved_at.append(context.checkpoints.steps())
    events = [(each["type"], each["step"], each["reason"]) for each in told if "reason" in each]
    return events, context.step


def test_a_notice_saves_on_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    first, second = ranks.good(2, leave, str(tmp_path))
    assert [each for each in first[0] if each[2] == "notice"] == [("checkpoint", 7, "notice")]
    assert first[1] == second[1] == 10


def refuse(rank: int, folder: str) -> Any:
    context = TrainContext(most=2, every=5, checkpoints=Checkpoints(folder, "a"), elastic=False)
    said = []
    for data, batch in ((iter([1]), 4), ([1, 2, 3], 1), ([1], 8)):
        try:
            next(context.batches(data, global_batch=batch, state={}))
        except errors.UsageError as error:
            said.append(str(error))
    torch.distributed.barrier()  # the other one may be connecting still
    return said


def test_data_without_numbers_and_batches_that_are_too_small_are_refused(tmp_path: Path) -> None:
    for said in ranks.good(2, refuse, str(tmp_path)):
        assert "gives no sample by its number" in said[0]
        assert "not enough for up to 2 workers" in said[1]
        assert "more than the 1 samples" in said[2]


def test_a_batch_goes_to_the_device_whole() -> None:
    class Pair(NamedTuple):
        x: Any
        name: str

    a = torch.ones(2)
    batch = {"pair": Pair(a, "n"), "list": [a, (a, 3)], "text": "t"}
    moved = _moved(batch, torch.device("meta"))
    assert moved["pair"].x.is_meta
    assert moved["pair"].name == "n"
    assert moved["list"][0].is_meta
    assert moved["list"][1][0].is_meta
    assert (moved["list"][1][1], moved["text"]) == (3, "t")
    assert not a.is_meta
