"""Populations: who lags goes on from a leader's state, with other values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlcloud.errors import UsageError
from mlcloud.sweeps.breeding import Breeding, Member, Population
from mlcloud.sweeps.space import read

SPACE = read({"lr": (1e-4, 1.0, "log"), "wd": [0.0, 0.1, 0.2]})
STEPS = 40


def trained(population: Population, states: dict[int, float] | None = None) -> dict[int, float]:
    """Members that walk towards 0 as fast as their `lr` allows: beyond 0.5 they do not."""
    states = {} if states is None else states
    saved: dict[tuple[int, int], float] = {}
    places: list[Member] = []
    while True:
        while member := population.ask():
            if member.parent is not None:
                assert member.since is not None
                states[member.number] = saved[member.parent, member.since]
            places.append(member)
        if not places:
            return states
        for member in list(places):
            number, lr = member.number, member.params["lr"]
            at = states.get(number, 10.0)
            states[number] = at * (1 - lr) if lr < 0.5 else at * 1.05
            step = (member.step or member.since or 0) + 1
            saved[number, step] = states[number]
            if not population.report(number, step, {"loss": states[number]}):
                population.stop(number)
                places.remove(member)
            elif step >= STEPS:
                population.tell(number, {})
                places.remove(member)


def test_the_population_gets_where_its_first_members_do_not() -> None:
    bred = Population(SPACE, {"loss": "min"}, 8, Breeding(interval=4), seed=2)
    trained(bred)
    alone = Population(SPACE, {"loss": "min"}, 8, Breeding(interval=10**6), seed=2)
    trained(alone)
    assert len(alone.trials) == 8
    assert bred.best is not None
    assert alone.best is not None
    assert bred.best.values["loss"] < alone.best.values["loss"] * 0.5
    ended = [each.state for each in bred.trials.values()]
    assert ended.count("done") == 8  # as many as there are places
    children = [each for each in bred.trials.values() if isinstance(each, Member) and each.since]
    assert len(children) == ended.count("stopped") > 3
    for child in children:
        assert child.parent is not None
        parent = bred.trials[child.parent]
        assert (
            child.params["lr"] != parent.params["lr"] or child.params["wd"] != parent.params["wd"]
        )
        assert all(SPACE.dimensions[name].has(value) for name, value in child.params.items())


def test_it_goes_on_from_records() -> None:
    population = Population(SPACE, {"loss": "min"}, 4, Breeding(interval=1), seed=0)
    first = [population.ask() for _ in range(3)]
    for each, loss in zip(first, (1.0, 2.0, 3.0), strict=True):
        assert each is not None
        population.report(each.number, 1, {"loss": loss})
    records: list[dict[str, Any]] = json.loads(json.dumps(population.records))
    again = Population(SPACE, {"loss": "min"}, 4, Breeding(interval=1), seed=0, records=records)
    assert again.running == population.running
    born = again.ask()
    assert born is not None
    assert born.parent is None
    assert again.ask() is None  # four places


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="at least 2 members"):
        Population(SPACE, {"loss": "min"}, 1)
    with pytest.raises(UsageError, match="ranked by one metric"):
        Population(SPACE, {"loss": "min", "time": "min"}, 4)
    with pytest.raises(UsageError, match=r"quantile ≤ 0\.5"):
        Breeding(quantile=0.7)
