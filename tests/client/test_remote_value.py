"""A handle shows what it is, and refuses to pass for the object."""

from __future__ import annotations

import pickle
import signal
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlcloud import errors
from mlcloud.client.remote_value import RemoteValue
from mlcloud.values.preview import describe


def handle(value: Any, fetch: Any = None) -> RemoteValue:
    info = describe("big", value, binding=7, nbytes=None, why="")
    return RemoteValue(info, "exp", fetch)


def test_it_shows_what_it_is() -> None:
    array = handle(np.zeros((1000, 20), dtype="float32"))
    assert (array.name, array.type, array.shape, array.dtype) == (
        "big", "numpy.ndarray", (1000, 20), "float32",
    )  # fmt: skip
    assert (array.nbytes, array.place) == (80_000, "exp")
    assert "1000×20" in repr(array)
    assert "78.1 KiB" in repr(array)
    table = handle(pd.DataFrame({"<a>": range(1000)}))
    assert "&lt;a&gt;" in table._repr_html_()
    assert len(table._repr_html_()) < 5000
    assert "<script>" not in handle("<script>")._repr_html_()


def test_it_shows_the_sessions_name_and_is_addressed_by_its_id() -> None:
    info = describe("big", [1], binding=7, nbytes=None, why="")
    big = RemoteValue(info, "s-1", place="<exp>")
    assert big.place == "<exp>"
    assert "in session <exp>" in repr(big)
    assert "in session &lt;exp&gt;" in big._repr_html_()
    for use in (len, lambda v: v.get()):
        with pytest.raises((TypeError, errors.NotFound), match="session <exp>"):
            use(big)
    assert big.__mlcloud_ref__ == ("s-1", "big", 7)


def test_previews_are_short_and_never_fail() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError("no")

        @property
        def shape(self) -> Any:
            raise ValueError("no")

    assert "no" in repr(handle(Broken()))
    for value in ("x" * 10**6, list(range(10**6)), dict.fromkeys(range(1000), "y" * 1000)):
        assert len(handle(value)._info.text) <= 2048


def test_it_can_be_fetched() -> None:
    assert handle(5, lambda name, binding: (name, binding)).get() == ("big", 7)
    with pytest.raises(errors.NotFound, match="exp"):
        handle(5).get()


def test_it_says_so_when_used_as_the_object() -> None:
    big = handle([1])
    with pytest.raises(AttributeError, match=r"append.*session exp.*%%remote.*big\.get\(\)"):
        big.append(2)
    with pytest.raises(AttributeError, match="session exp"):
        big.x = 1  # type: ignore[misc]
    for use in (len, list, bool, np.asarray, lambda v: v[0], lambda v: v + 1, lambda v: 1 * v):
        with pytest.raises(TypeError, match="session exp"):
            use(big)
    with pytest.raises(errors.NotPicklable, match="session exp"):
        pickle.dumps(big)
    assert big is not None
    assert {big: 1}[big] == 1


# --- what each kind of value says -----------------------------------------------------------------


def facts(value: Any) -> dict[str, str]:
    return dict(describe("v", value, binding=1, nbytes=None, why="").facts)


def test_an_array_says_its_range() -> None:
    assert facts(np.array([1.0, 2.0, np.nan])) == {
        "not finite": "1", "min": "1", "max": "2", "mean": "1.5",
    }  # fmt: skip
    assert facts(np.arange(5))["max"] == "4"
    assert facts(np.array([])) == {}
    assert facts(np.array(["a"])) == {}
    assert facts(np.array([np.inf])) == {"not finite": "1"}
    large = np.broadcast_to(np.float64(1), (10**10,))  # looking at all of it takes minutes
    assert facts(large) == {}


def test_a_table_says_rows_columns_types_and_deep_bytes() -> None:
    table = pd.DataFrame({f"c{i}": [1.0] * 5000 for i in range(20)} | {"name": ["x" * 1000] * 5000})
    info = describe("t", table, binding=1, nbytes=None, why="")
    said = dict(info.facts)
    assert said["rows × columns"] == "5,000 × 21"
    assert said["columns"].startswith("c0 float64, c1 float64")
    assert said["columns"].endswith("… 13 more")
    assert info.nbytes is not None
    exact = int(table.memory_usage(deep=True).sum())
    assert abs(info.nbytes - exact) < 0.05 * exact
    assert info.html is not None
    assert info.html.count("<tr") < 10
    series = describe("s", table["name"], binding=1, nbytes=None, why="")
    assert dict(series.facts)["rows"] == "5,000"
    assert "<table" in (series.html or "")


def test_a_tensor_says_its_device_and_a_model_its_parameters() -> None:
    torch = pytest.importorskip("torch")
    said = facts(torch.ones(2, 3, requires_grad=True))
    assert (said["device"], said["requires_grad"], said["mean"]) == ("cpu", "True", "1")
    assert facts(torch.ones(2, dtype=torch.bfloat16))["device"] == "cpu"
    model = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Linear(4, 1))
    model[0].requires_grad_(False)
    shown = handle(model)
    assert facts(model)["parameters"] == "49 (5 trainable)"
    assert "Linear(in_features=10" in repr(shown)
    assert shown.nbytes == 49 * 4


def test_an_estimator_says_whether_it_is_fitted() -> None:
    linear = pytest.importorskip("sklearn.linear_model").LinearRegression()
    assert facts(linear) == {"fitted": "no"}
    linear.fit([[1, 2], [2, 1], [0, 1]], [1, 2, 3])
    assert facts(linear) == {"fitted": "yes", "features": "2"}
    assert "LinearRegression" in handle(linear)._repr_html_()


def test_containers_say_their_length() -> None:
    assert facts([1] * 5000) == {"length": "5,000"}
    assert facts({"a": 1}) == {"length": "1"}


class Endless:
    """Nothing about it ends, and it swallows what it can."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)

    def __repr__(self) -> str:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue


def test_a_preview_never_hangs_or_fails() -> None:
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    began = time.perf_counter()
    info = describe("e", Endless(), binding=1, nbytes=None, why="")
    assert "longer than 1 s" in info.text
    assert time.perf_counter() - began < 5
    after = signal.getitimer(signal.ITIMER_REAL)[0]
    assert (after > 0) == (before > 0), "a timer of somebody else's goes on"

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *_: Any) -> Any:
            return self

        __iter__ = __len__ = __int__ = __str__ = __repr__ = __call__  # type: ignore[assignment]

    assert "repr failed" in describe("a", Anything(), binding=1, nbytes=None, why="").text


def test_all_text_is_escaped() -> None:
    class Odd:
        def __repr__(self) -> str:
            return "<script>alert(1)</script>"

    Odd.__qualname__ = "<img src=x>"
    info = describe("<b>name", Odd(), binding=1, nbytes=None, why="<i>why")
    shown = RemoteValue(info, "s", place="<u>place")._repr_html_()
    for raw in ("<script>", "<img", "<b>name", "<i>why", "<u>place"):
        assert raw not in shown
    assert facts(pd.DataFrame({"<script>": [1]}))["columns"] == "<script> int64"
    assert "<script>" not in handle(pd.DataFrame({"<script>": [1]}))._repr_html_()


def test_it_fits_light_and_dark_themes() -> None:
    shown = handle(np.zeros(3))._repr_html_()
    assert "var(--jp-ui-font-color1,inherit)" in shown
    assert "#" not in shown.partition(">")[0]  # no colour of its own
