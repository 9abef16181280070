"""What a library owns joins no names; what is the user's does, also where a library holds it."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import figure

from mlcloud.values.owned import memory_of
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Scan

mpl.use("agg")


def groups(**names: Any) -> set[frozenset[str]]:
    scan = Scan(names, Classes())
    scan.add(names)
    assert not scan.failed
    return set(scan.groups([*scan.pickled]))


def drawing() -> Any:
    drawn = figure.Figure()
    axes = drawn.subplots()
    axes.plot([1, 3, 2], "o-", label="line")
    axes.imshow([[1, 2], [3, 4]], cmap="viridis")
    axes.legend()
    return drawn


def test_two_figures_have_nothing_in_common() -> None:
    first, second = drawing(), drawing()
    found = groups(first=first, axes=first.axes[0], second=second)
    assert found == {frozenset({"first", "axes"}), frozenset({"second"})}


def test_figures_that_share_an_axis_have() -> None:
    first, second = drawing(), drawing()
    second.axes[0].sharex(first.axes[0])
    assert groups(first=first, second=second) == {frozenset({"first", "second"})}


def test_settings_made_later_are_the_librarys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawing()
    groups(first=first)
    with mpl.rc_context({"axes.formatter.limits": [-3, 3]}):
        second, third = drawing(), drawing()
        assert len(groups(first=first, second=second, third=third)) == 3


def test_what_pyplot_holds_is_the_users() -> None:
    from matplotlib import pyplot

    pair = pyplot.subplots()
    try:
        assert groups(drawn=pair[0], axes=pair[1]) == {frozenset({"drawn", "axes"})}
    finally:
        pyplot.close(pair[0])


def test_an_object_in_a_class_of_the_notebook_is_the_users() -> None:
    shared: list[int] = []
    kind = type("Kind", (), {"shared": shared, "__module__": "__main__"})
    one, other = kind(), [shared]
    found = groups(Kind=kind, one=one, other=other)
    assert not any(group == {"other"} for group in found)


def test_figures_with_dates_have_nothing_in_common() -> None:
    import datetime

    days = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    first, second = drawing(), drawing()
    for each in (first, second):
        each.subplots().plot(days, [1, 2, 3])
    assert len(groups(first=first, second=second)) == 2


def test_ids_of_what_pickling_makes_are_not_remembered() -> None:
    """They come back as those of other objects, and names would seem to share."""
    import pandas as pd

    names = {"frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "drawn": drawing()}
    scan = Scan(names, Classes())
    scan.add(names)
    before = {name: scan.ids(name) for name in names}
    scan = Scan(names, Classes())
    scan.add(names)
    for name, ids in before.items():
        assert ids == scan.ids(name)
        assert len(ids) > 5


def test_a_tensor_around_others_has_no_memory_of_its_own() -> None:
    pytest.importorskip("torch")
    import torch

    class Around(torch.Tensor):  # as DTensor is
        inner: Any

        @classmethod
        def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    Around.__module__ = "torch.distributed.tensor"
    around: Any = torch.Tensor._make_wrapper_subclass(Around, [3])  # type: ignore[attr-defined]
    around.inner = torch.ones(3)
    assert list(memory_of(around)) == []
    found = Scan({"around": around}, Classes()).ids("around")
    assert {id(around), *memory_of(around.inner)} <= found
