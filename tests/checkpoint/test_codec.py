"""Whatever a state may hold comes back exactly, and whatever it may not is named."""

from __future__ import annotations

import ast
import collections
import json
import math
import random
import struct
import uuid
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mlcloud.checkpoint
import mlcloud.checkpoint.listing
import mlcloud.store
from mlcloud import errors
from mlcloud.checkpoint import packing
from mlcloud.checkpoint.codec import Decoder, Encoder, ObjectState
from mlcloud.store.manifest import canonical

torch = pytest.importorskip("torch", reason="checkpoints of tensors need torch")


def round_trip(value: Any) -> Any:
    encoder = Encoder()
    tree = json.loads(canonical(encoder.encode(value, "state")))
    layout = packing.plan(encoder.blobs)
    memory = list(packing.buffers(layout, encoder.blobs))

    def blob(number: int) -> memoryview:
        segment, offset, size = layout.places[number]
        return memoryview(bytearray(memory[segment][offset : offset + size]))

    return Decoder(blob).decode(tree)


def same(one: Any, other: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, np.ndarray | np.generic):
        equal = one.dtype == other.dtype and one.shape == other.shape
        return bool(equal and one.tobytes() == other.tobytes())
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return bool(alike and bits(one) == bits(other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    return bool(one == other)


def bits(tensor: Any) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**4000), max_value=2**4000)
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(codec=None, exclude_categories=()))
    | st.binary()
)
keys = scalars | st.tuples(st.integers(), st.text())
arrays = hnp.arrays(
    st.sampled_from([np.dtype(d) for d in ("?", "i1", ">i4", "<u8", "f2", "f8", "c8", "S3", "U2")]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
values = st.recursive(
    scalars | arrays | st.sampled_from([np.float32(1.5), np.int64(-3), np.bool_(True)]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.lists(inner, max_size=3).map(lambda items: collections.deque(items, 5))
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_any_plain_state_comes_back_exactly(value: Any) -> None:
    assert same(round_trip(value), value)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text() | st.integers()))
def test_equal_sets_are_equal_bytes(value: set[Any]) -> None:
    other = set(value)
    one, two = (canonical(Encoder().encode(each, "state")) for each in (value, other))
    assert one == two


@pytest.mark.parametrize(
    "value",
    [
        "long " * 5000,
        "\ud800" * 5000,
        b"\0" * 100_000,
        bytearray(b"x"),
        bytearray(b"x" * 10_000),
        collections.Counter("abca"),
        collections.defaultdict(list, {1: [2]}),
        struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0],
        -0.0,
        10**5000,
        np.array(["2020-01-01"], dtype="M8[ns]"),
        np.longdouble(1) / 3,
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10)[::-2],
        torch.Size([1, 2]),
        torch.bfloat16,
        torch.device("cuda", 1),
        Path("a/b"),
        PurePosixPath("/x"),
        PureWindowsPath("C:\\x"),
        datetime(2024, 10, 27, 2, 30, 0, 1, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        datetime(1, 1, 1),
        time(23, 59, tzinfo=timezone(timedelta(hours=-3, seconds=1), "odd")),
        date.max,
        timedelta(days=-1, microseconds=1),
        timezone.utc,
        Decimal("-0.10E+7"),
        Fraction(-3, 7),
        uuid.UUID(int=5),
        range(2, -9, -3),
        slice(None, 5),
        np.dtype("f4"),
        np.dtype([("a", "i4"), ("b", "f8", (2, 3)), (("long", "c"), [("d", ">u2")])], align=True),
        np.array([(1, 2.5)], [("n", "i4"), ("x", "f8")]),
        np.array([(1, 2.5)], [("n", "i4"), ("x", "f8")])[0],
        np.zeros(2, "V3"),
        np.datetime64("NaT", "us"),
        np.timedelta64(5, "D"),
        {Path("k"): 1, date(2024, 1, 1): 2, Decimal("1.0"): 3},
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_less_usual_comes_back_exactly(value: Any) -> None:
    assert same(round_trip({"x": [value]}), {"x": [value]})


DTYPES = sorted(
    {
        d
        for d in vars(torch).values()
        if isinstance(d, torch.dtype) and d.itemsize and "q" not in str(d)
    },
    key=str,
)
TENSOR_DTYPES = [d for d in DTYPES if not any(s in str(d) for s in ("bits", "x2", "int1", "int2"))]


@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
def test_tensors_of_every_dtype(dtype: Any) -> None:
    try:
        raw = torch.randint(0, 2, (3, 4 * dtype.itemsize), dtype=torch.uint8)
        tensor = raw.view(dtype)
    except (RuntimeError, NotImplementedError):
        pytest.skip("torch cannot make one")
    loaded = round_trip(tensor)
    assert loaded.dtype == tensor.dtype
    assert loaded.shape == tensor.shape
    assert bits(loaded) == bits(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[::5],
        torch.tensor([1 + 2j]).conj(),
        torch.zeros(1).expand(5),
        torch.nn.Parameter(torch.ones(2)).detach(),
    ],
    ids=lambda t: f"{tuple(t.shape)}{tuple(t.stride())}",
)
def test_tensors_of_every_layout(tensor: Any) -> None:
    assert torch.equal(round_trip(tensor), tensor)


def layouts() -> list[Any]:
    dense = torch.arange(24.0).reshape(4, 6) * (torch.arange(6) % 2)
    repeated = torch.sparse_coo_tensor(torch.tensor([[1, 1, 0]]), torch.ones(3, 2), (3, 2))
    blocks = [dense.to_sparse_bsr((2, 3)), dense.to_sparse_bsc((2, 3))]
    return [
        dense.to_sparse(),
        repeated,
        torch.zeros(3, 3).to_sparse(),
        dense.to_sparse_csr(),
        dense.to_sparse_csc(),
        *blocks,
    ]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("at", range(7))
def test_sparse_tensors_come_back_by_their_parts(at: int) -> None:
    tensor = layouts()[at]
    loaded = round_trip(tensor)
    assert loaded.layout is tensor.layout
    assert torch.equal(loaded.to_dense(), tensor.to_dense())
    if tensor.layout is torch.sparse_coo:
        assert loaded.is_coalesced() == tensor.is_coalesced()
        assert loaded._nnz() == tensor._nnz()
    assert mlcloud.checkpoint.listing.same(loaded, tensor)


def test_a_lazy_module_is_saved_before_it_has_a_shape() -> None:
    model, other = torch.nn.LazyLinear(3), torch.nn.LazyLinear(3)
    other.load_state_dict(round_trip(model).state)
    assert torch.nn.parameter.is_lazy(other.weight)
    model(torch.ones(1, 2))
    other.load_state_dict(round_trip(model).state)
    assert torch.equal(model.weight, other.weight)


def test_a_named_tuple_comes_back_with_its_names_and_without_its_class() -> None:
    loaded = round_trip(Pair(1, [2]))
    assert (loaded.a, loaded.b, loaded) == (1, [2], (1, [2]))
    assert type(loaded).__name__ == "Pair"
    assert type(loaded) is not Pair


def test_tied_tensors_are_stored_once_and_stay_tied() -> None:
    weight = torch.arange(4.0)
    encoder = Encoder()
    encoder.encode({"a": weight, "b": weight.view(4)}, "state")
    assert len(encoder.blobs) == 1
    loaded = round_trip([weight, weight])
    loaded[0][0] = 9
    assert loaded[1][0] == 9


def test_objects_are_replaced_by_their_state() -> None:
    model = torch.nn.Linear(2, 2)
    loaded = round_trip({"m": [model], "rng": random.Random(3), "np": np.random.default_rng(1)})
    assert isinstance(loaded["m"][0], ObjectState)
    state = loaded["m"][0].state
    assert type(state) is collections.OrderedDict
    assert vars(state)["_metadata"] == model.state_dict()._metadata
    assert torch.equal(state["weight"], model.weight)
    assert loaded["rng"].how == "random.Random"


class Strange:
    pass


class Pair(NamedTuple):
    a: int
    b: int


class Odd(tzinfo):
    """A time zone that only its own code knows."""


class HasBadState:
    def state_dict(self) -> dict[str, Any]:
        return {"ok": 1, "foo": Strange()}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def loop() -> list[Any]:
    one: list[Any] = []
    one.append([one])
    return one


def deep() -> list[Any]:
    one: list[Any] = []
    for _ in range(5000):
        one = [one]
    return one


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Strange(), "state['x']"),
        ([1, {"k": (Strange(),)}], "state['x'][1]['k'][0]"),
        (HasBadState(), "state['x'].state_dict()['foo']"),
        ({Strange(): 1}, "state['x']"),
        (lambda: 1, "state['x']"),
        (torch.nn.Linear, "state['x']"),
        (np.array([object()]), "state['x']"),
        (np.ma.masked_array([1, 2], [False, True]), "state['x']"),
        (np.array([(1, "a")], [("n", "i4"), ("o", "O")]), "state['x']"),
        (np.array(["a"], np.dtypes.StringDType()), "state['x']"),
        (pd.DataFrame({"a": [1]}), ".to_numpy()"),
        (datetime(2024, 1, 1, tzinfo=Odd()), "use datetime.timezone or ZoneInfo"),
        (slice("a", "b"), "whole numbers"),
        (torch.zeros(2, device="meta"), "state['x']"),
        (collections.defaultdict(Strange), "state['x']"),
        (loop(), "contains itself"),
        (deep(), "levels deep"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_safe_form_is_named(value: Any, where: str) -> None:
    with pytest.raises(errors.NotCheckpointable, match=r"state_dict\(\)/load_state_dict\(\)") as e:
        Encoder().encode({"x": value}, "state")
    assert where in str(e.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantized_tensor_is_named() -> None:
    value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(errors.NotCheckpointable, match=r"int_repr\(\)"):
        Encoder().encode({"x": value}, "state")


def test_deep_but_allowed_nesting_comes_back() -> None:
    value: Any = 1.5
    for _ in range(packing.ALIGN):
        value = {0: value}
    assert same(round_trip(value), value)


@pytest.mark.parametrize(
    "node",
    [
        {"$": "nonsense"},
        {"no": "tag"},
        {"$": "dict", "v": [[[], 1]]},
        {"$": "dtype", "v": "load"},
        {"$": "tensor", "dtype": "load", "shape": [1], "at": 0},
        {"$": "tensor", "dtype": "float32", "shape": [3], "at": 0},
        {"$": "array", "dtype": "O", "shape": [1], "at": 0},
        {"$": "object", "v": 1},
        {"$": "ddict", "of": "system", "v": []},
        {"$": "bytes", "v": "%"},
        {"$": "named", "name": "x", "fields": ["a;import os"], "v": [1]},
        {"$": "named", "name": "x", "fields": ["__class__"], "v": [1]},
        {"$": "path", "of": "os", "v": "x"},
        {"$": "zone", "v": "../../etc/passwd"},
        {"$": "lazy", "of": "x", "dtype": "load"},
        {"$": "npdtype", "dtype": "O"},
        {"$": "npdtype", "dtype": [["a", "O"]]},
        {"$": "sparse", "layout": "load", "shape": [1], "parts": []},
        {
            "$": "sparse",
            "layout": "sparse_coo",
            "shape": [1],
            "coalesced": False,
            "parts": [
                {"$": "tensor", "dtype": "int64", "shape": [1, 1], "at": 7},
                {"$": "tensor", "dtype": "float64", "shape": [1], "at": 0},
            ],
        },
    ],
)
def test_a_tree_we_did_not_write_is_damaged_and_runs_nothing(node: Any) -> None:
    with pytest.raises(errors.Damaged):
        Decoder(lambda number: memoryview(bytearray([number] * 8))).decode(node)


@pytest.mark.parametrize("room", [mlcloud.checkpoint, mlcloud.store])
def test_no_module_of_these_rooms_imports_a_pickler(room: Any) -> None:
    modules = list(Path(room.__file__).parent.glob("*.py"))
    assert modules
    for module in modules:
        tree = ast.parse(module.read_text())
        if module.name == "plain_dcp.py":  # other tools' format: only by a list of what it may name
            used = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "pickle"
            }
            assert used == {"Unpickler", "UnpicklingError"}
            assert "_Unpickler(file).load()" in module.read_text()
            continue
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.partition(".")[0] for n in names} & {
                "pickle",
                "cloudpickle",
                "dill",
                "marshal",
                "shelve",
                "joblib",
            }, module


def test_nan_is_nan() -> None:
    assert math.isnan(round_trip(math.nan))
