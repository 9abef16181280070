"""What a cell may have changed is found from its code; the rest is not even looked at."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import types
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlcloud import errors
from mlcloud.kernel import activity
from mlcloud.kernel.mentions import EVERYTHING, mentions, used_by
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.kernel.tracking import Later
from mlcloud.store import Store
from mlcloud.values.messages import Shipment
from tests.values.pair import execute, notebook

LOOKED = """
class Looked:
    count = 0
    def __init__(self, value=0): self.value = value
    def __getstate__(self):
        Looked.counts[self.value] = Looked.counts.get(self.value, 0) + 1
        return self.__dict__
Looked.counts = {}
"""


class Session:
    """A namespace whose cells run one after the other, each followed by its snapshot."""

    def __init__(self, root: Path, cheap_s: float = 0.0) -> None:
        self.store = Store(str(root))
        self.side = RemoteSide(notebook(), cheap_s=cheap_s)
        self.snapshots = Snapshots(self.store, self.side)
        self.body: dict[str, Any] = {}
        self.looked: set[str] = set()

    @property
    def names(self) -> dict[str, Any]:
        return self.side.namespace

    def cell(self, code: str) -> None:
        with contextlib.suppress(Exception):
            execute(code, self.names)
        scan = self.side.look(mentions(code))
        self.looked = {*scan.pickled, *scan.failed}
        self.body = self.snapshots.take()

    def cell_later(self, code: str, heavy: Collection[str], save: bool) -> None:
        """As `cell`, but `heavy` names stay here, and the state is perhaps not saved yet."""
        self.side.load(Shipment())
        with contextlib.suppress(Exception):
            execute(code, self.names)
        later = Later(heavy.__contains__, heavy.__contains__, limit=0)
        self.side.look(mentions(code), later)
        if save:
            self.body = self.snapshots.take()

    def restored(self) -> dict[str, Any]:
        """The names as a new kernel has them after a move."""
        side = RemoteSide(notebook())
        restoring = Snapshots(self.store, side).restore(self.body)
        for run in restoring.cells():
            execute(run.code, side.namespace)
        restoring.end()
        return side.namespace


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


CHANGES = {
    "by its name": ("x = [1]", "x.append(2)"),
    "through an alias": ("x = [1]; y = x", "y.append(2)"),
    "deep inside": ("x = {'a': [1]}; y = x['a']", "y.append(2)"),
    "from inside outwards": ("y = [1]; x = {'a': y}", "y.append(2)"),
    "by a function": ("x = [1]\ndef f(): x.append(2)", "f()"),
    "by a function's function": ("x = [1]\ndef g(): x.append(2)\ndef f(): g()", "f()"),
    "by a function made here": ("x = [1]", "def f(): x.append(2)\nf()"),
    "by one that is gone again": ("x = [1]", "def f(): x.append(2)\nf()\ndel f"),
    "by a closure": ("x = [1]\ndef make(y): return lambda: y.append(2)\nf = make(x)", "f()"),
    "by a method": ("x = [1]\nclass C:\n def m(self): x.append(2)\nc = C()", "c.m()"),
    "by a default": ("x = [1]\ndef f(y=x): y.append(2)", "f()"),
    "by a generator": ("x = [1]\ndef g():\n while True: x.append(2); yield\ni = g()", "next(i)"),
    "through exec": ("x = [1]", "exec('x.' + 'append(2)')"),
    "through globals": ("x = [1]", "globals()['x'].append(2)"),
    "through a word in a string": ("x = [1]", "import operator\nd = {'x': x}\nd['x'].append(2)"),
    "by a comprehension": ("x = [1]", "[x.append(i) for i in (2,)]"),
    "of what is replaced by its equal": (
        "x = {'a': [1]}; y = x['a']",
        "old = x['a']; x['a'] = [1]; old.append(2); del old",
    ),
    "of what was bound anew to its equal": (
        "x = [1]; y = [x]",
        "old = x; x = [1]; old.append(2); del old",
    ),
    "back and forth": ("x = [1]; y = x", "x.append(2); x.pop(); x[0] = 3"),
    "bound anew": ("x = [1]; y = x", "x = [1, 2]"),
    "an alias bound anew": ("x = [1]; y = x", "y = [1]\nx.append(2)"),
    "deleted": ("x = [1]; y = x", "del x\ny.append(2)"),
    "by an attribute of a class": ("class K: pass\nK.x = [1]\nx = K.x", "K.x.append(2)"),
    "of a class in place": ("class K: n = 1\nx = K()", "K.n = 2"),
    "in a numpy view": ("import numpy as n\nx = n.zeros(9)\ny = x[3:]", "y[0] = 5"),
    "in a frame": ("import pandas as p\nx = p.DataFrame({'a': [1, 2]})\ny = x", "y['b'] = 1"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_found(session: Session, how: str) -> None:
    before, change = CHANGES[how]
    session.cell("other = [0] * 10")
    session.cell(before)
    session.cell("unrelated = 1")
    session.cell(change)
    there = session.restored()
    for name in ("x", "y"):
        assert (name in there) == (name in session.names)
        if name in there:
            assert text(there[name]) == text(session.names[name]), how
    x, y = (session.names.get(name) for name in "xy")
    if isinstance(x, list):
        assert (there.get("x") is there.get("y")) == (x is y)


def text(value: Any) -> str:
    """A value that has no equality of its own, in words."""
    if type(value).__module__ == "__main__":
        return f"{type(value).__name__}: {vars(value)} {type(value).__dict__.get('n')}"
    return repr(value)


def test_a_value_that_cannot_be_read_again_costs_no_other(session: Session) -> None:
    session.cell("def fail(): raise OSError('no licence')")
    session.cell("class Bad:\n    def __reduce__(self): return fail, ()\nx = Bad()\ny = [1]")
    side = RemoteSide(notebook())
    restoring = Snapshots(session.store, side).restore(session.body)
    assert not list(restoring.cells())
    missing = restoring.end()["missing"]
    assert side.namespace["y"] == [1]
    assert "x" not in side.namespace
    assert "no licence" in missing["x"]


def test_what_a_value_needs_to_be_read_may_be_read_after_it(session: Session) -> None:
    session.cell("import numpy as np\nzoo = np.ones(3)\ndef build(n): return Made(n + zoo[0])")
    session.cell("class Made:\n  def __init__(self, n): self.n = n")
    session.cell("Made.__reduce__ = lambda self: (build, (self.n - 1,))\na = Made(5)\nzz = [1]")
    session.body["groups"].sort(key=lambda group: group["names"] != ["a"])
    restored = session.restored()
    assert restored["a"].n == 5
    assert restored["zz"] == [1]


def test_empty_arrays_do_not_shift_the_others(session: Session) -> None:
    session.cell(
        "import numpy as n\nx = [n.zeros(0), n.full(3, 1.0), n.zeros((0, 4)), n.full(3, 2.0)]"
    )
    session.cell("y = n.full(3, 3.0)")
    there = session.restored()
    assert repr(there["x"]) == repr(session.names["x"])
    assert repr(there["y"]) == repr(session.names["y"])


def test_who_shares_with_what_is_as_it_was_is_not_looked_at(session: Session) -> None:
    session.cell(LOOKED)
    session.cell("shared = list(range(1000))")
    session.cell("one = Looked(1); one.data = shared; one.more = list(range(100_000))")
    session.cell("n = len(shared)")
    session.cell("n = len(shared)")
    before = session.names["Looked"].counts[1]
    session.cell("n = sum(shared)")
    assert "one" not in session.looked
    assert session.names["Looked"].counts[1] == before
    session.cell("shared.append(5)")
    assert "one" in session.looked
    there = session.restored()
    assert there["one"].data is there["shared"]
    assert there["shared"][-1] == 5


def test_what_no_code_leads_to_is_not_looked_at(session: Session) -> None:
    session.cell(LOOKED)
    session.cell("a, b, c = Looked('a'), Looked('b'), Looked('c')\nd = [b]")
    counts = session.names["Looked"].counts
    before = dict(counts)
    session.cell("x = 1")
    assert counts == before
    assert session.looked == {"x"}
    session.cell("d.append(0)")
    assert counts["a"] == before["a"]
    assert counts["b"] > before["b"]  # `d` holds it


def test_what_is_unchanged_costs_no_write_and_stays_in_the_snapshot(session: Session) -> None:
    session.cell("x = list(range(1000)); y = list(range(2000))")
    first = session.body
    session.cell("z = 1")
    assert session.body["new_bytes"] < 100
    kept = [group for group in session.body["groups"] if group["names"] in (["x"], ["y"])]
    assert kept == [group for group in first["groups"] if group["names"] in (["x"], ["y"])]
    assert session.restored()["y"] == session.names["y"]


def test_cheap_values_are_looked_at_in_any_case(tmp_path: Path) -> None:
    session = Session(tmp_path, cheap_s=0.05)
    library = types.ModuleType("library")
    session.names["library"] = library
    session.cell("x = [1]\nlibrary.kept = x")
    execute("def change(): kept.append(2)", library.__dict__)
    session.cell("library.change()")  # no word of x
    assert session.restored()["x"] == [1, 2]


def test_an_object_that_comes_back_by_another_way_is_seen(session: Session) -> None:
    library = types.ModuleType("library")
    session.names["library"] = library
    session.cell("x = [1]\nlibrary.kept = x")
    session.cell("y = library.kept\ny.append(2)")
    there = session.restored()
    assert there["x"] == [1, 2]
    assert there["x"] is there["y"]


def test_a_failed_write_is_made_up_for(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.cell("x = [1]; y = [2]")
    with monkeypatch.context() as patch:
        patch.setattr(session.store, "put_each", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.cell("x.append(3)")
    session.cell("z = 1")
    assert session.restored()["x"] == [1, 3]


def test_what_was_removed_from_the_store_is_written_again(session: Session) -> None:
    session.cell("x = [[i] for i in range(2_000)]")
    Store(session.store.url).prune(grace_s=0)  # nobody has committed it
    with pytest.raises(errors.StoreError, match="saved again"):
        session.cell("y = 1")
    session.cell("z = 2")
    there = session.restored()
    assert (len(there["x"]), there["y"], there["z"]) == (2_000, 1, 2)


def test_what_cannot_be_pickled_is_named_as_long_as_it_is_there(session: Session) -> None:
    session.cell("import threading\nlock = threading.Lock()\nx = [1]")
    session.cell("z = 1")
    assert set(session.body["skipped"]) == {"lock"}
    session.cell("del lock")
    assert session.body["skipped"] == {}


def test_a_name_that_is_forgotten_after_the_look_is_not_saved(session: Session) -> None:
    """A call's result, which may share objects with what stays."""
    session.cell("kept = [1]")
    execute("result = [kept]", session.names)
    session.side.look(mentions("result = [kept]"))
    del session.names["result"]
    session.body = session.snapshots.take()
    there = session.restored()
    assert there["kept"] == [1]
    assert "result" not in there
    session.cell("kept.append(2)")
    assert session.restored()["kept"] == [1, 2]


def test_doubt_looks_at_everything(session: Session) -> None:
    session.cell("x = [1]; y = [2]")
    session.names["x"].append(2)  # by a thread, say
    session.side.doubt()
    session.cell("z = 1")
    assert session.restored()["x"] == [1, 2]


def test_doubt_where_a_name_is_gone(tmp_path: Path) -> None:
    session = Session(tmp_path, cheap_s=1.0)
    session.cell("x = [1]; y = x")
    session.cell("exec('del y')")
    restored = session.restored()
    assert restored["x"] == [1]
    assert "y" not in restored


# --- code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        *("exec(s)", "eval(s)", "globals()", "vars()", "from m import *", "import inspect"),
        "get_ipython().run_line_magic('run', 'a.py')",
        "get_ipython().run_line_magic('time', 'exec(s)')",
        "import sys\nsys.modules['__main__']",
        "import __main__",
        "f.__globals__",
        "gc.get_objects()",
        "not python at all",
    ],
)
def test_code_that_hides_names_may_change_everything(code: str) -> None:
    assert EVERYTHING in mentions(code)


@pytest.mark.parametrize(
    "code",
    ["re.compile('x')", "gc.collect()", "model.modules()", "np.stack(x)", "'exec'", "m.eval()"],
)
def test_other_code_does_not(code: str) -> None:
    assert EVERYTHING not in mentions(code)


def test_the_names_that_functions_use() -> None:
    space: dict[str, Any] = {}
    execute("def f():\n def g(): return a.b('c')\n return g", space)
    assert {"a", "b", "c"} <= used_by([space["f"].__code__])
    execute("def f(): eval('x')", space)
    assert EVERYTHING in used_by([space["f"].__code__])


# --- what runs beside the cells -------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of who runs the tests, and of tests before, are nobody's here."""
    runners = {"execnet", "xdist", "pytest_timeout", "pytest", "_pytest"}
    monkeypatch.setattr(activity, "_HARMLESS", activity._HARMLESS | runners)
    frames = sys._current_frames
    before = [_outermost(frame) for frame in frames().values()]

    def others() -> dict[int, types.FrameType]:
        return {
            ident: frame
            for ident, frame in frames().items()
            if not any(_outermost(frame) is each for each in before)
        }

    monkeypatch.setattr(sys, "_current_frames", others)


def _outermost(frame: types.FrameType) -> types.FrameType:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


@pytest.mark.usefixtures("alone")
def test_a_thread_of_the_users_counts_until_it_ends() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "go": threading.Event()}
    execute("def work(): go.wait()", space)
    thread = threading.Thread(target=space["work"])
    assert not activity.is_running()
    thread.start()
    try:
        assert activity.is_running()
    finally:
        space["go"].set()
        thread.join()
    assert not activity.is_running()


@pytest.mark.usefixtures("alone")
def test_ours_that_saves_the_state_does_not_count() -> None:
    space: dict[str, Any] = {"__name__": "tempfile", "go": threading.Event()}
    execute("def work(): go.wait()", space)  # a library's code, deep in the store's
    thread = threading.Thread(target=space["work"], name="mlcloud-snapshot")
    thread.start()
    try:
        assert not activity.is_running()
    finally:
        space["go"].set()
        thread.join()


@pytest.mark.usefixtures("alone")
def test_a_pool_that_waits_for_work_does_not_count() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        time.sleep(0.05)
        assert not activity.is_running()


@pytest.mark.usefixtures("alone")
def test_a_task_of_the_users_counts() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    execute("import asyncio\nasync def work(): await asyncio.sleep(10)", space)

    async def main() -> tuple[bool, bool]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(space["work"]())
        await asyncio.sleep(0)
        running = activity.is_running(loop)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return running, bool(asyncio.all_tasks(loop) - {asyncio.current_task()})

    assert asyncio.run(main()) == (True, False)


# --- at random ------------------------------------------------------------------------------------

NAMES = "abcd"
names = st.sampled_from(NAMES)
statement = st.one_of(
    st.builds("{} = [{}]".format, names, st.integers(0, 9)),
    st.builds("{} = {}".format, names, names),
    st.builds("{} = [{}, {}]".format, names, names, names),
    st.builds("{}.append({})".format, names, st.integers(0, 9)),
    st.builds("{}.append({})".format, names, names),
    st.builds("{}[0] = {}".format, names, names),
    st.builds("{}[0].append({})".format, names, st.integers(0, 9)),
    st.builds("del {}".format, names),
    st.builds("def f(): {}.append({})".format, names, st.integers(0, 9)),
    st.builds("def f(): global {0}; {0} = [{1}]".format, names, names),
    st.builds("def g(x={}): x.append({})".format, names, names),
    st.builds("k = lambda: {}.append(f())".format, names),
    st.sampled_from(["f()", "g()", "k()", "f(); f()"]),
    st.builds("{0} = (lambda y: lambda: y.append(7))({1})".format, st.just("g"), names),
)
cells = st.lists(st.lists(statement, min_size=1, max_size=3).map("\n".join), min_size=2, max_size=9)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells)
# `a` is looked at without `g`, and then bound anew: the two are no group any more.
@example(
    ["a = [0]\ng = (lambda y: lambda: y.append(7))(a)", "k = lambda: a.append(f())", "a = [1]"]
)
def test_a_restored_session_is_what_it_was(tmp_path_factory: Any, codes: list[str]) -> None:
    check_restored(tmp_path_factory, codes)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells)
def test_at_length(tmp_path_factory: Any, codes: list[str]) -> None:
    check_restored(tmp_path_factory, codes)


# Names of values that take long to look at, and cells whose state is saved.
heavy = st.sets(st.sampled_from([*NAMES, "f", "g", "k"]))
saved = st.lists(st.booleans(), min_size=9, max_size=9)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells, heavy, saved)
@example(  # what was an alias for one cell only, and was changed by it in the next
    ["b = [1]", "a = [2]", "a.append(b)", "a[1].append(5)\na[0] = a[1]", "a = [3]"],
    {"a"},
    [True, True, False, False, False] * 2,
)
def test_what_is_looked_at_later_is_found_all_the_same(
    tmp_path_factory: Any, codes: list[str], heavy: set[str], saved: list[bool]
) -> None:
    check_restored(tmp_path_factory, codes, heavy, saved)


@pytest.mark.slow
@settings(max_examples=6000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells, heavy, saved)
def test_later_at_length(
    tmp_path_factory: Any, codes: list[str], heavy: set[str], saved: list[bool]
) -> None:
    check_restored(tmp_path_factory, codes, heavy, saved)


def check_restored(
    tmp_path_factory: Any,
    codes: list[str],
    heavy: Collection[str] = (),
    saved: Sequence[bool] = (),
) -> None:
    session = Session(tmp_path_factory.mktemp("store"))
    for number, code in enumerate(codes):
        if not heavy:
            session.cell(code)
        else:
            session.cell_later(code, heavy, save=saved[number] or number == len(codes) - 1)
    there = session.restored()
    held = {name: session.names[name] for name in NAMES if name in session.names}
    assert shape([there[name] for name in held]) == shape(list(held.values()))
    assert not {name for name in NAMES if name in there} - held.keys()


def shape(value: Any, seen: dict[int, int] | None = None) -> Any:
    """Nested lists in plain words: an object that was met before is its number."""
    seen = {} if seen is None else seen
    if not isinstance(value, list):
        return getattr(value, "__qualname__", value)
    if id(value) in seen:
        return f"#{seen[id(value)]}"
    seen[id(value)] = len(seen)
    return [shape(each, seen) for each in value]
