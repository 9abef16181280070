"""How long spot lasts in a zone, and how long it stays away: from what was seen so far.

    zone a   ▁▁▁▔▔▔▔▔▔▁▔▔▔▔        a run of ▔: spot could be had; ▁: it could not
    zone b   ▔▔▔▔▁▁▁▁▁▁▁▁▁▁
    outage   ────────────▁────     nowhere: the only time in which there is nothing but to wait
                                   or to pay for on-demand

A run's mean length is (time in such runs + PRIOR_RUNS · PRIOR_S) / (runs that ended + PRIOR_RUNS):
the run that goes on counts with its time and not yet as one that ended, and two imagined runs of
one hour keep the first hours from being believed too much. What was seen is forgotten with a time
constant of `MEMORY_S`, because markets change.

Run lengths are taken to be Lomax distributed (the rate of each run's end is itself drawn from a
Gamma distribution): a run that has lasted for a is expected to go on for (mean·(SHAPE-1) + a) /
(SHAPE-1). So old runs last, and young ones may be gone at once, as in all public traces of spot
availability; with a constant rate instead, the cost on them was 2 % of on-demand higher.
Runs are *steady* where those that ended were all about as long: then age promises nothing.

`Lifetimes` keeps this for many lanes at once, one lane for each job that a simulator replays;
`Watch` keeps it for a live system, and gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SHAPE = 2.0
PRIOR_S = 3600.0
PRIOR_RUNS = 2.0
MEMORY_S = 48 * 3600.0
#: Runs are steady if at least so many ended, and their variance is below this share of mean².
STEADY_RUNS, STEADY_VARIANCE = 4.0, 0.25


class Sighting(NamedTuple):
    """Whether a spot node could be had in a zone, from `at` (UTC) until the next sighting."""

    at: datetime
    up: bool


@dataclass
class Lifetimes:
    """What was seen of Z zones, in N lanes. All times in seconds.

    `up` and `age`: whether spot can be had now, and for how long that has been so. `up_s`: time in
    runs of it; `ends`: how many ended, with the sums of their lengths and of the squares of these
    (3 × N × Z). The same for outages, when no zone has spot.
    """

    up: Bools
    age: Floats = field(init=False)
    up_s: Floats = field(init=False)
    ends: Floats = field(init=False)
    outage_age: Floats = field(init=False)
    outage_s: Floats = field(init=False)
    outage_ends: Floats = field(init=False)

    def __post_init__(self) -> None:
        lanes = len(self.up)
        self.age, self.up_s = np.zeros(self.up.shape), np.zeros(self.up.shape)
        self.outage_age, self.outage_s = np.zeros(lanes), np.zeros(lanes)
        self.ends, self.outage_ends = np.zeros((3, *self.up.shape)), np.zeros((3, lanes))

    def see(self, up: Bools, elapsed_s: float) -> None:
        """What was there `elapsed_s` ago lasted until now; from now on it is `up` (N × Z)."""
        kept = math.exp(-elapsed_s / MEMORY_S)
        added = MEMORY_S * (1 - kept)
        was, out = self.up, np.asarray(~self.up.any(axis=1))
        self.up_s = self.up_s * kept + added * was
        self.ends = self.ends * kept + _powers(self.age + elapsed_s, was & ~up)
        self.age = np.where(up == was, self.age + elapsed_s, 0.0)
        out_now = np.asarray(~up.any(axis=1))
        self.outage_s = self.outage_s * kept + added * out
        self.outage_ends *= kept
        self.outage_ends += _powers(self.outage_age + elapsed_s, out & ~out_now)
        self.outage_age = np.where(out & out_now, self.outage_age + elapsed_s, 0.0)
        self.up = up

    def mean_up_s(self) -> Floats:
        """Seconds that spot lasts on average in each zone (N × Z)."""
        return np.asarray((self.up_s + PRIOR_RUNS * PRIOR_S) / (self.ends[0] + PRIOR_RUNS))

    def mean_up_anywhere_s(self) -> Floats:
        """The same over all zones together (N)."""
        total, ends = self.up_s.sum(axis=1), self.ends[0].sum(axis=1)
        return np.asarray((total + PRIOR_RUNS * PRIOR_S) / (ends + PRIOR_RUNS))

    def mean_outage_s(self) -> Floats:
        """Seconds that an outage lasts on average (N)."""
        ends = self.outage_ends[0]
        return np.asarray((self.outage_s + PRIOR_RUNS * PRIOR_S) / (ends + PRIOR_RUNS))

    def mean_gap_s(self) -> Floats:
        """Seconds without spot anywhere that follow the end of a run on average (N): most are 0
        where other zones have spot."""
        ends = self.ends[0].sum(axis=1)
        return np.asarray((self.outage_s + PRIOR_RUNS * PRIOR_S) / (ends + PRIOR_RUNS))

    def steady_up(self) -> Bools:
        """Whether runs of spot are steady in each zone (N × Z)."""
        return _steady(self.ends)

    def steady_up_anywhere(self) -> Bools:
        """The same over all zones together (N)."""
        return _steady(self.ends.sum(axis=2))

    def steady_outages(self) -> Bools:
        """Whether outages are (N)."""
        return _steady(self.outage_ends)


def _powers(lengths: Floats, ended: Bools) -> Floats:
    """How many ended, their lengths and the squares of these: what `ends` sums."""
    return np.stack([ended, lengths * ended, lengths**2 * ended])


def _steady(ends: Floats) -> Bools:
    count, lengths, squares = ends
    variance = squares * count - lengths**2  # times count²
    return np.asarray((count >= STEADY_RUNS) & (variance < STEADY_VARIANCE * lengths**2))


def lifetimes(history: Mapping[str, Sequence[Sighting]], now: datetime) -> Lifetimes:
    """One lane from each zone's sightings, oldest first, up to `now`; of equal ones in a row the
    first is enough. A zone that was never seen is taken to have spot: to find out is to try.

    By sums over all sightings at once: a live history is long, and a decision is to be quick.
    """
    zones = [_in_seconds(seen, now) for seen in history.values()]
    found = Lifetimes(np.array([[bool(up[-1]) if len(up) else True for _, up in zones]]))
    for index, (at, up) in enumerate(zones):
        if len(at):
            found.up_s[0, index], found.ends[:, 0, index], found.age[0, index] = _runs(at, up)
    moments = np.unique(np.concatenate([at for at, _ in zones])) if zones else np.zeros(0)
    if len(moments):
        somewhere = np.zeros(len(moments), bool)
        for at, up in zones:
            last = np.searchsorted(at, moments, side="right") - 1
            somewhere |= np.where(last >= 0, up[last] if len(up) else False, not len(up))
        found.outage_s[0], found.outage_ends[:, 0], age = _runs(moments, ~somewhere)
        found.outage_age[0] = 0.0 if somewhere[-1] else age
    return found


def _in_seconds(seen: Sequence[Sighting], now: datetime) -> tuple[Floats, Bools]:
    """The times of sightings, in seconds from now (≤ 0), and what was seen."""
    past = [each for each in seen if each.at <= now]
    at = np.array([(each.at - now).total_seconds() for each in past], float)
    return at, np.array([each.up for each in past], bool)


def _runs(at: Floats, there: Bools) -> tuple[float, Floats, float]:
    """Of the runs in which `there` is true: time, and what `ends` sums of those that ended, both
    as far as they are not forgotten; and for how long the last value has been so."""
    kept = np.exp(np.append(at, 0.0) / MEMORY_S)
    seconds = float(MEMORY_S * (np.diff(kept) * there).sum())
    begins = np.append(0, np.flatnonzero(there[1:] != there[:-1]) + 1)
    lengths, over = np.diff(at[begins]), there[begins[:-1]]
    ends = (kept[begins[1:]] * _powers(lengths, over)).sum(axis=1)
    return seconds, ends, float(-at[begins[-1]])


class Watch:
    """The sightings of a live system, kept as changes: `see` each look, `decide` by `history`."""

    def __init__(self, zones: Sequence[str] = ()) -> None:
        self._seen: dict[str, list[Sighting]] = {zone: [] for zone in zones}

    def see(self, zone: str, at: datetime, up: bool) -> None:
        """A spot node could be had in `zone` at this time, or could not. Times do not go back."""
        seen = self._seen.setdefault(zone, [])
        if not seen or seen[-1].up != up:
            seen.append(Sighting(at, up))

    @property
    def history(self) -> Mapping[str, Sequence[Sighting]]:
        """Each zone's sightings, oldest first."""
        return self._seen
