"""What a replay costs, to the second; what was possible; and what `mlcloud simulate` prints."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mlcloud.cli import main
from mlcloud.cluster.omniscient import omniscient
from mlcloud.cluster.policy import POLICIES
from mlcloud.cluster.simulation import Replay, replay, simulate
from mlcloud.cluster.traces import Trace, read_trace, renewal
from mlcloud.errors import UsageError

GAP_S = 600.0
HOUR = 3600.0
JOB = Replay(48 * HOUR, 0.8, 720.0, 3.0)


def one(pattern: str) -> np.ndarray:
    """A window of one lane and one zone from `"▔▔▁"`."""
    return np.array([mark == "▔" for mark in pattern])[None, :, None]


# --- the model -----------------------------------------------------------------------------------


def test_spot_all_the_time_costs_one_changeover_and_the_spot_price() -> None:
    up = np.ones((2, 360, 1), bool)
    for name in ("auto", "greedy", "uniform-progress"):
        lanes = replay(up, JOB, GAP_S, POLICIES[name])
        assert lanes.cost == pytest.approx((48 + 0.2) / 3 / 48)
        assert lanes.finished_s == pytest.approx(48.2 * HOUR)
        assert list(lanes.starts) == [1, 1]


def test_no_spot_at_all_costs_on_demand_with_one_changeover() -> None:
    up = np.zeros((2, 360, 1), bool)
    for name, policy in POLICIES.items():
        lanes = replay(up, JOB, GAP_S, policy)
        # with time to spare in the end, auto waits once more in case spot comes after all
        at_most = 48.4 if name == "auto" else 48.2
        assert lanes.cost[0] <= at_most / 48 + 1e-9, name
        assert not lanes.late.any()


def test_a_preemption_loses_the_changeover_and_keeps_the_work() -> None:
    # 1 h of work, 2 h of time, 15 min a start: 20 min on spot do 5 min of work, then 10 min of
    # waiting; two changeovers before it has to, the safety net takes on-demand for the rest.
    job = Replay(HOUR, 0.5, 900.0, 4.0)
    lanes = replay(one("▔▔▁▔▁▁▁▁▁▁▁▁"), job, GAP_S, POLICIES["greedy"])
    assert lanes.spot_s[0] == 20 * 60
    assert lanes.spot_work_s[0] == 5 * 60
    assert lanes.on_demand_work_s[0] == 55 * 60
    assert lanes.on_demand_s[0] == (55 + 15) * 60
    assert lanes.cost[0] == pytest.approx((20 / 4 + 70) / 60)
    assert not lanes.late[0]


def test_another_zone_costs_a_changeover() -> None:
    job = Replay(HOUR, 0.5, 600.0, 4.0)
    up = np.stack([one("▔▔▁▁▁▁▁▁▁▁▁▁")[..., 0], one("▔▁▔▔▔▔▔▔▔▔▔▔")[..., 0]], axis=2)
    lanes = replay(up, job, GAP_S, POLICIES["greedy"])
    assert lanes.starts[0] == 2
    assert lanes.spot_s[0] == 80 * 60
    assert lanes.on_demand_s[0] == 0


# --- the bound -----------------------------------------------------------------------------------


def cheapest_plan(up: np.ndarray, job: Replay, unit_s: float = 120.0) -> float:
    """By dynamic programming over every amount of work done, in units that divide all times."""
    gap, delay = int(GAP_S / unit_s), int(job.changeover_s / unit_s)
    work = int(job.work_s / unit_s)
    states = [(market, left) for market in ("spot", "demand") for left in range(delay + 1)]
    cost = {(None, 0): np.full(work + 1, np.inf)}
    cost[None, 0][0] = 0.0
    best = np.inf
    for there in up:
        new = {state: np.full(work + 1, np.inf) for state in [(None, 0), *states]}
        for (market, left), paid in cost.items():
            new[None, 0] = np.minimum(new[None, 0], paid)
            for other in ("spot", "demand"):
                if other == "spot" and not there:
                    continue
                lost = left if other == market else delay
                price = 1.0 if other == "spot" else job.price_ratio
                done = max(gap - lost, 0)
                after = new[other, max(lost - gap, 0)]
                ends = work - done  # whoever has more than this done finishes within the step
                after[done:] = np.minimum(after[done:], (paid + price * gap)[: ends + 1])
                if done:
                    rest = np.arange(work, ends - 1, -1) - ends
                    finish = paid[ends:] + price * (lost + done - rest[::-1])
                    best = min(best, finish.min())
        cost = new
    return float(best / job.price_ratio / work)


def test_the_bound_is_below_the_best_plan_and_close() -> None:
    gaps = []
    for seed, changeover_s in enumerate((0.0, 240.0, 720.0, 720.0, 1800.0)):
        job = Replay(12 * HOUR, 0.8, changeover_s, 3.0)
        up = made(seed, 1, 1, days=15 / 24).up
        best = cheapest_plan(up, job)
        bound = omniscient(
            up[None, :, None],
            work_s=job.work_s,
            deadline_s=job.deadline_s,
            changeover_s=changeover_s,
            gap_s=GAP_S,
            price_ratio=3.0,
        )[0]
        assert bound <= best + 1e-6
        gaps.append(best - bound)
    assert np.mean(gaps) < 0.01


def test_no_policy_is_cheaper_than_the_bound() -> None:
    for seed in range(3):
        for name in POLICIES:
            found = simulate([made(seed, 2, 1)], JOB, policy=name, starts=40)
            assert found["omniscient"] <= found["cost_over_on_demand"] + 1e-9


# --- auto beside Uniform Progress ----------------------------------------------------------------


def made(seed: int, up_h: float, down_h: float, days: float = 12, shape: float = 0) -> Trace:
    """Runs of these mean lengths: exponential, or with `shape`, of Lomax's distribution."""
    random = np.random.default_rng(seed)

    def draw(mean_h: float) -> Callable[[], float]:
        if shape:
            return lambda: mean_h * HOUR * (shape - 1) * random.pareto(shape)
        return lambda: random.exponential(mean_h * HOUR)

    return renewal(f"t{seed}", days * 24 * HOUR, GAP_S, draw(up_h), draw(down_h))


@pytest.mark.parametrize("fraction", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("changeover_s", [72.0, 720.0, 1800.0])
def test_auto_costs_less_than_uniform_progress(fraction: float, changeover_s: float) -> None:
    job = Replay(48 * HOUR, fraction, changeover_s, 3.0)
    traces = [
        made(seed, up_h, down_h, shape=shape)
        for seed, (up_h, down_h, shape) in enumerate(
            itertools.product((1, 4, 12), (1, 4, 12), (0, 1.5))
        )
    ]
    found = {
        name: simulate(traces, job, policy=name, starts=10)
        for name in ("auto", "uniform-progress", "greedy")
    }
    costs = {name: each["cost_over_on_demand"] for name, each in found.items()}
    assert costs["auto"] < costs["uniform-progress"] - 0.005
    assert costs["auto"] < costs["greedy"]
    assert found["auto"]["late"] == 0


def test_auto_is_near_on_demand_where_spot_is_worth_nothing() -> None:
    steps = int(12 * 24 * HOUR / GAP_S)
    flapping = Trace("flapping", GAP_S, np.arange(steps) % 2 == 0)
    never = Trace("never", GAP_S, np.zeros(steps, bool))
    for trace in (flapping, never):
        assert simulate([trace], JOB, starts=20)["cost_over_on_demand"] < 1.06


def test_two_zones_together_cost_less_than_the_better_of_them() -> None:
    zones = [made(seed, 4, 4) for seed in (1, 2)]
    apart = simulate(zones, JOB, starts=40)["traces"]
    together = simulate(zones, JOB, starts=40, together=True)
    progress = simulate(zones, JOB, starts=40, together=True, policy="uniform-progress")
    assert together["cost_over_on_demand"] < min(row["cost_over_on_demand"] for row in apart) - 0.05
    assert together["cost_over_on_demand"] < progress["cost_over_on_demand"]
    assert together["omniscient"] < together["cost_over_on_demand"]


@pytest.mark.parametrize("fraction", [0.6, 0.7, 0.8, 0.9, 0.923])
def test_none_is_late_at_any_fraction(fraction: float) -> None:
    traces = [made(seed, up, down) for seed, (up, down) in enumerate([(0.2, 0.2), (3, 1), (8, 20)])]
    job = Replay(48 * HOUR, fraction, 720.0, 3.1446)
    for name in POLICIES:
        assert simulate(traces, job, policy=name, starts=30)["late"] == 0


# --- mlcloud simulate ----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for seed in (1, 2):
        trace = made(seed, 4, 2)
        path = tmp_path / f"zone-{seed}.json"
        data = [int(each) for each in trace.up]
        path.write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": data}))
        paths.append(str(path))
    return paths


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *words], catch_exceptions=False)


ASKED = (
    *("--job", "48h", "--fraction", "0.8", "--changeover", "12m", "--price-ratio", "3.1446"),
    *("--starts", "30", "--seed", "0", "--policy", "auto"),
)


def test_json_says_what_it_cost_and_what_was_possible(files: list[str]) -> None:
    found: dict[str, Any] = json.loads(run(*files, *ASKED, "--json").stdout)
    assert found["late"] == 0
    assert found["deadline_hours"] == pytest.approx(60)
    assert found["omniscient"] < found["cost_over_on_demand"] < 1
    hours = found["hours"]
    assert hours["spot_work"] + hours["on_demand_work"] == pytest.approx(48)
    paid = (hours["spot"] / 3.1446 + hours["on_demand"]) / 48
    assert found["cost_over_on_demand"] == pytest.approx(paid)
    assert [row["trace"] for row in found["traces"]] == ["zone-1", "zone-2"]
    assert found == json.loads(run(*files, *ASKED, "--json").stdout)
    other = json.loads(run(*files, *ASKED, "--seed", "1", "--json").stdout)
    assert other["cost_over_on_demand"] != found["cost_over_on_demand"]


def test_without_json_it_is_a_table(files: list[str]) -> None:
    lines = run(*files, *ASKED).stdout.splitlines()
    assert lines[0].split() == [
        *("trace", "spot", "there", "cost", "omniscient", "spot", "h", "on-demand", "h"),
        *("starts", "late"),
    ]
    assert [line.split()[0] for line in lines[1:]] == ["zone-1", "zone-2", "auto"]
    assert lines[-1].endswith("0 of 60")


def test_zones_together_are_one_market(files: list[str]) -> None:
    found = json.loads(run(*files, *ASKED, "--zones", "together", "--json").stdout)
    assert [row["trace"] for row in found["traces"]] == ["zone-1 + zone-2"]
    assert found["zones"] == "together"


def test_within_keeps_to_the_beginning(files: list[str]) -> None:
    all_of_it = json.loads(run(*files, *ASKED, "--json").stdout)
    some = json.loads(run(*files, *ASKED, "--within", "3d", "--json").stdout)
    assert some["cost_over_on_demand"] != all_of_it["cost_over_on_demand"]
    assert "zone-1 has 2 d 00 h, and the job takes up to" in run(*files, "--within", "2d").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.json"], "cannot read the trace no.json: No such file"),
        ([], "no trace: name at least one file"),
        (["FILE", "--fraction", "1.2"], "the fraction is 1.2"),
        (["FILE", "--fraction", "0"], "the fraction is 0"),
        (["FILE", "--job", "400h"], "zone-1 has 12 d 00 h, and the job takes up to 20 d 20 h"),
        (["FILE", "--policy", "greed"], "unknown policy 'greed'"),
        (["FILE", "--job", "48"], "'48' has no unit"),
        (["FILE", "--job", "0h"], "the job is 0"),
        (["FILE", "--price-ratio", "0"], "the price ratio is 0"),
        (["FILE", "--price-ratio", "nan"], "the price ratio is nan"),
        (["FILE", "--starts", "0"], "--starts is 0"),
        (["FILE", "SHORT", "--zones", "together"], "traces of one market have one time span"),
        (["TEXT"], "is not JSON"),
        (["OTHER"], "is not one of spot availability"),
        (["EMPTY"], "data not empty"),
    ],
)
def test_what_is_wrong_is_one_line(
    files: list[str], tmp_path: Path, words: list[str], said: str
) -> None:
    contents = {
        "SHORT": '{"metadata": {"gap_seconds": 600}, "data": [1, 0]}',
        "TEXT": "hello",
        "OTHER": '{"data": {"a": 1}}',
        "EMPTY": '{"metadata": {"gap_seconds": 600}, "data": []}',
    }
    names = {"FILE": files[0]}
    for name, text in contents.items():
        (tmp_path / f"{name}.json").write_text(text)
        names[name] = str(tmp_path / f"{name}.json")
    result = run(*(names.get(word, word) for word in words))
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_a_trace_counts_nodes(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"metadata": {"gap_seconds": 60}, "data": [0, 1, 4]}')
    assert list(read_trace(path).up) == [False, True, True]
    assert list(read_trace(path, nodes=2).up) == [False, False, True]


def test_a_policy_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="it is one of auto, uniform-progress, greedy, on-demand"):
        simulate([made(1, 1, 1)], JOB, policy="x")
