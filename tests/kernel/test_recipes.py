"""Values that cannot be pickled come back by running the cells that made them, and only those."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from mlcloud.kernel.mentions import mentions
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.recipes import CellRun
from mlcloud.kernel.snapshot import Restoring, Snapshots
from mlcloud.store import Store
from tests.values.pair import execute, notebook


class Kernel:
    """A namespace, its cells and its snapshots; `moved()` is the next kernel."""

    def __init__(self, root: Path, step: int = 0, body: dict[str, Any] | None = None) -> None:
        self.root = root
        self.side = RemoteSide(notebook(), cheap_s=0.0)
        self.snapshots = Snapshots(Store(str(root)), self.side)
        self.step = step
        self.body: dict[str, Any] = body or {}
        self.ran: list[int] = []
        self.result: dict[str, Any] = {}
        if body is not None:
            self._restore(body)

    @property
    def names(self) -> dict[str, Any]:
        return self.side.namespace

    def cell(self, code: str, effects: list[str] | None = None) -> None:
        self.step += 1
        failed = True
        with contextlib.suppress(Exception):
            execute(code, self.names)
            failed = False
        self.side.look(mentions(code))
        of = {"effects": effects or [], "failed": failed}
        run = CellRun(self.step, f"e-{self.step}", code, code, **of)
        self.body = self.snapshots.take(run=run)

    def cells(self, *codes: str) -> None:
        for code in codes:
            self.cell(code)

    def _restore(self, body: dict[str, Any]) -> None:
        restoring: Restoring = self.snapshots.restore(body)
        for run in restoring.cells():
            self.ran.append(run.step)
            try:
                execute(run.code, self.names)
            except Exception as error:
                restoring.failed(run.step, error)
        self.result = restoring.end()

    def moved(self) -> Kernel:
        return Kernel(self.root, self.step, self.body)

    def recipe(self, name: str) -> list[int]:
        cells: list[int] = self.body["recipes"][name]["cells"]
        return cells


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_a_generator_stands_where_it_stood(kernel: Kernel) -> None:
    kernel.cells(
        "def numbers(n):\n    for i in range(n):\n        yield i",
        "gen = numbers(10)",
        "first = next(gen)",
        "other = 5",
        "second = next(gen)",
    )
    assert kernel.recipe("gen") == [2, 3, 5]
    there = kernel.moved()
    assert there.ran == [2, 3, 5]
    assert there.result["missing"] == {}
    assert there.result["rebuilt"] == {"gen": [2, 3, 5]}
    assert list(there.names["gen"]) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert (there.names["first"], there.names["second"], there.names["other"]) == (0, 1, 5)


def test_a_lock_that_is_only_used_takes_one_cell(kernel: Kernel) -> None:
    kernel.cells(
        "import threading\nlock = threading.Lock()",
        "with lock:\n    x = 1",
        "with lock:\n    x += 1",
    )
    assert kernel.recipe("lock") == [1]
    there = kernel.moved()
    assert there.names["x"] == 2
    assert there.names["lock"].acquire(blocking=False)


def test_a_database_in_memory_is_filled_again(kernel: Kernel) -> None:
    kernel.cells(
        "import sqlite3\ndb = sqlite3.connect(':memory:')",
        "db.execute('create table t (a int)')",
        "for i in range(3):\n    db.execute('insert into t values (?)', (i,))",
        "unrelated = 1",
        "rows = db.execute('select sum(a) from t').fetchall()",
    )
    assert kernel.recipe("db") == [1, 2, 3, 5]
    there = kernel.moved()
    assert there.names["db"].execute("select a from t").fetchall() == [(0,), (1,), (2,)]
    assert there.names["rows"] == [(3,)]


def test_a_cell_finds_the_names_as_they_were(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")
    kernel.cells(
        f"path = {str(tmp_path / 'a.txt')!r}",
        "def opened():\n    return open(path)",
        "file = opened()",
        f"path = {str(tmp_path / 'b.txt')!r}",
        "def opened():\n    raise OSError",
    )
    there = kernel.moved()
    assert there.names["file"].read() == "alpha"
    assert there.names["path"].endswith("b.txt")
    with pytest.raises(OSError, match=r"^$"):
        there.names["opened"]()


def test_what_one_cell_needs_of_another_is_made_first(kernel: Kernel) -> None:
    kernel.cells(
        "source = (i * i for i in range(10))",
        "pairs = ((a, a + 1) for a in source)",
        "del source",
        "one = next(pairs)",
    )
    assert kernel.recipe("pairs") == [1, 2, 4]
    there = kernel.moved()
    assert "source" not in there.names
    assert next(there.names["pairs"]) == (1, 2)


def test_bound_anew_forgets_the_cells_before(kernel: Kernel) -> None:
    kernel.cells(
        "g = iter_ = (i for i in 'abc')",
        "next(g)",
        "g = (i for i in 'xyz')",
        "g = (i for i in 'xyz')",
    )
    assert kernel.recipe("g") == [4]
    assert kernel.recipe("iter_") == [1, 2]
    there = kernel.moved()
    assert list(there.names["g"]) == list("xyz")
    assert list(there.names["iter_"]) == ["b", "c"]


def test_aliases_of_what_is_inside_stay_aliases(kernel: Kernel) -> None:
    kernel.cells(
        "items = [1, 2]",
        "walk = (i for i in items)",
        "items.append(3)",
        "done = next(walk)",
    )
    assert kernel.body["skipped"].keys() == {"walk"}
    there = kernel.moved()
    there.names["items"].append(4)
    assert list(there.names["walk"]) == [2, 3, 4]
    assert there.names["items"] == [1, 2, 3, 4]


def test_what_shares_with_it_is_saved_whatever_the_cells_do(kernel: Kernel) -> None:
    kernel.cells(
        "import itertools, threading",
        "clock = iter([10, 20])",
        "class Box: pass\nbox = Box(); box.lock = threading.Lock()\n"
        "box.data = data = [object.__hash__(box)]",
    )
    value = list(kernel.names["data"])
    there = kernel.moved()
    assert there.names["data"] == value  # another run gives another number: the saved one counts
    assert there.names["box"].lock.acquire(blocking=False)


def test_random_states_are_those_of_the_first_run(kernel: Kernel) -> None:
    random.seed(5)
    kernel.cells(
        "import random",
        "a = random.random()",
        "gen = (x for x in [random.random(), random.random()])",
        "b = random.random()",
    )
    expected = [random.random()]
    random.seed(5)
    drawn = [random.random() for _ in range(5)]
    random.seed(99)
    there = kernel.moved()
    assert list(there.names["gen"]) == drawn[1:3]
    assert random.random() == expected[0] == drawn[4]


def test_cells_that_reached_outside_do_not_run_again(kernel: Kernel) -> None:
    kernel.cell("import threading\nlock = threading.Lock()", ["wrote to /data/x"])
    there = kernel.moved()
    assert there.ran == []
    assert "wrote to /data/x" in there.result["missing"]["lock"]


def test_in_doubt_a_cell_that_failed_has_changed_what_it_mentions(kernel: Kernel) -> None:
    opened = "sqlite3.connect(':memory:')"
    kernel.cells(f"import sqlite3\ndata = {opened}\nother = {opened}")
    there = kernel.moved()
    there.side.doubt()  # as after a restore
    there.cell("data.execute('create table t (x)')\n1 / 0")
    assert there.recipe("data") == [1, 2]
    assert there.recipe("other") == [1]
    there.side.doubt()
    there.cell("kept = 1")
    assert 3 in there.recipe("other")


def test_cells_that_fail_now_say_so(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    kernel.cells("kept = 1", f"file = open({str(tmp_path / 'a.txt')!r})")
    (tmp_path / "a.txt").unlink()
    there = kernel.moved()
    assert "FileNotFoundError" in there.result["missing"]["file"]
    assert "file" not in there.names
    assert there.names["kept"] == 1


def test_what_is_over_is_saved_as_it_is(kernel: Kernel, tmp_path: Path) -> None:
    """`with open(…) as f` leaves a closed file behind: no reason to run its cell again."""
    kernel.cells(
        f"with open({str(tmp_path / 'x')!r}, 'w') as text: text.write('x')",
        f"with open({str(tmp_path / 'x')!r}, 'rb') as data: data.read()",
        "gen = (i for i in range(2))\nlist(gen)",
    )
    assert kernel.body["recipes"] == {}
    there = kernel.moved()
    assert there.ran == []
    for name in ("text", "data"):
        assert there.names[name].closed
        assert there.names[name].name == str(tmp_path / "x")
        assert type(there.names[name]) is type(kernel.names[name])
    assert list(there.names["gen"]) == []


def test_it_moves_twice(kernel: Kernel) -> None:
    kernel.cells("gen = (i for i in range(9))", "a = next(gen)")
    second = kernel.moved()
    second.cell("b = next(gen)")
    assert second.recipe("gen") == [1, 2, 3]
    third = second.moved()
    third.cell("other = 1")
    fourth = third.moved()
    assert fourth.result["rebuilt"] == {"gen": [1, 2, 3]}
    assert list(fourth.names["gen"]) == [2, 3, 4, 5, 6, 7, 8]
    assert (fourth.names["a"], fourth.names["b"], fourth.names["other"]) == (0, 1, 1)


def test_made_unpicklable_later_begins_with_what_was_saved(kernel: Kernel) -> None:
    kernel.cells(
        "import time\nd = {'at': time.time_ns()}",
        "d['gen'] = (i for i in range(3))",
        "next(d['gen'])",
    )
    at = kernel.names["d"]["at"]
    assert kernel.recipe("d") == [2, 3]
    there = kernel.moved()
    assert there.names["d"]["at"] == at
    assert list(there.names["d"]["gen"]) == [1, 2]


def test_what_is_gone_needs_no_cells(kernel: Kernel) -> None:
    kernel.cells("gen = (i for i in range(3))", "del gen", "x = 1")
    assert kernel.body["recipes"] == {}
    assert kernel.body["cells"] == {}
