"""What a deadline costs on spot: our policy beside Uniform Progress, greedy and what was possible.

    auto               cluster/policy.py
    uniform-progress   "Can't Be Late" (NSDI'24), and its greedy
    omniscient         a lower bound for any plan that knows the trace

Costs are over those of the same work on demand. Without a folder the traces are made here: run
lengths that are exponential, heavy-tailed or nearly equal; days and nights; drifting markets; spot
that flaps, always or never is. Then the speed of the simulator, and of one live decision.

    python benchmarks/policy.py [FOLDER] [--job 48h] [--fraction 0.8] [--changeover 12m]
                                [--price-ratio 3.1446] [--starts 300] [--within 13d] [--together]
                                [--grid]

`--grid` runs fractions, changeovers and price ratios against each other instead of one set.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from report import report

from mlcloud.cluster.lifetimes import Watch
from mlcloud.cluster.offers import Market, Offer
from mlcloud.cluster.policy import Job, Progress, auto, decide, prepare
from mlcloud.cluster.simulation import Replay, replay, simulate, windows
from mlcloud.cluster.slack import slack_table
from mlcloud.cluster.traces import Trace, read_trace, renewal
from mlcloud.units import parse_duration

GAP_S, HOUR, DAY = 600.0, 3600.0, 86400.0
POLICIES = ("auto", "uniform-progress", "greedy")


def lengths(random: np.random.Generator, kind: str, mean_s: float) -> Callable[[], float]:
    """Draws of run lengths with this mean."""
    if kind == "exponential":
        return lambda: random.exponential(mean_s)
    if kind == "heavy":
        return lambda: mean_s / 2 * random.pareto(1.5)
    return lambda: mean_s * random.uniform(0.8, 1.2)


def made(span_s: float = 27 * DAY) -> list[Trace]:
    """Traces of all sorts, always the same."""
    random, steps = np.random.default_rng(5), int(span_s / GAP_S)
    traces = [
        renewal(
            f"{kind} {up_h:g} h up, {down_h:g} h down",
            *(span_s, GAP_S, lengths(random, kind, up_h * HOUR)),
            lengths(random, kind, down_h * HOUR),
        )
        for kind in ("exponential", "heavy", "equal")
        for up_h, down_h in ((0.5, 0.5), (1, 3), (3, 1), (2, 8), (8, 2), (24, 24), (30, 4))
    ]
    hour = np.arange(steps) * GAP_S / HOUR % 24
    drift = [
        renewal("", 12 * HOUR, GAP_S, lengths(random, "exponential", (3 * share + 0.1) * HOUR),
                lengths(random, "exponential", (3.1 - 3 * share) * HOUR)).up
        for share in random.random(int(span_s / 12 / HOUR))
    ]  # fmt: skip
    others = {
        "nights": hour > 10,
        "nights, mostly": random.random(steps) < np.where(hour > 12, 0.95, 0.15),
        "drifting": np.concatenate(drift),
        "30 h away in each 72 h": np.arange(steps) % int(72 * HOUR / GAP_S) >= 30 * HOUR / GAP_S,
        "by chance, 50 %": random.random(steps) < 0.5,
        "by chance, 90 %": random.random(steps) < 0.9,
        "flapping": np.arange(steps) % 2 == 0,
        "always": np.ones(steps, bool),
        "never": np.zeros(steps, bool),
    }
    return traces + [Trace(name, GAP_S, up) for name, up in others.items()]


def beside(traces: list[Trace], job: Replay, **how: Any) -> list[dict[str, Any]]:
    """One row a trace, and their mean."""
    found = {policy: simulate(traces, job, policy=policy, **how) for policy in POLICIES}
    rows = []
    for index, ours in enumerate([*found["auto"]["traces"], found["auto"]]):
        each = {name: [*result["traces"], result][index] for name, result in found.items()}
        rows.append(
            {
                "trace": ours.get("trace", "mean"),
                **{name: result["cost_over_on_demand"] for name, result in each.items()},
                "omniscient": ours["omniscient"],
                "late": ", ".join(str(result["late"]) for result in each.values()),
            }
        )
    return rows


def grid(traces: list[Trace], options: argparse.Namespace, **how: Any) -> list[dict[str, Any]]:
    """Means over all traces, one row for each set of job and prices."""
    rows = []
    work_s = parse_duration(options.job).total_seconds()
    for fraction, changeover_h, ratio in itertools.product(
        (0.6, 0.7, 0.8, 0.9, 0.923), (0.02, 0.1, 0.2, 0.5), (1.5, 2, 3.14, 5)
    ):
        job = Replay(work_s, fraction, changeover_h * HOUR, ratio)
        each = beside(traces, job, **how)
        worse = sum(row["auto"] > row["uniform-progress"] + 0.002 for row in each[:-1])
        setting = {"fraction": fraction, "changeover h": changeover_h, "price ratio": ratio}
        rows.append({**setting, **each[-1], "trace": f"{worse} of {len(traces)} dearer than UP"})
        print(rows[-1])
    return rows


def speeds(traces: list[Trace], job: Replay) -> dict[str, float]:
    """Trace-days a second of `auto` with its table made anew, and ms of a live decision."""
    up = np.concatenate([windows([trace], job, 300, 0) for trace in traces[:8]])
    slack_table.cache_clear()
    start = time.perf_counter()
    replay(up, job, traces[0].gap_s, auto)
    took = time.perf_counter() - start
    days = len(up) * job.deadline_s / DAY
    watch, now = Watch(), datetime(2026, 1, 1, tzinfo=timezone.utc)
    for minute in range(10_000):
        for zone in range(6):
            seen = bool(traces[zone % len(traces)].up[minute // 10 % len(traces[0].up)])
            watch.see(f"z-{zone}", now + timedelta(minutes=minute - 10_000), seen)
    offers = [offer("on-demand", "z-0", "3"), *(offer("spot", f"z-{z}", "1") for z in range(6))]
    progress = Progress(now, now + timedelta(hours=50), timedelta(hours=40))
    found: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.thread_time()
        made = work()
        found.setdefault(f"{what}, ms", []).append(1000 * (time.perf_counter() - start))
        cpu_ms = 1000 * (time.thread_time() - cpu)
        found.setdefault(f"{what}, ms of processor time", []).append(cpu_ms)
        return made

    for hours in range(60, 80):  # each another kind of job
        live = Job(timedelta(hours=48), timedelta(hours=hours), timedelta(minutes=12))
        slack_table.cache_clear()
        timed("unprepared decision", partial(decide, live, progress, {}, offers))
        slack_table.cache_clear()
        table = timed("prepare, in a thread", partial(prepare, live, offers))
        # it knows of nobody's spot yet; a minute later each, work and prices have moved
        timed("first decision", partial(decide, live, progress, {}, offers))
        for minute in range(1, 6):
            table.join()
            moved = replace(live, work=live.work + timedelta(minutes=minute))
            change = Decimal(minute) / 1000
            prices = [replace(each, usd_per_hour=each.usd_per_hour + change) for each in offers]
            timed("decision", partial(decide, moved, progress, {}, prices))
        table.join()
        timed("unforeseen decision", partial(decide, live, progress, watch.history, offers))
    told = {"trace-days a second": days / took}
    for what, each in found.items():
        told |= {f"{what}, median": float(np.median(each)), f"{what}, 90 %": quantile(each)}
    return told


def quantile(values: list[float]) -> float:
    return float(np.quantile(values, 0.9))


def offer(market: Market, zone: str, price: str) -> Offer:
    return Offer(
        *("local", "z", zone, "m", 4, 2**34, None, 0, market, Decimal(price), True, "benchmark"),
        date(2026, 1, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--job", default="48h")
    parser.add_argument("--fraction", type=float, default=0.8)
    parser.add_argument("--changeover", default="12m")
    parser.add_argument("--price-ratio", type=float, default=3.1446)
    parser.add_argument("--starts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--grid", action="store_true")
    options = parser.parse_args()
    folder = options.folder
    traces = [read_trace(path) for path in sorted(folder.glob("*.json"))] if folder else made()
    if not traces:
        parser.error(f"{folder} has no *.json")
    job = Replay(
        *(parse_duration(options.job).total_seconds(), options.fraction),
        *(parse_duration(options.changeover).total_seconds(), options.price_ratio),
    )
    how = {
        **{"starts": options.starts, "seed": options.seed, "together": options.together},
        "within_s": parse_duration(options.within).total_seconds() if options.within else None,
    }
    rows = grid(traces, options, **how) if options.grid else beside(traces, job, **how)
    speed = speeds(traces, job)
    report("policy", rows, **{**vars(options), "folder": str(folder)}, **speed)
    print(*(f"{name}: {value:.3g}" for name, value in speed.items()), sep="\n")


if __name__ == "__main__":
    main()
