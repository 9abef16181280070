"""Which steps stay: the newest, the best, one an hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from mlcloud import Checkpoints, Keep, errors


@dataclass
class Step:
    step: int
    created: datetime
    metric: float | None = None


def steps(*metrics: float | None, minutes: float = 20) -> list[Step]:
    began = datetime(2026, 1, 1, tzinfo=timezone.utc)
    span = timedelta(minutes=minutes)
    return [Step(n + 1, began + n * span, metric) for n, metric in enumerate(metrics)]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(), {6}),
        (Keep(last=2), {5, 6}),
        (Keep(last=1, best=2), {2, 4, 6}),
        (Keep(best=1, mode="max"), {1, 6}),
        (Keep(every="1h"), {1, 4, 6}),
        (Keep(every=timedelta(minutes=40)), {1, 3, 5, 6}),
        (Keep(last=9), {1, 2, 3, 4, 5, 6}),
    ],
)
def test_the_rules(keep: Keep, kept: set[int]) -> None:
    assert keep.of(steps(9.0, 2.0, None, 2.0, float("nan"), 5.0)) == kept


def test_of_two_that_are_as_good_the_later_one() -> None:
    assert Keep(best=1).of(steps(2.0, 2.0, 5.0)) == {2, 3}
    assert Keep(best=1).of([]) == set()


@pytest.mark.parametrize(
    "wrong",
    [{"last": 0}, {"best": -1}, {"mode": "best"}, {"every": "soon"}, {"every": "0s"}],
)
def test_what_would_keep_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(errors.UsageError):
        Keep(**wrong)  # type: ignore[arg-type]


def test_a_series_keeps_itself_short(tmp_path: Path) -> None:
    ckpts = Checkpoints(str(tmp_path), keep=Keep(last=2, best=1))
    for step, metric in enumerate([5.0, 1.0, 4.0, 3.0, 2.0], 1):
        ckpts.save({"x": np.full(2_000, step)}, step, metric=metric)
    assert ckpts.steps() == [2, 4, 5]
    ckpts.store.prune(grace_s=0)
    assert ckpts.verify() == []
    assert ckpts.store.usage().unnamed == 0
    assert Checkpoints(str(tmp_path)).prune(keep=Keep(best=1)) == [4]


def test_the_newest_two_are_kept_by_a_number(tmp_path: Path) -> None:
    ckpts = Checkpoints(str(tmp_path), keep=2)
    for step in range(4):
        ckpts.save({"x": step}, step)
    assert ckpts.steps() == [2, 3]
