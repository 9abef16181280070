"""Sweeps on a real cluster: searched, stopped early, bred, bought, lost and found again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud import errors
from mlcloud.client.sweeps import Sweep
from tests.live import Embedded, open_notebook, until

pytestmark = pytest.mark.usefixtures("connected")
WAIT_S = 180.0


def swept(function: Any, space: Any, **options: Any) -> Sweep:
    return mlcloud.sweep(function, space, **{"max_workers": 2, "wait": False, **options})


def bowl(config: dict[str, Any]) -> dict[str, float]:
    return {"loss": (config["x"] - 0.3) ** 2 + config.get("shift", 0.0), "size": config["x"]}


# --- searched -------------------------------------------------------------------------------------


def test_the_best_of_many_is_found() -> None:
    sweep = swept(bowl, {"x": (0.0, 1.0), "shift": 0.5}, trials=15, seed=1)
    best = sweep.result(WAIT_S)
    assert best is not None
    assert sweep.state == "done"
    assert len(sweep.trials) == 15
    assert best.values["loss"] == min(each.values["loss"] for each in sweep.trials)
    assert abs(best.params["x"] - 0.3) < 0.15
    assert best.values["loss"] == pytest.approx((best.params["x"] - 0.3) ** 2 + 0.5)
    assert sweep.value() == {"loss": best.values["loss"], "size": best.params["x"]}
    assert sweep.cost > 0
    table = sweep.table
    assert next(iter(table["trial"])) == best.number
    assert len(table) == 15
    assert {"trial", "state", "x", "loss", "size"} <= set(table.columns)
    shown = sweep._repr_mimebundle_()
    assert "15 of 15 trials" in shown["text/plain"]
    assert "(simulated)" in shown["text/plain"]
    assert "<svg" in shown["text/html"]
    again = mlcloud.attach(sweep.id)
    assert isinstance(again, Sweep)
    assert again.result(WAIT_S).number == best.number


class Big:
    pass


def test_a_grid_tries_each_also_of_what_is_no_number() -> None:
    def name(config: dict[str, Any]) -> float:
        return len(config["kind"].__name__) * config["times"]

    space = {"kind": [Big, dict, OSError], "times": [1, 2]}
    sweep = swept(name, space, algorithm="grid", metric="length", mode="max")
    best = sweep.result(WAIT_S)
    assert best is not None
    assert len(sweep.trials) == 6
    assert best.params == {"kind": "OSError", "times": 2}
    assert best.values == {"length": 14.0}


def test_of_several_metrics_there_is_a_front() -> None:
    def both(config: dict[str, Any]) -> dict[str, float]:
        return {"loss": config["x"], "ms": 10 - config["x"] + config["waste"]}

    space = {"x": [1, 2, 3], "waste": [0, 5]}
    metrics: dict[str, Any] = {"loss": "min", "ms": "min"}
    sweep = swept(both, space, algorithm="grid", metric=metrics)
    sweep.result(WAIT_S)
    assert [each.params for each in sweep.front] == [{"x": x, "waste": 0} for x in (1, 2, 3)]


def test_trials_that_lag_behind_are_ended_early() -> None:
    def slow(config: dict[str, Any]) -> dict[str, float]:
        import time

        import mlcloud

        for step in range(1, 33):
            mlcloud.report(loss=config["x"] + 1 / step, step=step)
            time.sleep(0.05)
        return {"loss": config["x"]}

    space = {"x": [0.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]}
    sweep = swept(slow, space, algorithm="grid", asha=mlcloud.Asha(first=1, factor=2))
    best = sweep.result(WAIT_S)
    assert best is not None
    assert best.params == {"x": 0.0}
    states = [each.state for each in sweep.trials]
    assert states.count("stopped") >= 4
    stopped = next(each for each in sweep.trials if each.state == "stopped")
    assert stopped.step is not None
    assert stopped.step < 32
    assert sweep.value(stopped) is None
    assert sweep.info.failed == 0


def test_a_population_goes_on_with_its_leaders_checkpoints() -> None:
    def climb(config: dict[str, Any]) -> dict[str, float]:
        import time

        import mlcloud

        state = {"at": 0.0, "path": []}
        for _ in mlcloud.resumable(range(30), state=state, every=1):
            state["at"] += config["speed"]  # type: ignore[operator]
            state["path"].append(config["speed"])  # type: ignore[attr-defined]
            mlcloud.report(height=state["at"])
            time.sleep(0.1)
        return {"height": state["at"], "speeds": len(set(state["path"]))}  # type: ignore[arg-type,dict-item]

    sweep = swept(
        *(climb, {"speed": (0.1, 10.0, "log")}),
        metric="height",
        mode="max",
        algorithm="pbt",
        trials=4,
        max_workers=4,
        cpus=0.5,
        breeding=mlcloud.Breeding(interval=5, quantile=0.5),
        seed=3,
    )
    best = sweep.result(WAIT_S)
    assert best is not None
    states = [each.state for each in sweep.trials]
    assert states.count("done") == 4
    assert states.count("stopped") == len(states) - 4 > 0
    # Some that came to their end had another speed before: they went on from a leader's state.
    ended = [each for each in sweep.trials if each.state == "done"]
    assert any(each.values["speeds"] > 1 for each in ended)


# --- its end --------------------------------------------------------------------------------------


def endless(config: dict[str, Any]) -> None:
    import itertools
    import time

    import mlcloud

    for step in itertools.count(1):
        mlcloud.report(loss=config["x"] / step, step=step)
        time.sleep(0.05)


def test_a_budget_in_dollars_ends_it_with_what_it_has() -> None:
    sweep = swept(endless, {"x": (1.0, 2.0)}, budget=0.0001)
    best = sweep.result(WAIT_S)
    assert best is not None
    assert sweep.state == "done"
    assert "its budget of $0.0001 is spent" in sweep.info.detail
    assert {each.state for each in sweep.trials} == {"stopped"}
    assert float(sweep.cost) < 0.001
    assert "of $0.0001" in sweep._repr_mimebundle_()["text/plain"]


def test_a_budget_of_time_ends_it_too() -> None:
    sweep = swept(endless, {"x": (1.0, 2.0)}, budget="4s")
    assert sweep.result(WAIT_S) is not None
    assert sweep.info.detail == "its 4s are over"


def test_cancelled_what_was_found_stays() -> None:
    sweep = swept(endless, {"x": (1.0, 2.0)}, trials=5)
    until(lambda: any(each.values for each in sweep.trials), "a trial reports", timeout=WAIT_S)
    assert sweep.cancel()
    assert sweep.best is not None
    assert sweep.state == "cancelled"
    until(lambda: sweep.info.workers == 0, "its workers are free", timeout=30)


# --- what goes wrong ------------------------------------------------------------------------------


def test_trials_that_fail_are_told_and_the_rest_goes_on() -> None:
    def risky(config: dict[str, Any]) -> float:
        if config["x"] == 2:
            raise ValueError("two is too much")
        return -float("inf") if config["x"] == 3 else config["x"]  # type: ignore[no-any-return]

    sweep = swept(risky, {"x": [1, 2, 3, 4]}, algorithm="grid")
    best = sweep.result(WAIT_S)
    assert best is not None
    assert best.params == {"x": 1}
    failed = [each for each in sweep.trials if each.state == "failed"]
    assert [(each.params, each.why) for each in failed] == [
        ({"x": 2}, "ValueError: two is too much")
    ]
    with pytest.raises(ValueError, match="two is too much"):
        sweep.value(failed[0])


def test_when_the_first_ones_all_fail_it_is_over() -> None:
    def broken(config: dict[str, Any]) -> float:
        raise RuntimeError("no such column")

    sweep = swept(broken, {"x": (0.0, 1.0)}, trials=1000)
    with pytest.raises(errors.JobFailed, match=r"first \d trials have failed.*no such column"):
        sweep.result(WAIT_S)
    assert len(sweep.trials) < 20
    with pytest.raises(errors.JobFailed, match="no such column"):
        sweep.show()


def test_what_tells_no_metric_is_told() -> None:
    def silent(config: dict[str, Any]) -> str:
        return "done"

    with pytest.raises(errors.JobFailed, match="told no loss"):
        swept(silent, {"x": [1, 2]}, algorithm="grid").result(WAIT_S)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"algorithm": "magic", "trials": 3}, "magic.*tpe"),
        ({}, "no end"),
        ({"trials": 0}, "trials"),
        ({"budget": -1}, "buys nothing"),
        ({"budget": "soon"}, "soon"),
        ({"trials": 3, "mode": "least"}, "metrics"),
        ({"trials": 3, "every": "1d"}, "every"),
        ({"trials": 3, "max_cost": 1}, "budget"),
        ({"trials": 3, "colour": "red"}, "sweep: unknown option colour; there are metric, mode"),
        ({"trials": 3, "metric": ["a", "b"]}, "a dict for several"),
        ({"trials": 1, "algorithm": "pbt"}, "at least 2"),
        ({"trials": 3, "metric": {"a": "min", "b": "max"}, "asha": True}, "ASHA"),
        ({"algorithm": "grid"}, "no end"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(errors.UsageError, match=match):
        swept(bowl, {"x": (0.0, 1.0)}, **options)


def test_what_a_function_cannot_take_along_is_named() -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(errors.NotPicklable, match="lock"):
        swept(lambda config: lock, {"x": [1]}, algorithm="grid")


# --- lost and found -------------------------------------------------------------------------------


def saved(config: dict[str, Any]) -> dict[str, float]:
    import time
    from pathlib import Path

    import mlcloud

    with (Path(config["folder"]) / str(config["x"])).open("a") as file:
        file.write("begun\n")
    state = {"total": 0.0}
    for step in mlcloud.resumable(range(100), state=state, every=1):
        state["total"] += config["x"]
        mlcloud.report(loss=state["total"] / (step + 1))
        time.sleep(0.1)
    return {"loss": state["total"]}


def test_trials_outlive_their_node_and_the_gateway(jobs_cluster: Embedded, tmp_path: Path) -> None:
    space = {"x": [1, 2, 3], "folder": str(tmp_path)}
    sweep = swept(saved, space, algorithm="grid")
    until(
        lambda: any((each.step or 0) > 8 for each in sweep.trials),
        "a trial is under way",
        timeout=WAIT_S,
    )
    client = jobs_cluster.connect()
    client.cluster.preempt(sweep.info.places[0], notice=1)
    until(lambda: sweep.info.preempted > 0, "a trial runs again", timeout=WAIT_S)
    until(lambda: sweep.info.running > 0, "it goes on", timeout=WAIT_S)
    jobs_cluster.kill_gateway()
    jobs_cluster.connect()
    again = mlcloud.attach(sweep.id)
    best = again.result(WAIT_S)
    assert best.params["x"] == 1
    assert [each.values["loss"] for each in again.trials] == [100.0, 200.0, 300.0]
    assert [each.step for each in again.trials] == [100, 100, 100]
    begun = sum(len(each.read_text().split()) for each in tmp_path.iterdir())
    assert begun > 3  # what ran on the node began again, at its checkpoint


def test_in_a_notebook_it_is_drawn(jobs_cluster: Embedded) -> None:
    with open_notebook(jobs_cluster) as notebook:
        notebook.ok("import mlcloud")
        shown = notebook.ok(
            "def f(config):\n"
            "    return (config['a'] - 2) ** 2 + (config['kind'] == 'b')\n"
            "s = mlcloud.sweep(f, {'a': (0.0, 4.0), 'kind': ['a', 'b']}, trials=10, max_workers=2)"
        )
        assert "10 of 10 trials" in str(shown)
        result = notebook.ok("print(s.best.values['loss'] < 2, len(s.table))")
        assert "True 10" in str(result)


def test_a_function_for_a_sweep_also_runs_by_itself() -> None:
    mlcloud.report(loss=0.3)
    with pytest.raises(errors.UsageError, match="none of this is a number"):
        mlcloud.report(loss="low")
    assert math.isclose(bowl({"x": 0.3})["loss"], 0.0)
