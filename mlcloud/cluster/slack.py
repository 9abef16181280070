"""What an hour of slack is worth: the best use of spot by a job with a deadline, worked out
backwards.

    slack = time left - work left.  Waiting spends it, every changeover spends one delay of it,
    running keeps it. At slack = one changeover there is one way left: on-demand until the end.

Where spot comes and goes by known run lengths (`lifetimes`), the cheapest way to finish in time is
a Markov decision problem over (time left, slack, where the job runs, age of the present run). It is
solved here by backward induction, for a grid of mean run lengths of spot and of outages, all at
once. What comes out are *advantages*: how much dearer, in spot hours, one choice is than the other
if everything after it is done well.

    waiting   against on-demand     from rest and from on-demand, spot there or not
    spot      against on-demand     from rest, from on-demand and from spot, while spot is there

Age is kept in classes of doubling width, slack on a grid that is fine where it is scarce. Time
steps are those of the decisions, or two thirds of a changeover where that is longer; a job of more
than `STEPS` of them is treated as a shorter one with the same share of slack. A changeover is taken
as work that is added at the moment of the switch.

Acting by the posterior over run lengths (weighing the advantages by it), or by the likeliest of
several shapes of their distribution, was no better on real traces than acting by the means, and
took up to 50 times as long.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from mlcloud.cluster.lifetimes import SHAPE, Bools, Floats

Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

STEPS = 360
GRID_H = np.geomspace(0.25, 64.0, 9)  # mean run lengths
LEVELS = 48  # of slack
AGES = 5
FIRST_AGE_H = 0.4
_STEADY_SHAPE = 20.0  # of run lengths whose end comes at nearly the same rate at any age
_NEVER = np.float32(1e4)


@functools.lru_cache(maxsize=4)
def slack_table(
    work_s: float, deadline_s: float, changeover_s: float, step_s: float, price_ratio: float
) -> SlackTable:
    """The table of a kind of job; kept, because all jobs of a kind and all decisions share it."""
    return SlackTable(work_s, deadline_s, changeover_s, step_s, price_ratio)


class SlackTable:
    """Advantages for one kind of job. `price_ratio` is on-demand over spot.

    What is needed of it is solved when it is first asked for (20 ms for one pair of kinds of runs,
    3 ms each for many at once) and kept (1.2 MB a pair).
    """

    def __init__(
        self,
        work_s: float,
        deadline_s: float,
        changeover_s: float,
        step_s: float,
        price_ratio: float,
    ) -> None:
        hour = 3600.0
        deadline, step = deadline_s / hour, step_s / hour
        self.changeover, self.price = changeover_s / hour, price_ratio
        # what is shorter than a changeover can be nobody's plan; coarser steps miss short runs
        self.dt = max(step, self.changeover * 2 / 3, deadline / (4 * STEPS))
        self.steps = min(int(np.ceil(deadline / self.dt - 1e-9)), STEPS)
        most = max((deadline_s - work_s) / hour, 2 * self.changeover, self.dt, 1e-3)
        most *= min(1.0, self.steps * self.dt / deadline)
        self.slack = most * np.linspace(0, 1, LEVELS) ** 1.6
        widths = FIRST_AGE_H * 2.0 ** np.arange(AGES)
        self.age_edges = np.concatenate([[0.0], np.cumsum(widths)])
        ages = (self.age_edges[:-1] + self.age_edges[1:]) / 2
        ages[-1] = self.age_edges[-2] * 1.7  # the last class has no end
        shape = np.repeat([SHAPE, _STEADY_SHAPE], len(GRID_H))[:, None]
        rate = shape / (np.tile(GRID_H, 2)[:, None] * (shape - 1) + ages)
        self._ends = (1 - np.exp(-rate * self.dt)).astype(np.float32)  # kind of run × age
        self._older = np.minimum(1, self.dt / widths).astype(np.float32)
        self._older[-1] = 0
        pairs = len(self._ends) ** 2
        self._solved = np.zeros(pairs, bool)
        self._advantages = np.empty((pairs, self.steps + 1, 7 * AGES, LEVELS), np.float16)

    def advantages(
        self,
        left_s: Floats,
        slack_s: Floats,
        *,
        mean_up_s: Floats,
        mean_down_s: Floats,
        steady_up: Bools,
        steady_down: Bools,
        age_s: Floats,
        up: Bools,
        on_spot: Bools,
        on_demand: Bools,
    ) -> tuple[Floats, Floats]:
        """(waiting, spot), each over on-demand, in spot hours; of N lanes. `up`: there is spot.

        The second means nothing where there is none.
        """
        hour = 3600.0
        # a long job is a shorter one with the same share of slack
        left = np.maximum(left_s / hour, 1e-9)
        shrunk = np.minimum(1.0, self.steps * self.dt / left)
        step = np.clip(np.rint(left * shrunk / self.dt), 1, self.steps).astype(np.intp)
        place = np.interp(slack_s / hour * shrunk, self.slack, np.arange(LEVELS))
        level = np.minimum(place.astype(np.intp), LEVELS - 2)
        above = place - level
        pair = _kind(mean_up_s / hour, steady_up) * len(self._ends)
        pair += _kind(mean_down_s / hour, steady_down)
        self.solve(pair)
        age = np.searchsorted(self.age_edges, age_s / hour + 1e-9, side="right") - 1
        age = np.clip(age, 0, AGES - 1)
        waiting = np.where(on_demand, 2 * AGES, 0) + np.where(up, 0, AGES) + age
        spot = np.where(on_demand, 5, np.where(on_spot, 6, 4)) * AGES + age

        def read(row: Ints) -> Floats:
            low: Floats = self._advantages[pair, step, row, level].astype(float)
            high: Floats = self._advantages[pair, step, row, level + 1].astype(float)
            found: Floats = low + (high - low) * above
            return found

        return read(waiting), read(spot)

    def solve(self, pairs: Ints | None = None) -> None:
        """Make sure that these pairs of mean run lengths are solved; all of them by default."""
        wanted = np.arange(len(self._solved)) if pairs is None else np.unique(pairs)
        missing = wanted[~self._solved[wanted]]
        if len(missing):
            self._backwards(missing)
            self._solved[missing] = True

    def _backwards(self, pairs: Ints) -> None:
        """Backward induction. Values are pairs × (age while up, age while down) × slack."""
        dt, changeover, price, slack = self.dt, self.changeover, self.price, self.slack
        ends_up = self._ends[pairs // len(self._ends)][:, :, None]
        ends_down = self._ends[pairs % len(self._ends)][:, :, None]
        by_switch, by_wait = _spend(slack, changeover), _spend(slack, dt)
        # below one changeover of slack, only a job that is on demand already is in time
        no_wait = slack - dt < changeover - 1e-9
        no_start = slack < changeover - 1e-9
        no_spot = slack < 2 * changeover - 1e-9

        rest = np.zeros((len(pairs), 2 * AGES, LEVELS), np.float32)
        demand, spot = rest.copy(), rest[:, :AGES].copy()
        for step in range(1, self.steps + 1):
            work = np.clip(step * dt - slack, 0, None)
            running = np.minimum(dt, work).astype(np.float32)
            started = np.minimum(dt, work + changeover).astype(np.float32)

            after_rest = self._after(rest, ends_up, ends_down)
            after_demand = self._after(demand, ends_up, ends_down)
            after_spot = self._aged(spot)
            after_spot += ends_up * (rest[:, AGES : AGES + 1] - after_spot)

            wait = after_rest @ by_wait
            wait[..., no_wait] = _NEVER
            stay = price * running + after_demand
            start = price * started + after_demand @ by_switch
            start[..., no_start] = _NEVER
            ride = running + after_spot
            ride[..., no_start] = _NEVER
            mount = started + after_spot @ by_switch
            mount[..., no_spot] = _NEVER

            kept = np.concatenate(
                [
                    wait - start,
                    wait - stay,
                    mount - start[:, :AGES],
                    mount - stay[:, :AGES],
                    ride - start[:, :AGES],
                ],
                axis=1,
            )
            self._advantages[pairs, step] = np.clip(kept, -100, 100)

            rest, demand = np.minimum(wait, start), np.minimum(wait, stay)
            other = np.minimum(rest[:, :AGES], mount)
            rest[:, :AGES] = other
            demand[:, :AGES] = np.minimum(demand[:, :AGES], mount)
            spot = np.minimum(ride, other)
            finished = slack >= step * dt - 1e-9
            for values in (rest, demand, spot):
                values[..., finished] = 0

    def _aged(self, values: Singles) -> Singles:
        aged: Singles = values.copy()
        aged[:, :-1] += self._older[:-1, None] * (values[:, 1:] - values[:, :-1])
        return aged

    def _after(self, values: Singles, ends_up: Singles, ends_down: Singles) -> Singles:
        """The values one step later, expected now, of a job that no spot carries."""
        up, down = values[:, :AGES], values[:, AGES:]
        later_up, later_down = self._aged(up), self._aged(down)
        later_up += ends_up * (down[:, :1] - later_up)
        later_down += ends_down * (up[:, :1] - later_down)
        after: Singles = np.concatenate([later_up, later_down], axis=1)
        return after


def _kind(hours: Floats, steady: Bools) -> Ints:
    """The index of each kind of run: of its mean length in GRID_H; after these, the steady ones."""
    place = np.log(hours / GRID_H[0]) / np.log(GRID_H[1] / GRID_H[0])
    nearest = np.clip(np.rint(place), 0, len(GRID_H) - 1)
    return np.asarray(nearest + np.where(steady, len(GRID_H), 0), np.intp)


def _spend(slack: Floats, amount: float) -> Singles:
    """The matrix that takes values on the grid to those with `amount` less of slack."""
    place = np.interp(slack - amount, slack, np.arange(LEVELS))
    low = np.minimum(place.astype(np.intp), LEVELS - 2)
    matrix = np.zeros((LEVELS, LEVELS), np.float32)
    columns = np.arange(LEVELS)
    matrix[low, columns] = 1 - (place - low)
    matrix[low + 1, columns] += (place - low).astype(np.float32)
    return matrix
