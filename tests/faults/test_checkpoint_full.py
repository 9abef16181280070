"""A disk that fills up in the middle of a checkpoint: what was there stays, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints
from mlcloud.store import Store
from tests import disk

np = pytest.importorskip("numpy")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with disk.small(tmp_path / "store", 64) as folder:
        yield folder


@pytest.mark.parametrize("key", [None, b"k" * 32], ids=["plain", "sealed"])
@pytest.mark.parametrize("room", [0, 200_000, 6_000_000, 20_000_000])
def test_the_disk_fills_up_in_the_middle_of_a_save(
    folder: Path, room: int, key: bytes | None
) -> None:
    series = Checkpoints(Store(str(folder), key=key), "exp")
    state = {"w": np.arange(3_000_000, dtype=np.float64), "small": np.arange(1000.0), "n": 1}
    series.save(state, 1)
    before = {path for path in folder.rglob("*") if path.is_file()}
    ballast = disk.fill(folder, but=room)
    state["w"] = state["w"] + 1
    state["n"] = 2
    for _ in range(2):  # and again
        with pytest.raises(errors.StoreFull, match=r"full.*free space.*intact"):
            series.save(state, 2)
    assert series.steps() == [1]
    assert series.load()["n"] == 1
    assert series.verify() == []
    assert list((folder / "tmp").iterdir()) == []
    # only whole chunks that the next try takes up, or a prune
    left = {path for path in folder.rglob("*") if path.is_file()} - before - {ballast}
    assert all(path.is_relative_to(folder / "chunks") for path in left)
    if room:  # a prune takes a few kilobytes itself
        series.prune(1, sweep=True)
    ballast.unlink()
    assert series.save(state, 2).step == 2
    loaded = series.load()
    assert loaded["n"] == 2
    assert np.array_equal(loaded["w"], state["w"])
    assert series.verify() == []
    assert list((folder / "tmp").iterdir()) == []
