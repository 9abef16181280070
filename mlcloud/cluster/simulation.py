"""Replay traces of spot availability: what a policy would have cost, and whether it was late.

The model is that of "Can't Be Late" (NSDI'24): a job of C hours of computation with a deadline of
R = C / fraction, on one node. Every start on a node begins with a changeover that is paid and makes
no progress; waiting costs nothing; on-demand is always there. A decision is made at each sample of
the trace; a spot node is lost at a sample at which its zone has none, with what was left of its
changeover, and never with work that was done. Whoever finishes within a step pays until then.

    traces ──► windows from random starts, N × steps × zones ──► replay: N lanes through `policy`
                                                            └──► omniscient: what was possible

A policy sees what was available from its job's start until now, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlcloud.cluster.lifetimes import Bools, Floats, Lifetimes
from mlcloud.cluster.omniscient import omniscient
from mlcloud.cluster.policy import (
    ON_DEMAND,
    WAIT,
    Places,
    Policy,
    View,
    keep_safe,
    policy_named,
)
from mlcloud.cluster.traces import Trace, same_span
from mlcloud.errors import UsageError
from mlcloud.units import format_seconds

_LATE_S = 1e-3


@dataclass(frozen=True)
class Replay:
    """What is replayed: seconds, and on-demand's price over spot's."""

    work_s: float
    fraction: float
    changeover_s: float
    price_ratio: float

    def __post_init__(self) -> None:
        for what, value in (("job", self.work_s), ("price ratio", self.price_ratio)):
            if not (np.isfinite(value) and value > 0):
                raise UsageError(f"the {what} is {value:g}: it must be above 0")
        if not 0 < self.fraction <= 1:
            raise UsageError(
                f"the fraction is {self.fraction:g}: it is the job's share of the time until its "
                "deadline, above 0 and at most 1 (0.8: 48 h of work in 60 h)"
            )

    @property
    def deadline_s(self) -> float:
        return self.work_s / self.fraction


@dataclass(frozen=True)
class Lanes:
    """What came of N jobs. Hours are those paid; `work` hours are without changeovers.
    `finished_s` is from the start, infinite where the trace ended first."""

    cost: Floats  # over that of the same work on demand
    finished_s: Floats
    late: Bools
    spot_s: Floats
    on_demand_s: Floats
    spot_work_s: Floats
    on_demand_work_s: Floats
    starts: Places


def replay(up: Bools, job: Replay, gap_s: float, policy: Policy) -> Lanes:
    """N windows of availability (N × steps × zones, steps until the deadline) under a policy."""
    lanes, steps, zones = up.shape
    work = np.full(lanes, job.work_s)
    where = np.full(lanes, WAIT, np.intp)
    delay = np.zeros(lanes)  # changeover left
    finished = np.full(lanes, np.inf)
    starts = np.zeros(lanes, np.intp)
    paid, worked = np.zeros((2, lanes)), np.zeros((2, lanes))  # spot, on-demand
    seen = Lifetimes(up[:, 0])
    prices = np.ones(zones)
    rows = np.arange(lanes)
    for step in range(steps):
        if step:
            seen.see(up[:, step], gap_s)
        lost = (where >= 0) & ~up[rows, step, np.maximum(where, 0)]
        where = np.where(lost, WAIT, where)
        delay = np.where(where == WAIT, 0.0, delay)
        view = View(
            job_s=job.work_s,
            deadline_s=job.deadline_s,
            changeover_s=job.changeover_s,
            step_s=gap_s,
            left_s=np.full(lanes, job.deadline_s - step * gap_s),
            work_s=work,
            where=where,
            changeover_left_s=delay,
            seen=seen,
            on_demand_price=job.price_ratio,
            spot_prices=prices,
        )
        done = np.isfinite(finished)
        place = np.where(done, WAIT, keep_safe(view, policy(view)))
        started = (place != where) & (place != WAIT)
        starts += started
        delay = np.where(started, job.changeover_s, np.where(place == WAIT, 0.0, delay))
        where = place
        took = np.where(where == WAIT, 0.0, np.minimum(gap_s, delay + work))
        progress = np.maximum(took - delay, 0.0)
        ends = (where != WAIT) & (delay + work <= gap_s + 1e-9)
        finished = np.where(ends, step * gap_s + took, finished)
        for market, there in enumerate((where >= 0, where == ON_DEMAND)):
            paid[market] += took * there
            worked[market] += progress * there
        work = work - progress
        delay = np.maximum(delay - gap_s, 0.0)
        if done.all():
            break
    return Lanes(
        cost=(paid[0] / job.price_ratio + paid[1]) / job.work_s,
        finished_s=finished,
        late=finished > job.deadline_s + _LATE_S,
        spot_s=paid[0],
        on_demand_s=paid[1],
        spot_work_s=worked[0],
        on_demand_work_s=worked[1],
        starts=starts,
    )


def windows(
    traces: Sequence[Trace], job: Replay, starts: int, seed: int, within_s: float | None = None
) -> Bools:
    """Availability from random starts to the deadline (starts × steps × zones), all of it inside
    the first `within_s` seconds. Raises `UsageError` for a trace that is too short."""
    first = traces[0]
    steps = int(np.ceil(job.deadline_s / first.gap_s - 1e-9))
    span = first.span_s if within_s is None else min(within_s, first.span_s)
    room = int(span / first.gap_s + 1e-9) - steps
    if room < 0:
        raise UsageError(
            f"{first.name} has {format_seconds(span)}, and the job takes up to "
            f"{format_seconds(job.deadline_s)} ({format_seconds(job.work_s)} at fraction "
            f"{job.fraction:g}): take a longer trace, a shorter --job or a higher --fraction"
        )
    begins = np.random.default_rng(seed).integers(0, room + 1, starts)
    together = np.stack([trace.up for trace in traces], axis=1)
    return np.asarray(together[begins[:, None] + np.arange(steps)])


def simulate(
    traces: Sequence[Trace],
    job: Replay,
    *,
    policy: str = "auto",
    starts: int = 300,
    seed: int = 0,
    together: bool = False,
    within_s: float | None = None,
) -> dict[str, Any]:
    """What `mlcloud simulate --json` prints: the means over all traces, and each trace's own.

    `together` takes the traces for zones of one market. Raises `UsageError`.
    """
    chosen = policy_named(policy)
    if starts < 1:
        raise UsageError(f"--starts is {starts}: it must be at least 1")
    if not traces:
        raise UsageError("no trace to replay")
    if together:
        same_span(traces)
    groups = [list(traces)] if together else [[trace] for trace in traces]
    cut = [windows(group, job, starts, seed, within_s) for group in groups]
    found = []
    # the lanes of all traces with the same steps go through the policy at once
    for gap_s, zones in dict.fromkeys((group[0].gap_s, len(group)) for group in groups):
        members = [i for i, g in enumerate(groups) if (g[0].gap_s, len(g)) == (gap_s, zones)]
        up = np.concatenate([cut[i] for i in members])
        lanes = replay(up, job, gap_s, chosen)
        best = omniscient(
            up,
            work_s=job.work_s,
            deadline_s=job.deadline_s,
            changeover_s=job.changeover_s,
            gap_s=gap_s,
            price_ratio=job.price_ratio,
        )
        for place, i in enumerate(members):
            part = slice(place * starts, (place + 1) * starts)
            found.append((i, _figures(groups[i], up[part], lanes, best, part)))
    rows = [row for _, row in sorted(found, key=lambda each: each[0])]
    return {
        "policy": policy,
        "zones": "together" if together else "apart",
        "job_hours": job.work_s / 3600,
        "fraction": job.fraction,
        "deadline_hours": job.deadline_s / 3600,
        "changeover_hours": job.changeover_s / 3600,
        "price_ratio": job.price_ratio,
        "starts": starts,
        "seed": seed,
        "cost_over_on_demand": _mean(rows, "cost_over_on_demand"),
        "late": sum(row["late"] for row in rows),
        "jobs": starts * len(rows),
        "hours": {key: _mean([row["hours"] for row in rows], key) for key in rows[0]["hours"]},
        "omniscient": _mean(rows, "omniscient"),
        "traces": rows,
    }


#: The columns of `lines`. Costs are over those of the same work on demand.
HEADS = ("trace", "spot there", "cost", "omniscient", "spot h", "on-demand h", "starts", "late")


def lines(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What `simulate` found, as a table: a line for each trace, and their mean."""
    rows = found["traces"]
    shown = [
        (
            row["trace"],
            f"{row['available']:.0%}",
            f"{row['cost_over_on_demand']:.3f}",
            f"{row['omniscient']:.3f}",
            f"{row['hours']['spot']:.1f}",
            f"{row['hours']['on_demand']:.1f}",
            f"{row['starts_on_nodes']:.1f}",
            f"{row['late']} of {found['starts']}",
        )
        for row in rows
    ]
    mean = (
        *(found["policy"], ""),
        f"{found['cost_over_on_demand']:.3f}",
        f"{found['omniscient']:.3f}",
        f"{found['hours']['spot']:.1f}",
        f"{found['hours']['on_demand']:.1f}",
        f"{_mean(rows, 'starts_on_nodes'):.1f}",
        f"{found['late']} of {found['jobs']}",
    )
    return [*shown, mean]


def _figures(
    group: Sequence[Trace], up: Bools, lanes: Lanes, best: Floats, part: slice
) -> dict[str, Any]:
    def hours(seconds: Floats) -> float:
        return float(seconds[part].mean() / 3600)

    return {
        "trace": " + ".join(trace.name for trace in group),
        "available": float(up.any(axis=2).mean()),
        "cost_over_on_demand": float(lanes.cost[part].mean()),
        "late": int(lanes.late[part].sum()),
        "hours": {
            "spot": hours(lanes.spot_s),
            "on_demand": hours(lanes.on_demand_s),
            "spot_work": hours(lanes.spot_work_s),
            "on_demand_work": hours(lanes.on_demand_work_s),
        },
        "starts_on_nodes": float(lanes.starts[part].mean()),
        "omniscient": float(best[part].mean()),
    }


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
