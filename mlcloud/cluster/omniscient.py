"""The least that a job could have cost, had the trace been known: a bound, not a policy.

    minimise     cost of a plan           over plans that pick, at each step, to wait, on-demand,
    subject to   its progress ≥ work      or spot in a zone that has it; a start costs a changeover

The constraint is priced: for a price `l` of an hour of work, the plan of least cost - l·progress is
found by backward induction over (where, changeover left), and its value + l·work is a lower bound
on what any plan costs in which the job is done in time. The best `l` gives the highest bound. It is
concave in `l` and made of straight lines, so the lines at both ends of an interval meet at the next
`l` to try. Mixtures of plans are allowed so: the bound can be a little below the best plan.
"""

from __future__ import annotations

import numpy as np

from mlcloud.cluster.lifetimes import Bools, Floats

ROUNDS = 12
_NUDGE = 1e-5


def omniscient(
    up: Bools,
    *,
    work_s: float,
    deadline_s: float,
    changeover_s: float,
    gap_s: float,
    price_ratio: float,
) -> Floats:
    """Lower bounds on the cost over that of the same work on demand, for N windows of availability
    (N × steps × zones). Where even on-demand cannot be in time, 1."""
    if work_s + changeover_s > deadline_s:
        return np.ones(len(up))
    hour = 3600.0
    gap, work = gap_s / hour, work_s / hour
    left = [changeover_s / hour]
    while left[-1] > 0:
        left.append(max(left[-1] - gap, 0.0))
    if len(left) == 1:
        left.append(0.0)
    lengths = np.full(up.shape[1], gap)
    lengths[-1] = deadline_s / hour - gap * (up.shape[1] - 1)
    blocked = np.where(up, 0.0, np.inf).transpose(1, 2, 0).copy()  # steps × zones × windows

    def bound(price: Floats) -> Floats:
        return price * work + _cheapest(blocked, lengths, np.array(left), price_ratio, price)

    def line(price: Floats) -> tuple[Floats, Floats]:
        value = bound(price)
        return value, (bound(price + _NUDGE) - value) / _NUDGE

    low, high = np.zeros(len(up)), np.full(len(up), 2 * price_ratio)
    low_value, low_slope = np.zeros(len(up)), np.full(len(up), work)
    high_value, high_slope = line(high)
    while (high_slope > 1e-6).any() and high.max() < 1e6:  # short of slack: work is dear
        high = np.where(high_slope > 1e-6, 4 * high, high)
        high_value, high_slope = line(high)
    best = np.maximum(low_value, high_value)
    for _ in range(ROUNDS):
        slopes = low_slope - high_slope
        meet = (high_value - low_value + low_slope * low - high_slope * high) / np.where(
            slopes > 1e-9, slopes, 1.0
        )
        price = np.where(slopes > 1e-9, np.clip(meet, low, high), low)
        value, slope = line(price)
        best = np.maximum(best, value)
        rising = slope > 0
        low, low_value = np.where(rising, price, low), np.where(rising, value, low_value)
        low_slope = np.where(rising, slope, low_slope)
        high, high_value = np.where(rising, high, price), np.where(rising, high_value, value)
        high_slope = np.where(rising, high_slope, slope)
    return best / (price_ratio * work)


def _cheapest(blocked: Floats, lengths: Floats, left: Floats, dear: float, price: Floats) -> Floats:
    """min over plans of cost - price · progress (N)."""
    steps, zones, lanes = blocked.shape
    states = len(left)
    following = np.minimum(np.arange(states) + 1, states - 1)
    rest = np.zeros(lanes)
    demand, spot = np.zeros((states, lanes)), np.zeros((zones, states, lanes))
    earned: dict[float, Floats] = {}
    for step in range(steps - 1, -1, -1):
        length = float(lengths[step])
        if length not in earned:
            earned[length] = length - price * np.clip(length - left, 0, None)[:, None]
        gain = earned[length]
        demand = gain + (dear - 1) * length + demand[following]
        spot = gain + spot[:, following] + blocked[step][:, None]
        rest = np.minimum(rest, np.minimum(demand[0], spot[:, 0].min(axis=0)))
        demand, spot = np.minimum(demand, rest), np.minimum(spot, rest)
    return rest
