"""A handle shows what it is, and refuses to pass for the object."""

from __future__ import annotations

import pickle
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
