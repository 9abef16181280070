"""Searches: what is asked, what is stopped, what is best, and that another goes on from records."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from mlcloud.errors import UsageError
from mlcloud.sweeps.search import Asha, Search
from mlcloud.sweeps.space import read

pytest.importorskip("optuna")

SPACE = read({"x": (-1.0, 1.0), "kind": ["a", "b"], "n": (1, 4)})


def cost(params: dict[str, Any]) -> float:
    return float((params["x"] - 0.3) ** 2 + (params["kind"] == "b") + params["n"] / 10)


def ran(search: Search, together: int = 4) -> Search:
    """All trials, several at a time, that end in another order than they began."""
    dice, running = random.Random(1), list[Any]()
    while True:
        while len(running) < together and (trial := search.ask()):
            running.append(trial)
        if not running:
            return search
        trial = running.pop(dice.randrange(len(running)))
        search.tell(trial.number, {"loss": cost(trial.params)})


def test_tpe_finds_what_random_search_does_not() -> None:
    def best(algorithm: str, seed: int) -> float:
        found = ran(Search(SPACE, {"loss": "min"}, algorithm=algorithm, trials=60, seed=seed)).best
        assert found is not None
        return found.values["loss"]

    seeds = range(5)
    assert sum(best("tpe", seed) for seed in seeds) < sum(best("random", seed) for seed in seeds)
    assert best("tpe", 0) == best("tpe", 0)


def test_a_grid_is_tried_once_and_goes_on() -> None:
    space = read({"a": [1, 2, 3], "b": ["x", "y"]})
    everything = {(a, b) for a in (1, 2, 3) for b in "xy"}
    search = Search(space, {"loss": "min"}, algorithm="grid")
    assert search.wanted == 6
    first = [search.ask() for _ in range(3)]
    search.tell(0, {"loss": 1})
    search.fail(1, "no")
    again = Search(
        *(space, {"loss": "min"}),
        algorithm="grid",
        records=json.loads(json.dumps(search.records)),
    )
    assert again.running == [2]  # which ran when the records ended
    assert first[2] is not None
    assert again.trials[2].params == first[2].params
    again.tell(2, {"loss": 0.5})
    while trial := again.ask():
        again.tell(trial.number, {"loss": 2})
    tried = [(each.params["a"], each.params["b"]) for each in again.trials.values()]
    assert len(tried) == 6
    assert set(tried) == everything
    assert again.best is again.trials[2]


def test_records_hold_all_that_the_sampler_knows() -> None:
    search = ran(Search(SPACE, {"loss": "min"}, trials=30, seed=3))
    again = Search(SPACE, {"loss": "min"}, trials=90, seed=3, records=search.records)
    ran(again)
    found = [cost(each.params) for each in list(again.trials.values())[30:]]
    fresh = [
        cost(each.params) for each in ran(Search(SPACE, {"loss": "min"}, trials=60)).trials.values()
    ]
    assert sum(found) / 60 < sum(fresh) / 60  # it does not begin anew


def test_asha_ends_those_that_lag() -> None:
    search = Search(SPACE, {"loss": "min"}, trials=27, asha=Asha(1, 3), seed=0)
    steps = 0
    while trial := search.ask():
        for step in range(1, 10):
            steps += 1
            if not search.report(trial.number, step, {"loss": cost(trial.params) + 1 / step}):
                search.stop(trial.number)
                break
        else:
            search.tell(trial.number, {"loss": cost(trial.params)})
    stopped = [each for each in search.trials.values() if each.state == "stopped"]
    assert 10 < len(stopped) < 26
    assert steps < 27 * 9 * 0.6
    best = search.best
    assert best is not None
    costs = sorted(cost(each.params) for each in search.trials.values())
    assert cost(best.params) <= costs[4]
    again = Search(SPACE, {"loss": "min"}, trials=28, asha=Asha(1, 3), records=search.records)
    trial = again.ask()
    assert trial is not None
    assert not again.report(trial.number, 1, {"loss": 100.0})  # ranked among those before
    assert not again.report(trial.number, 1, {"loss": float("nan")})


def test_several_metrics_have_a_front() -> None:
    search = Search(
        *(read({"x": (0.0, 1.0)}), {"error": "min", "speed": "max"}),
        algorithm="nsga2",
        trials=60,
        seed=0,
    )
    while trial := search.ask():
        x = trial.params["x"]
        search.tell(trial.number, {"error": x**2, "speed": x if x < 0.5 else 0.5 - x})
    front = [each.params["x"] for each in search.front]
    assert front == sorted(front)
    assert len(front) > 5
    assert max(front) < 0.5  # beyond, both are worse
    with pytest.raises(UsageError, match="ASHA ranks trials by one metric"):
        Search(SPACE, {"a": "min", "b": "min"}, asha=Asha())


def test_what_was_told_is_what_counts() -> None:
    search = Search(SPACE, {"loss": "min"}, trials=4)
    for _ in range(4):
        search.ask()
    with pytest.raises(UsageError, match=r"trial 0 told no loss.*returns, or reports last"):
        search.tell(0, {"accuracy": 1.0})
    search.report(0, 1, {"loss": 0.25})
    search.tell(0, {})  # what it reported last
    search.tell(1, {"loss": float("nan")})
    search.fail(2, "RuntimeError: no")
    assert [search.trials[each].state for each in range(4)] == ["done", "done", "failed", "running"]
    assert search.best is search.trials[0]
    with pytest.raises(UsageError, match="no running trial 2"):
        search.tell(2, {"loss": 1.0})
    with pytest.raises(UsageError, match=r"no algorithm 'grit'.*did you mean.*grid"):
        Search(SPACE, {"loss": "min"}, algorithm="grit")
    with pytest.raises(UsageError, match=r'metrics: ."loss": "min"'):
        Search(SPACE, {"loss": "least"})  # type: ignore[dict-item]
