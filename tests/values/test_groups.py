"""Names that share an object belong together."""

from __future__ import annotations

from mlcloud.values.groups import groups


def test_groups_are_the_connected_names() -> None:
    ids = {"a": {1}, "b": {2}, "c": {1, 2}, "d": {3}, "e": set[int](), "f": {3, 4}}
    assert set(groups("abcdef", ids)) == {frozenset("abc"), frozenset("df"), frozenset("e")}


def test_names_without_ids_and_unknown_ids_stay_alone() -> None:
    assert groups(["x", "y"], {"z": {1}}) == [frozenset({"x"}), frozenset({"y"})]
    assert groups([], {}) == []


def test_the_order_is_that_of_the_names() -> None:
    assert groups(["b", "a", "c"], {"a": {1}, "c": {1}}) == [
        frozenset({"b"}),
        frozenset({"a", "c"}),
    ]
