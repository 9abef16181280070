"""What is made again instead of stored, and that it comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcloud.kernel.choice import repeatable
from tests.kernel.test_recipes import Kernel
from tests.values.pair import execute

LARGE = 400_000  # numbers: 3.2 MB


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    kernel = Kernel(tmp_path)
    kernel.cell("import numpy as np\nn = 400_000\nrng = np.random.default_rng(3)")
    return kernel


def is_stored(kernel: Kernel, name: str) -> bool:
    return any(name in group["names"] for group in kernel.body["groups"])


@pytest.mark.parametrize(
    "code",
    [
        "x = np.zeros(n)",
        "x = np.arange(n, dtype=np.float32).reshape(-1, 4).T * 2 + 1",
        "x = rng.random((n, 2))",
        "x = np.random.default_rng(5).integers(0, 10, size=n)",
        "x: object = np.full((n // 2, 3), np.pi)\nx.shape",
        "m = 10 ** 5 * 4\nx = np.ones(m) / 3",
    ],
)
def test_a_repeatable_value_is_made_again(kernel: Kernel, code: str) -> None:
    kernel.cell(code)
    assert not is_stored(kernel, "x")
    assert kernel.body["skipped"]["x"].startswith("its cell took ")
    assert kernel.body["recipes"]["x"]["bytes"] > kernel.names["x"].nbytes
    moved = kernel.moved()
    assert moved.ran == [2]
    assert moved.names["x"].tobytes() == kernel.names["x"].tobytes()
    assert moved.names["x"].strides == kernel.names["x"].strides
    assert not moved.result["missing"]
    assert moved.names["rng"].random() == kernel.names["rng"].random()


@pytest.mark.parametrize(
    "code",
    [
        "x = rng.normal(size=n)",
        "x = np.random.default_rng().random(n)",
        "x = np.random.default_rng(seed=None).random(n)",
        "x = np.random.rand(n)",
        "x = np.arange(n) ** 0.5",
        "x = np.sin(np.arange(n))",
        "x = np.arange(n) @ np.ones((n, 1)) + np.zeros(n)",
        "def f(): return np.zeros(n)\nx = f()",
        "x = np.fromfile('/dev/zero', count=n)",
        "for i in range(3): x = np.zeros(n) + i",
        "x = np.zeros(n); x[3] = 1",
        "x, y = [np.zeros(n)] * 2",
    ],
)
def test_all_else_is_stored(kernel: Kernel, code: str) -> None:
    kernel.cell(code)
    assert is_stored(kernel, "x")
    moved = kernel.moved()
    assert moved.ran == []
    assert moved.names["x"].tobytes() == kernel.names["x"].tobytes()


def test_what_takes_longer_to_make_than_to_read_is_stored(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.side.choice.wrote(10**9, 0.0001)  # a store as fast as memory
    kernel.cell("x = rng.random(n)")
    assert not is_stored(kernel, "x")  # it took no time at all
    from mlcloud.kernel import recipes

    made = recipes.CellRun.__init__

    def slow(self: Any, *args: Any, **more: Any) -> None:
        made(self, *args, **{**more, "seconds": 1.0})

    monkeypatch.setattr(recipes.CellRun, "__init__", slow)
    kernel.cell("y = rng.random(n)")
    assert is_stored(kernel, "y")


def test_what_came_of_it_later_is_stored(kernel: Kernel) -> None:
    kernel.cells("x = np.zeros(n)", "y = x.sum()", "z = 1")
    assert not is_stored(kernel, "x")  # it was read only
    kernel.cell("x[7] = 2")
    assert is_stored(kernel, "x")
    moved = kernel.moved()
    assert moved.names["x"][7] == 2
    assert not moved.ran
    kernel.cells("x = np.ones(n)", "part = x[:5]")
    assert is_stored(kernel, "x")  # with its alias
    moved = kernel.moved()
    moved.names["part"][0] = 9
    assert moved.names["x"][0] == 9


def test_what_was_made_of_what_is_not_stored_is(kernel: Kernel) -> None:
    kernel.cells("x = np.zeros(n)", "y = x + 1", "del x")
    assert is_stored(kernel, "y")
    assert np.all(kernel.moved().names["y"] == 1)


def test_an_equal_value_of_another_cell_is_that_cells(kernel: Kernel) -> None:
    kernel.cell("x = np.zeros(n)")
    kernel.cell("x = np.sin(np.zeros(n))", effects=["wrote to /data/out"])
    assert is_stored(kernel, "x")
    assert not kernel.moved().ran


def test_what_ran_beside_the_cells_leaves_nothing_for_certain(kernel: Kernel) -> None:
    kernel.names["rng"].random()  # by a thread, say
    kernel.side.doubt()
    kernel.cell("x = rng.random(n)")
    assert is_stored(kernel, "x")


def test_a_second_move_makes_it_again_too(kernel: Kernel) -> None:
    kernel.cells("x = rng.random(n)", "z = 1")
    moved = kernel.moved()
    moved.cell("z = 2")
    assert not is_stored(moved, "x")
    again = moved.moved()
    assert np.array_equal(again.names["x"], kernel.names["x"])
    moved.cell("x[0] = 5")
    assert is_stored(moved, "x")


def test_another_value_is_told(kernel: Kernel, tmp_path: Path) -> None:
    kernel.cell("x = np.zeros(n)")
    kernel.body["recipes"]["x"]["digest"] = "0" * 64
    moved = kernel.moved()
    assert "made another value than before" in moved.result["missing"]["x"]
    assert len(moved.names["x"]) == LARGE


def test_above_the_limit_cells_make_it_again(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.side.choice.most = 5_000_000
    kernel.cells("import numpy as np", "a = np.sin(np.arange(400_000))")
    assert is_stored(kernel, "a")
    kernel.cell("b = np.cos(np.arange(400_000))")
    kernel.cell("b += a")
    kernel.cell("c = np.tan(np.arange(400_000))", effects=["wrote to /data/out"])
    assert not is_stored(kernel, "b")
    assert not is_stored(kernel, "c")
    assert "snapshot_max (5 MB)" in kernel.body["skipped"]["b"]
    moved = kernel.moved()
    assert moved.ran == [3, 4]
    assert np.array_equal(moved.names["b"], kernel.names["b"])
    assert set(moved.result["missing"]) == {"c"}
    kernel.cell("del a")
    kernel.cell("b *= 2")  # now there is room
    assert is_stored(kernel, "b")


def test_what_is_not_repeatable(kernel: Kernel) -> None:
    space = kernel.names
    execute("import numpy as np\nclass Odd:\n  def __add__(self, x): return x\nodd = Odd()", space)
    stored = set(space)
    assert repeatable("x = np.zeros(n)", space, stored) == {"x"}
    assert not repeatable("x = np.zeros(n)", space, stored - {"n"})
    assert not repeatable("x = odd + 1", space, stored)
    assert not repeatable("x = np.zeros(n) + unknown", space, stored)
    assert not repeatable("x = np.zeros(", space, stored)
    assert not repeatable("x = (y := np.zeros(n))", space, stored)
    assert not repeatable("odd.x = np.zeros(n)", space, stored)
    assert not repeatable("x = np.zeros(n)\nprint(x)", space, stored)
