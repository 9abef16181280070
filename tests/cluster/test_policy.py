"""Never late whatever spot does, no more careful than that needs, and the same live as replayed."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcloud.cluster.lifetimes import Lifetimes, Sighting, Watch, lifetimes
from mlcloud.cluster.offers import Market, Offer
from mlcloud.cluster.policy import (
    ON_DEMAND,
    POLICIES,
    WAIT,
    Decision,
    Job,
    Places,
    Progress,
    View,
    auto,
    decide,
    keep_safe,
    kind_of,
    prepare,
)
from mlcloud.cluster.simulation import Replay, replay
from mlcloud.cluster.slack import SlackTable, slack_table
from mlcloud.errors import NoSuchResources, UsageError

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
GAP_S = 600.0


def offer(market: Market, zone: str = "z-a", price: str = "1") -> Offer:
    return Offer(
        cloud="local",
        region="z",
        zone=zone,
        instance_type="m",
        cpus=4,
        memory_bytes=2**34,
        accelerator=None,
        accelerator_count=0,
        market=market,
        usd_per_hour=Decimal(price),
        simulated=True,
        source="test",
        as_of=date(2026, 1, 1),
    )


OFFERS = [offer("on-demand", price="3"), offer("spot"), offer("spot", "z-b")]
JOB = Job(48 * HOUR, 60 * HOUR, timedelta(minutes=12))


def view(left: float, work: float, where: int, delay: float, up: list[bool], **more: float) -> View:
    return View(
        job_s=max(work, 1.0),
        deadline_s=max(left, work, 1.0),
        changeover_s=more.get("changeover", 720.0),
        step_s=more.get("step", GAP_S),
        left_s=np.array([left]),
        work_s=np.array([work]),
        where=np.array([where]),
        changeover_left_s=np.array([delay]),
        seen=Lifetimes(np.array([up])),
        on_demand_price=3.0,
        spot_prices=np.ones(len(up)),
    )


# --- the point of no return ----------------------------------------------------------------------


seconds = st.integers(0, 7200)


@settings(deadline=None, max_examples=500)
@given(
    work=st.integers(1, 10**5),
    slack=seconds,
    changeover=seconds,
    step=st.integers(1, 7200),
    share=st.floats(0, 1),
    where=st.sampled_from([WAIT, ON_DEMAND, 0]),
    wish=st.sampled_from([WAIT, 0, 1]),
)
def test_a_choice_is_kept_exactly_if_its_worst_outcome_can_still_be_made_good_on_demand(
    work: int, slack: int, changeover: int, step: int, share: float, where: int, wish: int
) -> None:
    left = work + changeover + slack  # on-demand, started now, is in time
    delay = 0 if where == WAIT else int(share * changeover)
    now = view(left, work, where, delay, [True, True], changeover=changeover, step=step)
    kept = int(keep_safe(now, np.array([wish]))[0])
    # Until the next decision, a spot node can be lost at any second, which calls for one at once.
    paid_off = delay if wish == where else changeover
    moments = range(0, step + 1, max(step // 50, 1)) if wish != WAIT else [step]
    moments = [*moments, step, min(paid_off, step)]
    in_time = all(
        work - max(ran - paid_off if wish != WAIT else 0, 0) + changeover <= left - ran
        for ran in moments
    )
    assert kept == (wish if in_time else ON_DEMAND)


def anything(seed: int) -> object:
    """A policy that takes whatever is there."""
    random = np.random.default_rng(seed)

    def choose(view: View) -> Places:
        lanes, zones = view.up.shape
        wish = random.integers(-2, zones, lanes)
        there = (wish < 0) | view.up[np.arange(lanes), np.maximum(wish, 0)]
        return np.where(there, wish, random.integers(-2, 0, lanes))

    return choose


@st.composite
def markets(draw: st.DrawFn) -> tuple[np.ndarray, Replay]:
    """Availability in runs of any kind, and a job for which one changeover has room."""
    work = draw(st.floats(600, 40 * 3600))
    changeover = draw(st.sampled_from([0.0, 72.0, 600.0, 720.0, 1800.0, 5000.0]))
    spare = draw(st.one_of(st.just(0.0), st.floats(0, 20 * 3600)))
    job = Replay(work, work / (work + changeover + spare), changeover, draw(st.floats(1.1, 6)))
    if job.deadline_s < work + changeover:  # the quotient was rounded
        job = replace(job, fraction=np.nextafter(job.fraction, 0))
    steps = int(np.ceil(job.deadline_s / GAP_S - 1e-9))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    zones = draw(st.integers(1, 3))
    change = draw(st.sampled_from([0.02, 0.2, 0.5, 0.9, 1.0]))
    turns = random.random((40, steps, zones)) < change
    return (np.cumsum(turns, axis=1) + random.integers(0, 2, (40, 1, zones))) % 2 == 1, job


@settings(deadline=None, max_examples=40)
@given(market=markets(), seed=st.integers(0, 99))
def test_no_policy_is_late_even_one_that_chooses_at_random(
    market: tuple[np.ndarray, Replay], seed: int
) -> None:
    up, job = market
    for policy in [anything(seed), *POLICIES.values()]:
        lanes = replay(up, job, GAP_S, policy)
        assert not lanes.late.any()
        assert np.isfinite(lanes.finished_s).all()


def test_spot_that_is_taken_in_every_changeover_does_not_make_it_late() -> None:
    job = Replay(10 * 3600, 0.8, 1500.0, 3.0)  # a changeover of two and a half steps
    steps = int(np.ceil(job.deadline_s / GAP_S))
    pattern = np.arange(steps)
    for length in (1, 2, 3, 4):
        for phase in range(length + 1):
            up = ((pattern + phase) % (length + 1) != 0)[None, :, None]
            for policy in POLICIES.values():
                assert not replay(up, job, GAP_S, policy).late.any()


def test_on_demand_from_the_start_where_there_is_room_for_one_changeover_only() -> None:
    job = Replay(10 * 3600, 10 / 10.2, 720.0, 3.0)
    steps = int(np.ceil(job.deadline_s / GAP_S))
    lanes = replay(np.ones((1, steps, 1), bool), job, GAP_S, auto)
    assert lanes.spot_s[0] == 0
    assert lanes.finished_s[0] == pytest.approx(job.deadline_s)


def test_a_warm_spot_node_is_ridden_to_the_last() -> None:
    need = 3600.0 + 720.0
    assert keep_safe(view(need, 3600.0, 0, 0.0, [True]), np.array([0]))[0] == 0
    assert keep_safe(view(need, 3600.0, 0, 60.0, [True]), np.array([0]))[0] == ON_DEMAND


def test_what_runs_is_kept_where_even_on_demand_would_be_late() -> None:
    late = view(4000.0, 3900.0, 0, 0.0, [True])
    assert keep_safe(late, np.array([WAIT]))[0] == 0
    assert keep_safe(replace(late, where=np.array([WAIT])), np.array([WAIT]))[0] == ON_DEMAND


# --- what auto chooses ---------------------------------------------------------------------------


def seen(pattern: str, hours: float = 1.0) -> list[Sighting]:
    """`"▔▔▁"`: up for two hours, then down for one, until now."""
    begin = NOW - timedelta(hours=hours * len(pattern))
    at = [begin + timedelta(hours=hours * index) for index in range(len(pattern))]
    return [Sighting(moment, mark == "▔") for moment, mark in zip(at, pattern, strict=True)]


def at(work: float, left: float, on: str | None = None, delay: float = 0.0) -> Progress:
    return Progress(NOW, NOW + left * HOUR, work * HOUR, on, delay * HOUR)


def test_spot_while_it_is_there() -> None:
    found = decide(JOB, at(40, 50), {"z-a": seen("▔▔▔"), "z-b": seen("▁▁▁")}, OFFERS)
    assert (found.action, found.zone) == ("spot", "z-a")


def test_waits_out_an_outage_while_there_is_slack_and_not_without() -> None:
    history = {zone: seen("▔▔▔▁▔▔▔▔▔▔▁▔▔▔▔▔▔▁") for zone in ("z-a", "z-b")}
    assert decide(JOB, at(20, 50), history, OFFERS).action == "wait"
    assert decide(JOB, at(40, 40.3), history, OFFERS).action == "on-demand"


def test_on_demand_is_not_left_for_spot_that_does_not_last() -> None:
    steady = {"z-a": seen("▁" + "▔" * 40), "z-b": seen("▁")}
    flapping = {"z-a": seen("▁▔" * 200, hours=0.1), "z-b": seen("▁")}
    assert decide(JOB, at(40, 46, "on-demand"), steady, OFFERS).action == "spot"
    assert decide(JOB, at(40, 46, "on-demand"), flapping, OFFERS).action == "on-demand"


def test_the_zone_that_lasts_longest_and_then_no_other() -> None:
    history = {"z-a": seen("▔▁▔▁▔▁▔▁▔"), "z-b": seen("▁▔▔▔▔▔▔▔▔")}
    assert decide(JOB, at(40, 50), history, OFFERS).zone == "z-b"
    assert decide(JOB, at(40, 50, "z-a"), history, OFFERS).zone == "z-a"


def test_the_cheaper_zone_of_two_alike() -> None:
    offers = [offer("on-demand", price="3"), offer("spot", price="1.2"), offer("spot", "z-b")]
    history = {"z-a": seen("▔▔▔"), "z-b": seen("▔▔▔")}
    assert decide(JOB, at(40, 50), history, offers).zone == "z-b"


def test_a_zone_nobody_has_looked_at_is_tried() -> None:
    found = decide(JOB, at(40, 50), {"z-a": seen("▁▁")}, OFFERS)
    assert (found.action, found.zone) == ("spot", "z-b")


def test_a_node_that_was_taken_is_not_counted_on() -> None:
    history = {"z-a": seen("▔▔▔▁"), "z-b": seen("▔▔▔")}
    assert decide(JOB, at(40, 50, "z-a"), history, OFFERS).zone == "z-b"


def test_on_demand_where_no_spot_is_offered_and_nothing_once_the_work_is_done() -> None:
    assert decide(JOB, at(40, 50), {}, OFFERS[:1]).action == "on-demand"
    assert decide(JOB, at(0, 50), {}, OFFERS) == Decision("wait", None, "the work is done")


def test_what_cannot_be_decided_is_told() -> None:
    with pytest.raises(NoSuchResources, match="on demand to fall back to"):
        decide(JOB, at(40, 50), {}, OFFERS[1:])
    with pytest.raises(UsageError, match="in 'z-c', and the offers have none there: z-a, z-b"):
        decide(JOB, at(40, 50, "z-c"), {}, OFFERS)
    with pytest.raises(UsageError, match="did you mean 'greedy'"):
        decide(JOB, at(40, 50), {}, OFFERS, policy="greed")
    with pytest.raises(UsageError, match="2 d 12 h of work cannot be done in 2 d 00 h"):
        Job(60 * HOUR, 48 * HOUR, HOUR)
    with pytest.raises(UsageError, match="work is 0 s"):
        Job(0 * HOUR, 48 * HOUR, HOUR)


# --- live and replayed ---------------------------------------------------------------------------


def runs(seed: int, steps: int, zones: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.cumsum(random.random((1, steps, zones)) < 0.1, axis=1) % 2 == 0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), zones=st.integers(1, 3), steps=st.integers(1, 60))
def test_a_live_history_gives_the_numbers_of_a_replayed_one(
    seed: int, zones: int, steps: int
) -> None:
    up = runs(seed, steps, zones)
    replayed, watch = Lifetimes(up[:, 0]), Watch()
    for step in range(steps):
        if step:
            replayed.see(up[:, step], GAP_S)
        for zone in range(zones):
            watch.see(f"z-{zone}", NOW + timedelta(seconds=step * GAP_S), bool(up[0, step, zone]))
    live = lifetimes(watch.history, NOW + timedelta(seconds=(steps - 1) * GAP_S))
    for name in ("up", "age", "up_s", "ends", "outage_s", "outage_ends", "outage_age"):
        expected, found = getattr(replayed, name), getattr(live, name)
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_live_job_decides_as_a_replayed_one(policy: str) -> None:
    job = Replay(10 * 3600, 0.75, 720.0, 3.0)
    up = runs(5, int(job.deadline_s / GAP_S), 2)
    wanted = []

    def noting(view: View) -> Places:
        chosen = POLICIES[policy](view)
        assert not view.changeover_left_s[view.where == WAIT].any()  # lost with its node
        now = (view.left_s, view.work_s, view.where, view.changeover_left_s)
        wanted.append([float(values[0]) for values in now])
        places.append(int(keep_safe(view, chosen)[0]))
        return chosen

    places: list[int] = []
    replay(up, job, GAP_S, noting)
    start, watch = NOW, Watch(["z-a", "z-b"])
    live = Job(*(timedelta(seconds=s) for s in (job.work_s, job.deadline_s, 720.0, GAP_S)))
    assert len(set(places)) > 1 or policy == "on-demand"
    for step, (left, work, where, delay) in enumerate(wanted):
        now = start + timedelta(seconds=step * GAP_S)
        for zone, name in enumerate(("z-a", "z-b")):
            watch.see(name, now, bool(up[0, step, zone]))
        if work <= 0:
            break
        on = {WAIT: None, ON_DEMAND: "on-demand", 0: "z-a", 1: "z-b"}[int(where)]
        progress = Progress(
            *(now, now + timedelta(seconds=left), timedelta(seconds=work), on),
            timedelta(seconds=delay),
        )
        found = decide(live, progress, watch.history, OFFERS, policy)
        expected = {WAIT: None, ON_DEMAND: "on-demand", 0: "z-a", 1: "z-b"}[places[step]]
        assert (found.zone if found.action == "spot" else found.action) == (expected or "wait")


def test_a_decision_takes_ten_milliseconds_at_most() -> None:
    watch = Watch()
    for step in range(20_000):  # two weeks, each minute
        for zone in ("z-a", "z-b"):
            moment = NOW - timedelta(minutes=20_000 - step)
            watch.see(zone, moment, (step // 97 + (zone == "z-b")) % 2 == 0)
    took = []
    for _ in range(20):
        start = time.perf_counter()
        decide(JOB, at(40, 50), watch.history, OFFERS)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.010


def test_a_table_that_was_prepared_serves_while_work_and_prices_move() -> None:
    job = Job(37 * HOUR, 61 * HOUR, timedelta(minutes=12))
    slack_table.cache_clear()
    table = prepare(job, OFFERS)
    solved = int(table._solved.sum())
    assert solved == 1
    asked = []
    table.ahead = lambda: asked.append(int(table._solved.sum()))  # type: ignore[method-assign]
    for minute in range(8):
        moved = replace(job, work=job.work + timedelta(minutes=minute))
        offers = [
            replace(each, usd_per_hour=each.usd_per_hour + Decimal(minute) / 1000)
            for each in OFFERS
        ]
        assert kind_of(moved, offers) == kind_of(job, OFFERS)
        assert decide(moved, at(37, 61), {}, offers).action == "spot"
    assert asked == [solved] * 8, "a decision worked something out"
    assert slack_table.cache_info().misses == 1
    assert kind_of(replace(job, work=40 * HOUR), OFFERS) != kind_of(job, OFFERS)
    with pytest.raises(NoSuchResources, match="deadline needs an offer on demand"):
        prepare(job, OFFERS[1:])


def test_what_a_live_job_asks_for_next_is_solved_meanwhile() -> None:
    hour = 3600.0
    work, most = 4 * hour, 5 * hour
    alone, together = (SlackTable(work, most, 720.0, 600.0, 3.0) for _ in range(2))
    lane = np.array([hour])
    yes = np.array([True])
    lengths = {"mean_up_s": lane, "mean_down_s": lane, "age_s": lane / 4}
    where = {"up": yes, "on_spot": ~yes, "on_demand": ~yes}

    def ask(table: SlackTable, **changed: Any) -> tuple[float, float]:
        how = {"steady_up": ~yes, "steady_down": ~yes, **lengths, **where, **changed}
        waiting, spot = table.advantages(np.array([4 * hour]), lane, **how)
        return float(waiting[0]), float(spot[0])

    ask(alone)
    assert alone._solved.sum() == 1
    alone.ahead()
    alone.join()
    solved = int(alone._solved.sum())
    assert solved == 36
    # longer outages, steadier spot: the answer was there, and is as if all had been solved at once
    together.solve()
    for changed in ({"mean_down_s": 2 * lane}, {"steady_up": yes}, {"mean_up_s": lane / 2}):
        assert ask(alone, **changed) == pytest.approx(ask(together, **changed), abs=0.02)
        assert alone._solved.sum() == solved
