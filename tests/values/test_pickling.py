"""Pickles that are bound to the receiver's namespace, and the digests that tell what changed."""

from __future__ import annotations

import collections
import random
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlcloud import errors
from mlcloud.values.pickling import dump, load
from mlcloud.values.preview import describe
from mlcloud.values.scan import reach
from tests.values.pair import notebook


def there_and_back(value: Any, here: dict[str, Any], there: dict[str, Any]) -> Any:
    pickled = dump(value, here)
    return load(pickled.payload, pickled.buffers, there)


def run(code: str) -> dict[str, Any]:
    namespace = notebook()
    exec(compile(code, "<cell>", "exec", dont_inherit=True), namespace)
    return namespace


def test_functions_are_bound_to_the_receiver() -> None:
    here = run("k = 1\ndef f(): return k\nall = globals()")
    there = run("k = 2")
    f, everything = there_and_back((here["f"], here["all"]), here, there)
    assert f() == 2
    there["k"] = 3
    assert f() == 3
    assert everything is there


def test_what_a_function_carries() -> None:
    here = run(
        "def f(a, b=[1], *, c: int = 2) -> str:\n    'doc'\n    return (a, b, c)\nf.note = {'x': 1}"
    )
    f = there_and_back(here["f"], here, notebook())
    assert f(0) == (0, [1], 2)
    assert (f.__doc__, f.note, f.__name__) == ("doc", {"x": 1}, "f")
    assert f.__annotations__ == {"c": int, "return": str}
    assert f.__kwdefaults__ == {"c": 2}


def test_a_type_may_have_no_module() -> None:
    """As qiskit's gates have it, which pickle themselves by a function."""
    here = run("class Gate: __reduce__ = lambda self: (complex, (1, 2))\nGate.__module__ = None")
    gate = here["Gate"]()
    assert there_and_back([gate], here, notebook()) == [1 + 2j]
    assert describe("gate", gate, binding=1, nbytes=None, why="").type == "Gate"
    assert id(gate) in reach([gate], 100)


@pytest.mark.parametrize("base", ["list", "dict"])
def test_a_container_that_watches_its_items(base: str) -> None:
    here = run(
        f"class Watched({base}):\n"
        "    def __init__(self, name): self.name, self.seen = name, []\n"
        "    def append(self, item): self.seen.append(self.name); super().append(item)\n"
        "    def extend(self, items):\n        for item in items: self.append(item)\n"
        "    def __setitem__(self, key, item): self.seen.append(self.name); "
        "super().__setitem__(key, item)\n"
        "class Slotted(Watched):\n    __slots__ = ('more',)\n"
        "x = Slotted('n')\nx.more = 5\n"
        + ("x.append(1)\nx.append(x)" if base == "list" else "x['a'] = 1\nx['b'] = x")
    )
    x = there_and_back(here["x"], here, notebook())
    items = list(x) if base == "list" else list(x.values())
    assert items[0] == 1
    assert items[1] is x
    assert (x.name, x.seen, x.more) == ("n", ["n", "n"], 5)


def test_closures_that_reach_themselves() -> None:
    here = run(
        "def make():\n"
        "    def fact(n): return 1 if n < 2 else n * fact(n - 1)\n"
        "    box = [fact]\n"
        "    def get(): return box\n"
        "    box.append(get)\n"
        "    return fact, get\n"
        "fact, get = make()\ncell = fact.__closure__[0]"
    )
    fact, get, cell = there_and_back((here["fact"], here["get"], here["cell"]), here, notebook())
    assert fact(5) == 120
    assert get()[0] is fact
    assert get()[1] is get
    assert cell.cell_contents is fact
    assert there_and_back(here["cell"], here, notebook()).cell_contents(4) == 24


def test_imported_functions_go_by_name() -> None:
    namespace = notebook()
    assert there_and_back(random.choice, namespace, notebook()).__self__ is not None
    assert there_and_back(pd.concat, namespace, notebook()) is pd.concat


def test_overlapping_arrays_share_memory_after_load() -> None:
    base = np.arange(12.0).reshape(3, 4)
    base2, rows, turned, copy = there_and_back(
        (base, base[1:], base.T[::2], base.copy()), notebook(), notebook()
    )
    rows[0, 0] = 99
    assert base2[1, 0] == 99
    assert turned[0, 1] == 99
    assert copy[1, 0] == 4
    assert base[1, 0] == 4  # the sender's is another


def test_a_read_only_array_stays_so() -> None:
    base = np.arange(4)
    base.flags.writeable = False
    assert not there_and_back(base, notebook(), notebook()).flags.writeable


def test_tensors_keep_sharing_storage() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2000)
    model.tied = model.weight
    row = model.weight.detach()[0]
    pickled = dump((model, row), notebook())
    assert len(pickled.buffers) == 2  # weight and bias, each once and out of band
    model2, row2 = load(pickled.payload, pickled.buffers, notebook())
    assert model2.tied is model2.weight
    row2[0] = 5
    assert model2.weight[0, 0] == 5
    assert torch.equal(model2.bias, model.bias)


def test_a_tensor_and_its_array_are_one_group() -> None:
    torch = pytest.importorskip("torch")
    array = np.arange(4.0)
    tensor = torch.from_numpy(array)
    namespace = notebook()
    assert dump(tensor, namespace).ids & dump(array, namespace).ids
    assert dump(tensor[2:], namespace).ids & dump(tensor.numpy(), namespace).ids


class Cached:
    """Its state changes only in `touch`."""

    def __init__(self) -> None:
        self.name = "".join(["na", "me"])
        self.items = {"name": self.name, "other": [1, 2]}

    def look(self) -> str:
        return f"{getattr(self, 'name')}{sorted(self.items)}"  # noqa: B009


def untouched() -> list[Any]:
    values: list[Any] = [
        ["a", "".join(["b", "c"]), "bc", "a"],
        {"x": 1, "".join(["y", "z"]): {"k"}},
        {f"item{i}" for i in range(100)},
        frozenset(range(50)),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        np.arange(10)[::2],
        np.array(["a", "b"], dtype=object),
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": [0.5, None]}),
        pd.Series([1, 2], index=["a", "b"]).iloc[1:],
        pd.DataFrame({"t": pd.date_range("2026-01-01", periods=3)}).set_index("t"),
        Cached(),
        random.Random(4),
        np.random.default_rng(0),
    ]
    return values


def looked_at(value: Any) -> None:
    """What a user does without meaning to change anything."""
    repr(value)
    for call in ("look", "describe", "copy", "head", "info", "keys", "sum"):
        try:
            getattr(value, call)()
        except Exception:
            continue
    try:
        list(value)
        value == value  # noqa: B015
        len(value)
    except Exception:
        return


@pytest.mark.parametrize("index", range(len(untouched())))
def test_looking_at_a_value_does_not_change_its_digest(index: int) -> None:
    value, namespace = untouched()[index], notebook()
    first = dump(value, namespace).digest
    looked_at(value)
    assert dump(value, namespace).digest == first
    again = there_and_back(value, namespace, namespace)
    second = dump(again, namespace).digest
    looked_at(again)
    assert dump(again, namespace).digest == second


def test_using_a_model_does_not_change_its_digest() -> None:
    torch = pytest.importorskip("torch")
    model, namespace = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), notebook()
    first = dump(model, namespace).digest
    model(torch.zeros(1, 3))
    model.state_dict()
    assert dump(model, namespace).digest == first
    with torch.no_grad():
        model[0].weight.data.view(-1)[0] += 1
    assert dump(model, namespace).digest != first


def test_notebook_classes_and_functions_have_steady_digests() -> None:
    here = run(
        "import functools\n"
        "class A:\n    def f(self): return self.g\n    g = [1]\n"
        "    @property\n    def p(self): return 1\n"
        "a = A()\ndef h(x, y={'z': 1}): return lambda: x\nl = h(1)\n"
    )
    for name in ("A", "a", "h", "l"):
        first = dump(here[name], here).digest
        here["a"].f(), here["a"].p, here["h"](2), here["l"]()
        assert dump(here[name], here).digest == first, name


FEW, MANY = ["DE", "FR", "ü€", ""] * 50, [f"text {i} ü" for i in range(200)]


@pytest.mark.parametrize(
    "array",
    [
        np.array(FEW, object),
        np.array(MANY, object),
        np.array([FEW, MANY], object),
        np.array([FEW, MANY], object).T,
        np.array([FEW, MANY], object)[:, ::2],
        np.array([*FEW, None, np.nan], object),
        np.array([*FEW, 1, True, 1.0], object),
        np.array([*MANY, "\ud800"], object),
        np.array([np.str_(text) for text in MANY], object),
    ],
)
def test_arrays_of_strings_stay_what_they_are(array: Any) -> None:
    pickled = dump(array, notebook())
    again = load(pickled.payload, pickled.buffers, notebook())
    assert repr(again.tolist()) == repr(array.tolist())
    assert again.flags.writeable
    assert again.flags.f_contiguous == array.flags.f_contiguous
    assert dump(array, notebook()).digest == pickled.digest


def test_ids_are_those_of_shared_mutable_objects() -> None:
    shared, namespace = [1], notebook()
    assert dump({"a": shared}, namespace).ids & dump((1, (shared,)), namespace).ids
    same = ("text" * 100, 5, (1, 2), np.dtype("float64"), len, np.sin, str)
    first, second = dump([*same], namespace), dump([*same], namespace)
    assert not first.ids & second.ids
    one, other = pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]})
    first, second = dump(one, namespace), dump(other, namespace)
    assert not first.ids & second.ids
    assert dump(one, namespace).ids & dump(one["a"], namespace).ids
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4], "text": ["x", "y"], "c": [5, 6]})
    first, second = dump(frame, namespace), dump(frame[frame["a"] > 1], namespace)
    assert not first.ids & second.ids


def test_not_picklable_says_where_and_what_to_do() -> None:
    class Holder:
        def __init__(self) -> None:
            self.parts = [1, {"deep": threading.Lock()}]

    with pytest.raises(errors.NotPicklable) as caught:
        dump(Holder(), notebook(), name="h")
    message = str(caught.value)
    assert "`h.parts[1]['deep']`" in message
    assert "lock" in message
    assert "remote cell" in message


def test_not_picklable_looks_into_closures() -> None:
    here = run(
        "import threading\n"
        "def make():\n    lock = threading.Lock()\n    return lambda: lock\n"
        "f = make()"
    )
    with pytest.raises(errors.NotPicklable, match=r"f\.<closure lock>"):
        dump(here["f"], here, name="f")


def test_an_open_file_is_not_copied(tmp_path: Any) -> None:
    (tmp_path / "f").write_text("text")
    with open(tmp_path / "f") as file, pytest.raises(errors.NotPicklable, match="open file"):
        dump([file], notebook())


def test_self_reference_and_depth() -> None:
    loop: list[Any] = []
    loop.append(loop)
    back = there_and_back(loop, notebook(), notebook())
    assert back[0] is back
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.NotPicklable):
        dump(deep, notebook(), name="deep")
