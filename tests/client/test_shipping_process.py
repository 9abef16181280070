"""Names between two real processes: functions and classes defined in a notebook's `__main__`."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from mlcloud.client.remote_value import RemoteValue
from mlcloud.client.shipping import LocalSide
from mlcloud.values.messages import Return
from tests.values.session_process import Process


class Notebook:
    def __init__(self, namespace: dict[str, Any], process: Process) -> None:
        self.here, self.process = namespace, process
        self.side = LocalSide(namespace, "exp")
        self.sent: list[str] = []

    def local(self, code: str) -> None:
        exec(code, self.here)

    def remote(self, code: str, **options: Any) -> None:
        shipment = self.side.prepare(code, **options)
        self.sent = sorted(name for group in shipment.groups for name in group.names)
        answer = self.process.cell(shipment.to_wire(), code)
        assert "error" not in answer, answer
        self.side.apply(Return.from_wire(answer["return"]))


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


@pytest.fixture
def notebook(process: Process, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    notebook = Notebook(module.__dict__, process)
    notebook.side.classes.by_id.clear()
    # One process serves all tests: start from an empty namespace.
    wipe = "[globals().pop(n) for n in list(globals()) if not n.startswith('__')]"
    process.cell(LocalSide({}, "wipe").prepare("1").to_wire(), wipe)
    return notebook


POINT = """
from dataclasses import dataclass
@dataclass
class Point:
    x: int = 0
    def move(self, by):
        self.x += by * step
        return self
step = 1
p = Point(1)
"""


def test_classes_and_instances_survive_round_trips(notebook: Notebook) -> None:
    notebook.local(POINT)
    notebook.remote("p.move(2); same = isinstance(p, Point); q = Point(5)")
    here = notebook.here
    assert here["same"] is True
    assert here["p"].x == 3
    assert isinstance(here["p"], here["Point"])
    assert type(here["q"]) is here["Point"]
    notebook.local("step = 10; p.move(1)")
    notebook.remote("p.move(1); same = isinstance(p, Point) and type(q) is type(p)")
    assert notebook.sent == ["p", "step"]
    assert here["same"] is True
    assert here["p"].x == 23
    assert here["p"] == here["Point"](23)


def test_methods_see_the_sessions_globals(notebook: Notebook) -> None:
    notebook.local(POINT)
    notebook.remote("step = 100\np.move(1)")
    assert notebook.here["p"].x == 101
    notebook.here["p"].move(1)
    assert notebook.here["p"].x == 201


def test_a_redefined_class_is_a_new_class_on_both_sides(notebook: Notebook) -> None:
    notebook.local("class A:\n    def v(self): return 1\na = A()")
    notebook.remote("r = a.v()")
    notebook.local("class A:\n    def v(self): return 2\nb = A()")
    notebook.remote("r = (a.v(), b.v(), isinstance(a, A), isinstance(b, A))")
    assert notebook.here["r"] == (1, 2, False, True)


def test_a_class_changed_in_place_keeps_its_instances(notebook: Notebook) -> None:
    notebook.local("class A:\n    n = 0\n    old = 1\na = A()")
    notebook.remote("a; A.n += 1")
    assert notebook.here["A"].n == 1
    assert notebook.here["a"].n == 1
    notebook.local("A.n += 10; del A.old\nA.twice = lambda self: 2 * self.n")
    notebook.remote("r = (a.twice(), A.n, hasattr(A, 'old'))")
    assert notebook.here["r"] == (22, 11, False)


def test_a_class_attribute_that_is_also_a_name_stays_one_object(notebook: Notebook) -> None:
    notebook.local("seen = []\nclass A:\n    all = seen\na = A()")
    notebook.remote("a.all.append(1); same = A.all is seen is a.all")
    assert notebook.here["same"] is True
    assert notebook.here["seen"] == [1]
    assert notebook.here["A"].all is notebook.here["seen"]


def test_inheritance_super_enums_and_metaclasses(notebook: Notebook) -> None:
    notebook.local(
        "import abc, enum\n"
        "class Base(abc.ABC):\n    @abc.abstractmethod\n    def f(self): return 1\n"
        "class Sub(Base):\n    __slots__ = ('y',)\n    def f(self): return super().f() + other()\n"
        "def other(): return Sub.__name__\n"
        "class Sub2(Sub):\n    def f(self): return len(other())\n"
        "class Color(enum.Enum):\n    RED = 1\n    BLUE = 2\n"
        "s = Sub2(); s.y = Color.RED"
    )
    notebook.remote(
        "r = (s.f(), s.y is Color.RED, isinstance(s, Base), Color(2)); s.y = Color.BLUE"
    )
    here = notebook.here
    assert here["r"] == (3, True, True, here["Color"].BLUE)
    assert here["s"].y is here["Color"].BLUE


def test_classes_that_refer_to_each_other(notebook: Notebook) -> None:
    notebook.local(
        "class A:\n    def make(self): return B()\nclass B(A):\n    kind = A\nA.child = B\na = A()"
    )
    notebook.remote("b = a.make(); r = (type(b) is A.child, B.kind is A, isinstance(b, A))")
    assert notebook.here["r"] == (True, True, True)
    assert type(notebook.here["b"]) is notebook.here["B"]


def test_a_class_made_in_the_session_comes_back(notebook: Notebook) -> None:
    notebook.remote("class R:\n    def __init__(self): self.v = [1]\nr = R()")
    assert isinstance(notebook.here["r"], notebook.here["R"])
    notebook.local("r.v.append(2)")
    notebook.remote("n = len(r.v); same = isinstance(r, R)")
    assert (notebook.here["n"], notebook.here["same"]) == (2, True)


def test_a_large_instance_stays_and_its_class_does_not(notebook: Notebook) -> None:
    notebook.local("class Net:\n    def __init__(self): self.w = bytearray(10)\nnet = Net()")
    notebook.remote("net.w.extend(bytes(2_000_000))")
    assert isinstance(notebook.here["net"], RemoteValue)
    assert isinstance(notebook.here["Net"], type)
    notebook.remote("n = len(net.w); ok = isinstance(net, Net)")
    assert (notebook.here["n"], notebook.here["ok"]) == (2_000_010, True)


def test_cached_and_decorated_functions(notebook: Notebook) -> None:
    notebook.local(
        "import functools\nk = 1\n"
        "@functools.lru_cache\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "def twice(f):\n    @functools.wraps(f)\n    def g(*a): return 2 * f(*a)\n    return g\n"
        "@twice\ndef h(x): return x + k"
    )
    notebook.remote("r = (fib(30), h(1), h.__name__); k = 10; s = h(1)")
    assert notebook.here["r"] == (832040, 4, "h")
    assert notebook.here["s"] == 22
    assert notebook.here["h"](1) == 22
    notebook.here["fib"](20)
    notebook.remote("fib(3)")
    assert notebook.sent == []


def test_arrays_tables_and_what_reads_them(notebook: Notebook) -> None:
    notebook.local(
        "import numpy as np, pandas as pd\n"
        "a = np.arange(6.0); v = a[2:]; df = pd.DataFrame({'x': a})\n"
        "def total(): return float(a.sum())"
    )
    notebook.remote("v[0] = 100; t = total(); df['y'] = df.x * 2; s = df.y.mean()")
    assert notebook.here["t"] == 113.0
    assert notebook.here["a"][2] == 100
    assert np_shares(notebook.here)
    assert list(notebook.here["df"].columns) == ["x", "y"]


def np_shares(namespace: dict[str, Any]) -> bool:
    import numpy as np

    return bool(np.shares_memory(namespace["a"], namespace["v"]))
