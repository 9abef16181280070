"""Spaces: what a user may write, what comes of it, and what is said of the rest."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mlcloud.errors import UsageError
from mlcloud.sweeps.space import Choice, Range, read

SPACE = {
    "lr": (1e-5, 1e-1, "log"),
    "dropout": (0.0, 0.5),
    "layers": (1, 4),
    "width": (64, 512, 64),
    "act": ["relu", "tanh"],
    "block": [int, float],
    "data": {"crop": [0.8, 1.0], "size": 32},
    "epochs": 10,
}


def test_what_is_written_is_what_is_tried() -> None:
    space, dice = read(SPACE), random.Random(0)
    assert list(space.dimensions) == [
        "lr",
        "dropout",
        "layers",
        "width",
        "act",
        "block",
        "data.crop",
    ]
    assert space.fixed == {"data.size": 32, "epochs": 10}
    tried = [space.config(space.sample(dice)) for _ in range(500)]
    for config in tried:
        assert list(config)
        assert config["epochs"] == 10
        assert config["data"]["size"] == 32
        assert 1e-5 <= config["lr"] <= 1e-1
        assert 0 <= config["dropout"] <= 0.5
        assert config["layers"] in (1, 2, 3, 4)
        assert type(config["layers"]) is int
        assert config["width"] in range(64, 513, 64)
        assert type(config["width"]) is int
        assert config["data"]["crop"] in (0.8, 1.0)
    assert {each["layers"] for each in tried} == {1, 2, 3, 4}
    assert {each["width"] for each in tried} == set(range(64, 513, 64))
    assert {each["block"] for each in tried} == {int, float}  # the objects, not their places
    assert 150 < sum(each["lr"] < 1e-3 for each in tried) < 350  # half of them, by the logarithm


def test_a_grid_is_everything() -> None:
    space = read({"a": [1, "x", None], "b": (1, 3), "c": (0.0, 1.0, 0.25), "d": {"e": [True]}})
    grid = space.grid()
    assert grid == {
        "a": [1, "x", None],
        "b": [1, 2, 3],
        "c": [0.0, 0.25, 0.5, 0.75, 1.0],
        "d.e": [True],
    }
    with pytest.raises(UsageError, match=r"grid over all numbers from 0 to 1 has no end.*a step"):
        read({"a": (0.0, 1.0)}).grid()


def test_optunas_own() -> None:
    distributions = pytest.importorskip("optuna").distributions
    space = read(
        {
            "a": distributions.FloatDistribution(1e-3, 1.0, log=True),
            "b": distributions.IntDistribution(2, 8, step=2),
            "c": distributions.CategoricalDistribution(["x", "y"]),
        }
    )
    assert space.dimensions == {
        "a": Range(1e-3, 1.0, log=True),
        "b": Range(2, 8, whole=True, step=2),
        "c": Choice(("x", "y")),
    }
    assert space.distributions["b"] == distributions.IntDistribution(2, 8, step=2)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "dict from names"),
        ([("lr", 1)], "dict from names"),
        ({"lr": 1}, r"nothing varies in this space \(lr\)"),
        ({"lr": []}, "lr is an empty list"),
        ({"lr": (1,)}, r"a range is \(low, high\)"),
        ({"lr": ("a", "b")}, "values to choose from stand in a list"),
        ({"lr": (2.0, 1.0)}, "lr: 2.0 is not below 1.0"),
        ({"lr": (0.0, 1.0, "log")}, "begins above 0"),
        ({"lr": (0.0, 1.0, "lgo")}, 'a step above 0, or "log"'),
        ({"lr": (0, 1, 0)}, "a step above 0"),
        ({"lr": (0, float("inf"))}, "a range is"),
        ({"a.b": [1]}, "no name of a parameter"),
        ({"a": {"b": (3, 1)}}, "a.b: 3 is not below 1"),
    ],
)
def test_what_is_wrong_is_named(space: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(space)


def test_neighbours_stay_within() -> None:
    space, dice = read(SPACE), random.Random(0)
    for _ in range(300):
        params = space.sample(dice)
        for name, value in params.items():
            for factor in (0.8, 1.2):
                assert space.dimensions[name].has(space.dimensions[name].near(value, factor, dice))
    layers = space.dimensions["layers"]
    assert layers.near(2, 1.2, dice) == 3
    assert layers.near(2, 0.8, dice) == 1
