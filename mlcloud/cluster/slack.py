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
import threading

import numpy as np
import numpy.typing as npt

from mlcloud.cluster.lifetimes import SHAPE, Bools, Floats

Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

STEPS = 360
GRID_H = np.geomspace(0.25, 64.0, 9)  # mean run lengths
LEVELS = 48  # of slack
AGES = 5
AT_ONCE = 16  # pairs that are solved together: what they need of memory stays in the caches
FIRST_AGE_H = 0.4
_STEADY_SHAPE = 20.0  # of run lengths whose end comes at nearly the same rate at any age
_NEVER = np.float32(1e4)


@functools.lru_cache(maxsize=8)
def slack_table(
    work_s: float, deadline_s: float, changeover_s: float, step_s: float, price_ratio: float
) -> SlackTable:
    """The table of a kind of job; kept, because all jobs of a kind and all decisions share it."""
    return SlackTable(work_s, deadline_s, changeover_s, step_s, price_ratio)


class SlackTable:
    """Advantages for one kind of job. `price_ratio` is on-demand over spot.

    What is needed of it is solved when it is first asked for (6 to 10 ms for one pair of kinds of
    runs, 5 ms each for many at once) and kept (1.2 MB a pair). `ahead` solves what a live job may
    ask for next, in a thread.
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
        self._asked: Ints = np.zeros(0, np.intp)
        self._ahead: threading.Thread | None = None
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
        self._asked = pair
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
        for first in range(0, len(missing), AT_ONCE):
            some = missing[first : first + AT_ONCE]
            self._backwards(some)
            self._solved[some] = True

    def ahead(self) -> None:
        """Solve, in a thread, the kinds of runs next to those that were asked for last: what has
        been seen of spot changes slowly. Two threads may solve the same pair, to the same end."""
        kinds, sizes = len(self._ends), len(GRID_H)
        wanted = set()
        for pair in np.unique(self._asked):
            up, down = divmod(int(pair), kinds)
            wanted |= {a * kinds + b for a in _beside(up, sizes) for b in _beside(down, sizes)}
        missing = [each for each in sorted(wanted) if not self._solved[each]]
        if missing and (self._ahead is None or not self._ahead.is_alive()):
            pairs = np.array(missing, np.intp)
            self._ahead = threading.Thread(
                target=self._solve_one_by_one, args=(pairs,), daemon=True
            )
            self._ahead.start()

    def join(self) -> None:
        """Wait until what `ahead` began is solved."""
        if self._ahead is not None:
            self._ahead.join()

    def _solve_one_by_one(self, pairs: Ints) -> None:
        for pair in pairs:  # so that a decision meanwhile finds those that are done
            self.solve(np.array([pair]))

    def _backwards(self, pairs: Ints) -> None:
        """Backward induction, by few operations a step: of one pair each is a few kB, and what a
        step takes is how many there are.

        A value's rows are (at rest, on demand) × (up, down) × age and (on spot) × age: what they
        are one step later, expected now, is one matrix (`_later`). The advantages are taken from
        what each choice costs when all steps are done.
        """
        dt, changeover, price, slack = self.dt, self.changeover, self.price, self.slack
        later = self._later(pairs)
        by_switch, by_wait = _spend(slack, changeover), _spend(slack, dt)
        # Slack grows with its index, so what cannot be is a beginning, and what is done an end.
        # Below one changeover of slack, only a job that is on demand already is in time.
        no_wait = int(np.sum(slack - dt < changeover - 1e-9))
        no_start = int(np.sum(slack < changeover - 1e-9))
        no_spot = int(np.sum(slack < 2 * changeover - 1e-9))
        times = np.arange(self.steps + 1)[:, None] * dt
        work = np.clip(times - slack, 0, None)
        running = np.minimum(dt, work).astype(np.float32)
        started = np.minimum(dt, work + changeover).astype(np.float32)
        is_price = np.repeat([price, 1.0], [2 * AGES, AGES]).astype(np.float32)[:, None]
        stays, starts = running[:, None] * is_price, started[:, None] * is_price
        done = np.searchsorted(slack, times[:, 0] - 1e-9)

        shape = (self.steps + 1, len(pairs))
        waits = np.empty((*shape, 2 * AGES, LEVELS), np.float32)
        staying = np.empty((*shape, 3 * AGES, LEVELS), np.float32)  # on demand, on spot
        starting = np.empty((*shape, 3 * AGES, LEVELS), np.float32)
        waits[0] = staying[0] = starting[0] = 0  # nobody asks for what is at the deadline
        values = np.zeros((len(pairs), 5 * AGES, LEVELS), np.float32)
        after = np.empty_like(values)
        at_rest, after_rest = values[:, : 2 * AGES], after[:, : 2 * AGES]
        demand, spot = values[:, 2 * AGES : 4 * AGES], values[:, 4 * AGES :]
        rest_up, demand_up = values[:, :AGES], values[:, 2 * AGES : 3 * AGES]
        after_on = after[:, 2 * AGES :]
        for step in range(1, self.steps + 1):
            wait, stay, start = waits[step], staying[step], starting[step]
            np.matmul(later, values, out=after)
            np.matmul(after_rest, by_wait, out=wait)
            np.matmul(after_on, by_switch, out=start)
            np.add(after_on, stays[step], out=stay)
            start += starts[step]
            wait[..., :no_wait] = _NEVER
            start[:, : 2 * AGES, :no_start] = _NEVER
            start[:, 2 * AGES :, :no_spot] = _NEVER
            stay[:, 2 * AGES :, :no_start] = _NEVER

            mount = start[:, 2 * AGES :]
            np.minimum(wait, start[:, : 2 * AGES], out=at_rest)
            np.minimum(wait, stay[:, : 2 * AGES], out=demand)
            np.minimum(rest_up, mount, out=rest_up)
            np.minimum(demand_up, mount, out=demand_up)
            np.minimum(stay[:, 2 * AGES :], rest_up, out=spot)
            values[..., done[step] :] = 0

        kept = np.empty((len(pairs), *self._advantages.shape[1:]), np.float32)
        by_step = kept.transpose(1, 0, 2, 3)
        start, stay = starting[:, :, : 2 * AGES], staying[:, :, : 2 * AGES]
        mount, ride = starting[:, :, 2 * AGES :], staying[:, :, 2 * AGES :]
        np.subtract(waits, start, out=by_step[:, :, : 2 * AGES])
        np.subtract(waits, stay, out=by_step[:, :, 2 * AGES : 4 * AGES])
        np.subtract(mount, start[:, :, :AGES], out=by_step[:, :, 4 * AGES : 5 * AGES])
        np.subtract(mount, stay[:, :, :AGES], out=by_step[:, :, 5 * AGES : 6 * AGES])
        np.subtract(ride, start[:, :, :AGES], out=by_step[:, :, 6 * AGES :])
        self._advantages[pairs] = np.clip(kept, -100, 100, out=kept)

    def _later(self, pairs: Ints) -> Singles:
        """The matrix of each pair that takes values to those one step later, expected now."""
        aged = np.eye(AGES, dtype=np.float32) * (1 - self._older)[:, None]
        aged += np.eye(AGES, k=1, dtype=np.float32) * self._older[:, None]
        kinds = len(self._ends)
        ends_up, ends_down = self._ends[pairs // kinds], self._ends[pairs % kinds]
        up, down = slice(0, AGES), slice(AGES, 2 * AGES)
        found: Singles = np.zeros((len(pairs), 5 * AGES, 5 * AGES), np.float32)
        for first in (0, 2 * AGES):
            rows = found[:, first : first + 2 * AGES, first : first + 2 * AGES]
            rows[:, up, up] = (1 - ends_up)[:, :, None] * aged
            rows[:, down, down] = (1 - ends_down)[:, :, None] * aged
            rows[:, up, AGES] = ends_up
            rows[:, down, 0] = ends_down
        found[:, 4 * AGES :, 4 * AGES :] = (1 - ends_up)[:, :, None] * aged
        found[:, 4 * AGES :, AGES] = ends_up  # at rest, and spot has gone
        return found


def _kind(hours: Floats, steady: Bools) -> Ints:
    """The index of each kind of run: of its mean length in GRID_H; after these, the steady ones."""
    place = np.log(hours / GRID_H[0]) / np.log(GRID_H[1] / GRID_H[0])
    nearest = np.clip(np.rint(place), 0, len(GRID_H) - 1)
    return np.asarray(nearest + np.where(steady, len(GRID_H), 0), np.intp)


def _beside(kind: int, sizes: int) -> set[int]:
    """A kind of run, those of the next mean lengths, and all these as steady ones and not."""
    size = kind % sizes
    near = [each for each in (size - 1, size, size + 1) if 0 <= each < sizes]
    return {each + steady for each in near for steady in (0, sizes)}


def _spend(slack: Floats, amount: float) -> Singles:
    """The matrix that takes values on the grid to those with `amount` less of slack."""
    place = np.interp(slack - amount, slack, np.arange(LEVELS))
    low = np.minimum(place.astype(np.intp), LEVELS - 2)
    matrix = np.zeros((LEVELS, LEVELS), np.float32)
    columns = np.arange(LEVELS)
    matrix[low, columns] = 1 - (place - low)
    matrix[low + 1, columns] += (place - low).astype(np.float32)
    return matrix
