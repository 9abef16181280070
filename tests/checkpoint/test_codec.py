"""Whatever a state may hold comes back exactly, and whatever it may not is named."""

from __future__ import annotations

import ast
import collections
import json
import math
import random
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mlcloud.checkpoint
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
        (torch.zeros(2, 2).to_sparse(), "state['x']"),
        (torch.zeros(2, device="meta"), "state['x']"),
        (collections.defaultdict(Strange), "state['x']"),
        (Pair(1, 2), "state['x']"),
        (loop(), "contains itself"),
        (deep(), "levels deep"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_safe_form_is_named(value: Any, where: str) -> None:
    with pytest.raises(errors.NotCheckpointable, match=r"state_dict\(\)/load_state_dict\(\)") as e:
        Encoder().encode({"x": value}, "state")
    assert where in str(e.value)


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
    ],
)
def test_a_tree_we_did_not_write_is_damaged_and_runs_nothing(node: Any) -> None:
    with pytest.raises(errors.Damaged):
        Decoder(lambda number: memoryview(bytearray(8))).decode(node)


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
