"""What a state holds goes on exactly, in the user's own objects, and what shares still shares."""

from __future__ import annotations

import copy
import enum
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints, randomness
from mlcloud.checkpoint.codec import plain
from mlcloud.checkpoint.restore import restore

from .test_codec import arrays, keys, round_trip, same, scalars

torch = pytest.importorskip("torch", reason="checkpoints of tensors need torch")
L = torch.optim.lr_scheduler


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"))


def put(saved: Any, live: dict[Any, Any]) -> None:
    restore(live, round_trip(saved), "the step")


# --- torch ----------------------------------------------------------------------------------------

P = Any
OPTIMIZERS: dict[str, Callable[[P], Any]] = {
    name: lambda p, kind=kind: kind(p, lr=0.01)
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "SparseAdam", "Muon", "LBFGS")
}
OPTIMIZERS |= {
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "LBFGS wolfe": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=0.01),
    "Adam fused": lambda p: torch.optim.Adam(p, fused=True),
    "AdamW foreach amsgrad": lambda p: torch.optim.AdamW(p, foreach=True, amsgrad=True),
    "Adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "SGD nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "groups": lambda p: torch.optim.RMSprop(
        [{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.01, centered=True, momentum=0.5
    ),
}


def model_of(dtype: Any = torch.float32) -> Any:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(
        dtype
    )


def steps(model: Any, opt: Any, count: int, sched: Any = None) -> None:
    for _ in range(count):
        x = torch.randn(5, 3, dtype=next(model.parameters()).dtype)

        def closure(x: Any = x) -> Any:
            opt.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        loss = opt.step(closure)
        if isinstance(sched, L.ReduceLROnPlateau):
            sched.step(loss.detach())
        elif sched is not None:
            sched.step()


def weights(model: Any) -> list[bytes]:
    return [bytes(p.detach().view(torch.uint8).numpy()) for p in model.parameters()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_optimizers_go_on_bit_for_bit(name: str, dtype: Any) -> None:
    if dtype is torch.bfloat16 and "LBFGS" in name:
        pytest.skip("its line search is no use in bfloat16")
    torch.manual_seed(0)
    model = model_of(dtype)
    opt = OPTIMIZERS[name](list(model.parameters()))
    steps(model, opt, 3)
    saved = round_trip({"m": model, "o": opt, "r": randomness.capture()})
    steps(model, opt, 4)
    torch.manual_seed(9)
    other = model_of(dtype)
    theirs = OPTIMIZERS[name](list(other.parameters()))
    restore({"m": other, "o": theirs}, saved, "the step")
    randomness.put_back(plain(saved["r"]))
    steps(other, theirs, 4)
    assert weights(other) == weights(model)


class Decay:
    """A schedule that is an object: LambdaLR saves its attributes."""

    def __init__(self) -> None:
        self.rate = 0.5

    def __call__(self, epoch: int) -> float:
        self.rate *= 0.9
        return self.rate


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: L.LambdaLR(o, lambda e: 0.9**e),
    "lambda object": lambda o: L.LambdaLR(o, Decay()),
    "multiplicative": lambda o: L.MultiplicativeLR(o, lambda e: 0.9),
    "step": lambda o: L.StepLR(o, 2),
    "milestones": lambda o: L.MultiStepLR(o, [2, 4, 5]),
    "exponential": lambda o: L.ExponentialLR(o, 0.9),
    "cosine": lambda o: L.CosineAnnealingLR(o, 6),
    "warm restarts": lambda o: L.CosineAnnealingWarmRestarts(o, 3),
    "cyclic": lambda o: L.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "cyclic function": lambda o: L.CyclicLR(o, 0.01, 0.1, 2, scale_fn=lambda x: 0.5),
    "one cycle": lambda o: L.OneCycleLR(o, 0.1, total_steps=20),
    "plateau": lambda o: L.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "sequential": lambda o: L.SequentialLR(
        o, [L.LinearLR(o, 0.1, total_iters=2), L.CosineAnnealingLR(o, 5)], [4]
    ),
    "chained": lambda o: L.ChainedScheduler([L.ConstantLR(o), L.PolynomialLR(o, 8)]),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=6),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_bit_for_bit(name: str) -> None:
    def make() -> tuple[Any, Any, Any]:
        model = model_of()
        opt = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, opt, SCHEDULERS[name](opt)

    torch.manual_seed(0)
    model, opt, sched = make()
    steps(model, opt, 3, sched)
    saved = round_trip({"m": model, "o": opt, "s": sched, "r": randomness.capture()})
    steps(model, opt, 7, sched)
    other, theirs, new = make()
    restore({"m": other, "o": theirs, "s": new}, saved, "the step")
    randomness.put_back(plain(saved["r"]))
    steps(other, theirs, 7, new)
    assert weights(other) == weights(model)
    assert theirs.param_groups[0]["lr"] == opt.param_groups[0]["lr"]


def test_a_scaler_and_an_average_go_on() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    model = model_of()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay, use_buffers=True)

    def go(model: Any, opt: Any, scaler: Any, ema: Any) -> None:
        opt.zero_grad()
        scaler.scale(model(torch.ones(1, 3)).square().sum()).backward()
        scaler.step(opt)
        scaler.update()
        ema.update_parameters(model)

    go(model, opt, scaler, ema)
    other = model_of()
    new = {
        "m": other,
        "o": torch.optim.SGD(other.parameters(), 0.3),
        "s": torch.amp.GradScaler("cpu", growth_interval=1),
        "e": torch.optim.swa_utils.AveragedModel(other, multi_avg_fn=decay, use_buffers=True),
    }
    put({"m": model, "o": opt, "s": scaler, "e": ema}, new)
    for _ in range(3):
        go(model, opt, scaler, ema)
        go(new["m"], new["o"], new["s"], new["e"])
    assert weights(new["e"]) == weights(ema)
    assert new["s"].get_scale() == scaler.get_scale() == 128.0
    assert new["e"].n_averaged == 4


# --- generators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda s: random.Random(s), lambda g: g.gauss(0, 1)),
        (lambda s: np.random.default_rng(s), lambda g: g.random()),
        (lambda s: np.random.default_rng(s), lambda g: g.spawn(1)[0].random()),
        (lambda s: np.random.Generator(np.random.MT19937(s)), lambda g: g.standard_normal()),
        (lambda s: np.random.Philox(s), lambda g: int(g.random_raw())),
        (lambda s: np.random.RandomState(s), lambda g: g.randn()),
        (
            lambda s: torch.Generator().manual_seed(s),
            lambda g: torch.randn(3, generator=g).tolist(),
        ),
    ],
    ids=["Random", "default_rng", "spawn", "MT19937", "bits", "RandomState", "torch"],
)
def test_generators_go_on(make: Callable[[int], Any], draw: Callable[[Any], Any]) -> None:
    generator, other = make(1), make(2)
    draw(generator)
    live = {"g": other}
    put({"g": generator}, live)
    assert live["g"] is other
    assert [draw(other) for _ in range(3)] == [draw(generator) for _ in range(3)]


def test_a_generator_of_another_algorithm_does_not_fit() -> None:
    live = {"a": [1], "g": np.random.default_rng(1)}
    with pytest.raises(errors.UsageError, match=r"PCG64.*Philox"):
        put({"a": [2], "g": np.random.Generator(np.random.Philox(1))}, live)
    with pytest.raises(errors.UsageError, match="another kind"):
        put({"a": [2], "g": random.Random(1)}, live)
    assert live["a"] == [1]


def test_all_global_generators_go_on(ckpts: Checkpoints) -> None:
    def draw() -> tuple[float, float, float]:
        return random.gauss(0, 1), float(np.random.randn()), float(torch.randn(()))

    draw()
    ckpts.save({}, 1)
    expected = draw(), draw()
    ckpts.restore({})
    assert (draw(), draw()) == expected


# --- what is shared -------------------------------------------------------------------------------


def test_views_of_live_memory_still_are() -> None:
    live = torch.zeros(4)
    state = {"w": live, "head": live[:2], "turned": live.view(2, 2).t(), "n": live.numpy()}
    saved = torch.arange(4.0)
    put(
        {"w": saved, "head": saved[:2], "turned": saved.view(2, 2).t(), "n": saved.numpy()},
        state,
    )
    assert live.tolist() == [0, 1, 2, 3]
    live[1] = 9
    assert state["head"].tolist() == [0, 9]
    assert state["turned"].tolist() == [[0, 2], [9, 3]]
    assert state["n"].tolist() == [0, 9, 2, 3]
    plain_state = round_trip({"w": saved, "head": saved[:2]})
    assert (plain_state["w"].tolist(), plain_state["head"].tolist()) == ([0, 1, 2, 3], [0, 1])


def test_tied_weights_stay_tied() -> None:
    def make() -> Any:
        model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    model, other = make(), make()
    put({"m": model, "w": model[0].weight}, {"m": other, "w": other[0].weight})
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, model[0].weight)


def test_expanded_tensors_are_put_back_into_their_memory() -> None:
    live = torch.zeros(3, 1)
    state = {"x": live.expand(3, 4), "y": torch.zeros(()).expand(2, 2)}
    put({"x": torch.arange(3.0)[:, None].expand(3, 4), "y": torch.ones(()).expand(2, 2)}, state)
    assert live.tolist() == [[0], [1], [2]]
    assert state["y"].tolist() == [[1, 1], [1, 1]]
    # Elements that are not the same cannot be one memory: another tensor takes the place.
    put({"x": torch.arange(12.0).reshape(3, 4), "y": state["y"]}, state)
    assert state["x"].tolist() == torch.arange(12.0).reshape(3, 4).tolist()


def test_one_list_in_two_places_stays_one() -> None:
    losses: list[float] = []
    state: dict[str, Any] = {"a": losses, "b": {"also": losses}, "n": 0, "k": 0}
    put({"a": [1.0, float("nan")], "b": {"also": [1.0, float("nan")]}, "n": 1, "k": 1}, state)
    assert state["a"] is losses
    assert state["b"]["also"] is losses
    assert (losses[0], state["n"], state["k"]) == (1.0, 1, 1)
    put({"a": [1], "b": {"also": [2]}, "n": 1, "k": 1}, state)
    assert (losses, state["b"]["also"]) == ([1], [2])


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_in_place() -> None:
    dense = torch.arange(6.0).reshape(2, 3)
    for kind in (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc):
        live = kind(dense * 0 + 1)
        state = {"same": live, "other": kind(torch.eye(2, 3))}
        put({"same": kind(dense + 1), "other": kind(dense)}, state)
        assert state["same"] is live
        assert live.to_dense().tolist() == (dense + 1).tolist()
        assert state["other"].to_dense().tolist() == dense.tolist()


@pytest.mark.parametrize(
    ("saved", "live", "fits"),
    [
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2), True),
        (torch.ones(2, dtype=torch.float64), torch.zeros(2), False),
        (torch.ones(2, dtype=torch.int64), torch.zeros(2), False),
        (torch.ones(2, dtype=torch.complex64), torch.zeros(2), False),
        (torch.ones(2).to(torch.float8_e4m3fn), torch.zeros(2), False),
        (np.ones(2, "f4"), np.zeros(2), True),
        (np.ones(2, "i8"), np.zeros(2, "i4"), False),
        (np.ones(2), torch.zeros(2), False),
    ],
    ids=lambda x: str(getattr(x, "dtype", x)),
)
def test_a_type_that_cannot_hold_the_values_does_not_fit(saved: Any, live: Any, fits: bool) -> None:
    state = {"x": live}
    if fits:
        put({"x": saved}, state)
        assert state["x"] is live
        assert live.tolist() == [1, 1]
        return
    with pytest.raises(errors.UsageError, match="exactly"):
        put({"x": saved}, state)
    inner = {"x": [live]}
    put({"x": [saved]}, inner)
    assert inner["x"][0].dtype == saved.dtype


def test_an_array_that_must_not_be_written_is_replaced() -> None:
    live = np.zeros(2)
    live.flags.writeable = False
    state = {"x": live}
    put({"x": np.ones(2)}, state)
    assert state["x"].tolist() == [1, 1]
    assert live.tolist() == [0, 0]


# --- dataclasses, enums, named tuples -------------------------------------------------------------


class Phase(enum.Enum):
    WARM = 1
    HOT = object()


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Bits(enum.Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Setup:
    rate: float
    path: Path


@dataclass
class TrainState:
    model: Any
    setup: Setup
    log: list[float] = field(default_factory=list)
    level: Level = Level.LOW
    best: Any = None


@dataclass
class Other:
    x: int = 0


def test_a_dataclass_is_restored_in_place() -> None:
    saved = TrainState(model_of(), Setup(0.5, Path("/data")), [1.0], Level.HIGH, Point(1, [2]))
    saved.extra = "set later"  # type: ignore[attr-defined]
    live = TrainState(model_of(), Setup(0.1, Path("/tmp")))
    model, log, setup = live.model, live.log, live.setup
    state = {"t": live}
    put({"t": saved}, state)
    assert state["t"] is live
    assert live.model is model
    assert weights(model) == weights(saved.model)
    assert live.log is log
    assert log == [1.0]
    assert live.level is Level.HIGH
    assert live.setup == saved.setup
    assert type(live.setup) is Setup
    assert setup == Setup(0.1, Path("/tmp"))
    assert live.best == Point(1, [2])
    assert vars(live)["extra"] == "set later"
    loaded = plain(round_trip({"t": saved}))["t"]
    assert loaded["level"] == 2
    assert loaded["setup"] == {"rate": 0.5, "path": Path("/data")}


def test_members_and_named_tuples_are_the_live_classes() -> None:
    state: dict[str, Any] = {"l": [Level.LOW, Bits.A], "p": Point(0, torch.zeros(1))}
    inner = state["p"].y
    put({"l": [Level.HIGH, Bits.A | Bits.B], "p": Point(1, torch.ones(1))}, state)
    assert state["l"] == [Level.HIGH, Bits.A | Bits.B]
    assert [type(x) for x in state["l"]] == [Level, Bits]
    assert type(state["p"]) is Point
    assert state["p"].y is inner
    assert inner.item() == 1
    with pytest.raises(errors.NotCheckpointable, match="object"):
        round_trip({"p": Phase.HOT})


@pytest.mark.parametrize(
    ("saved", "live", "says"),
    [
        (Level.LOW, Bits.A, "Level"),
        (Level.LOW, 1, "int"),
        (1, Level.LOW, "Level"),
        (Other(), Setup(1, Path()), "Other"),
        (Other(), random.Random(1), "another kind"),
        (
            TrainState(1, Setup(1, Path())),
            TrainState(random.Random(), Setup(1, Path())),
            r"\.model",
        ),
        (Other(), 3, "object's state"),
    ],
)
def test_what_does_not_fit_changes_nothing(saved: Any, live: Any, says: str) -> None:
    state = {"a": [0], "x": live}
    with pytest.raises(errors.UsageError, match=says):
        put({"a": [1], "x": saved}, state)
    assert state == {"a": [0], "x": live}


def test_a_member_that_is_gone_does_not_fit() -> None:
    class Old(enum.Enum):
        A = 1
        B = 2

    class New(enum.Enum):
        A = 1

    New.__qualname__ = Old.__qualname__
    with pytest.raises(errors.UsageError, match="no 'B'"):
        put({"x": Old.B}, {"x": New.A})


# --- any state ------------------------------------------------------------------------------------

tensors = st.builds(
    lambda shape, dtype, turn: (
        (torch.arange(int(np.prod(shape))).reshape(shape) % 2).to(dtype).permute(turn(len(shape)))
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.complex64, torch.bool, torch.int8]),
    st.sampled_from([lambda n: tuple(range(n)), lambda n: tuple(reversed(range(n)))]),
)
decimals = st.decimals().filter(lambda each: not each.is_snan())
more = st.dates() | st.timedeltas() | decimals | st.fractions() | st.uuids()
leaves = scalars | arrays | tensors | more | st.sampled_from([Path("a"), Point(1, 2.0)])
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.sets(keys, max_size=4)
        | st.lists(inner, max_size=3).map(deque)
        | inner.map(lambda one: [one, {"again": one}])
    ),
    max_leaves=12,
)


def alike(one: Any, other: Any) -> bool:
    """`same`, but a live dict keeps its class, and a live tensor its wider type."""
    if hasattr(one, "_fields"):
        return one._fields == other._fields and alike(tuple(one), tuple(other))
    if type(one) in (list, tuple, deque):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and alike(list(one.items()), list(other.items()))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return bool(torch.equal(one.to(other.dtype), other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.astype(other.dtype).tobytes() == other.tobytes()
    return same(one, other) or (one != one and str(one) == str(other))


def shared(value: Any) -> list[tuple[int, ...]]:
    """Which tensors and arrays, by their order, are one object."""
    found: dict[int, list[int]] = {}

    def walk(each: Any, count: list[int]) -> None:
        if isinstance(each, torch.Tensor | np.ndarray):
            if (each.numel() if isinstance(each, torch.Tensor) else each.nbytes) > 0:
                found.setdefault(id(each), []).append(count[0])
            count[0] += 1
        elif isinstance(each, dict):
            for item in each.values():
                walk(item, count)
        elif isinstance(each, list | tuple | deque):
            for item in each:
                walk(item, count)

    walk(value, [0])
    return sorted(map(tuple, found.values()))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states)
def test_any_state_comes_back_equal_and_shares_what_it_shared(value: Any) -> None:
    loaded = round_trip({"x": value})["x"]
    assert alike(value, loaded)
    assert shared(loaded) == shared(value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states, states)
def test_any_state_is_put_into_any_other(value: Any, live: Any) -> None:
    state = {"x": live, "list": [live], "twice": live}
    kept = state["list"]
    try:
        put({"x": value, "list": [value], "twice": copy.copy(value)}, state)
    except errors.UsageError:  # two tensors that do not fit each other: said, and nothing changed
        assert state == {"x": live, "list": kept, "twice": live}
        assert isinstance(live, torch.Tensor | np.ndarray)
        return
    assert alike(value, state["x"])
    assert alike([value], state["list"])
    assert alike(value, state["twice"])
    assert state["list"] is kept
