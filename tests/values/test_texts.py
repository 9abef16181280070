"""Columns of strings: what comes back, and that every change is seen."""

from __future__ import annotations

import gc
import math
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlcloud.values import texts
from mlcloud.values.pickling import dump, load

ROWS = 500


def column(values: list[Any]) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def there_and_back(value: Any) -> Any:
    pickled = dump(value, {})
    return load(pickled.payload, pickled.buffers, {})


@pytest.mark.parametrize("different", [1, 3, 400])
@pytest.mark.parametrize("missing", [(), (None,), (math.nan,), (None, math.nan)])
def test_a_column_comes_back(different: int, missing: tuple[Any, ...]) -> None:
    pick = random.Random(different)
    words = ["", "ä€😀", *(f"word {i}" for i in range(different))]
    values = [pick.choice([*words, *missing]) for _ in range(ROWS)]
    array = column(["one", *values])
    assert texts.parts(array) is not None
    back = there_and_back(array)
    assert [type(each) for each in back] == [type(each) for each in array]
    pd.testing.assert_series_equal(pd.Series(back), pd.Series(array))
    table = array[: ROWS // 2 * 2].reshape(-1, 2)
    for each in (table, np.asfortranarray(table), table[::-3], table.T):
        pd.testing.assert_frame_equal(pd.DataFrame(there_and_back(each)), pd.DataFrame(each))


def test_it_is_the_same_with_and_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [f"w{i % 7}" for i in range(ROWS)]
    with_pandas = texts.parts(column(values))
    monkeypatch.delitem(texts.sys.modules, "pandas")  # type: ignore[attr-defined]
    without = texts.parts(column(values))
    assert with_pandas is not None
    assert without is not None
    assert with_pandas[1] == without[1]


class Word(str):
    __slots__ = ()


@pytest.mark.parametrize("other", [Word("a"), np.str_("a"), 1, 1.5, b"a", ("a",), "\ud800"])
def test_what_is_not_only_strings_goes_as_it_is(other: Any) -> None:
    array = column(["a"] * ROWS)
    array[7] = other
    assert texts.parts(array) is None
    back = there_and_back(array)
    assert type(back[7]) is type(other)
    assert back[7] == other


def test_every_change_in_place_is_seen() -> None:
    """Also one to a string that lies where the one before it was."""
    array = column([f"value {i}" for i in range(ROWS)])
    pick = random.Random(5)
    for step in range(300):
        before = dump(array, {}).digest
        assert dump(array, {}).digest == before
        at = pick.randrange(ROWS)
        array[at] = f"{array[at]}!"  # frees the old one, whose place the next may get
        array[at] = f"other {step}"[:14]
        assert dump(array, {}).digest != before, step
        assert there_and_back(array)[at] == array[at]


def test_an_array_that_lies_where_another_was_is_another() -> None:
    for step in range(50):
        array = column([f"{step} {i}" for i in range(ROWS)])
        assert list(there_and_back(array)) == list(array)
        del array


def test_what_is_kept_is_bounded_and_goes_with_its_array(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = texts._Kept()
    monkeypatch.setattr(texts, "_kept", kept)
    monkeypatch.setattr(texts, "KEPT_BYTES", 100_000)
    arrays = [column([f"{n} {i}" for i in range(ROWS)]) for n in range(50)]
    for array in arrays:
        texts.parts(array)
    assert 50_000 < kept._bytes <= 100_000
    assert kept.get(arrays[0]) is None
    assert kept.get(arrays[-1]) is not None
    arrays.clear()
    del array
    gc.collect()
    assert kept._bytes == 0
