"""Which configuration is tried next, by Optuna; and which trial is ended, by ASHA.

    ask() ─► Trial 7, {"lr": 0.01, …} ─► runs somewhere ─► report(7, step, {"loss": 0.3}) ─► go on?
                                                          └► tell(7, {"loss": 0.2})

Trials are told of in any order, and many run at once. What has been told is plain data
(`records`), from which another `Search` goes on, with the trials that ran then running. Failed
trials count: what killed its worker is not tried again.

TPE: Bergstra et al., NIPS 2011. ASHA: Li et al., MLSys 2020, as Optuna's `SuccessiveHalvingPruner`.
NSGA-II: Deb et al., 2002.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlcloud.errors import UsageError
from mlcloud.sweeps.space import Space
from mlcloud.sweeps.trials import Mode, Trial, Trials, numbers
from mlcloud.units import suggest

ALGORITHMS = ("tpe", "random", "grid", "nsga2")


@dataclass(frozen=True)
class Asha:
    """A trial goes on at steps `first`, `first × factor`, … while it is in the best 1/`factor`."""

    first: int = 1
    factor: int = 4

    def __post_init__(self) -> None:
        if self.first < 1 or self.factor < 2:
            raise UsageError("Asha(first ≥ 1, factor ≥ 2)")


class Search(Trials):
    """A study: see above. `trials` is how many are asked for in all; a grid knows it.

    `metrics`: name and whether less or more of it is better, several for a front.
    """

    def __init__(
        self,
        space: Space,
        metrics: Mapping[str, Mode],
        *,
        algorithm: str = "tpe",
        trials: int | None = None,
        asha: Asha | None = None,
        seed: int | None = None,
        records: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise UsageError(
                f"no algorithm {algorithm!r}; there are {', '.join(ALGORITHMS)} and pbt"
                f"{suggest(algorithm, ALGORITHMS)}"
            )
        super().__init__(metrics)
        if asha is not None and len(metrics) > 1:
            raise UsageError(
                "ASHA ranks trials by one metric: leave it out where there are several"
            )
        self.space, self.asha = space, asha
        self._grid = _grid(space, seed) if algorithm == "grid" else None
        if self._grid is not None:
            trials = len(self._grid) if trials is None else min(trials, len(self._grid))
        self.wanted = trials
        self._asked: dict[int, Any] = {}
        self._study = _study(space, self.metrics, algorithm, asha, seed)
        for record in sorted(records, key=lambda each: int(each["number"])):
            self._restore(Trial(**{**record}))

    def ask(self) -> Trial | None:
        """The next configuration; None: there are as many as were wanted."""
        if self.wanted is not None and len(self.trials) >= self.wanted:
            return None
        params = None if self._grid is None else self._grid[len(self.trials)]
        asked = self._ask(params)
        made = Trial(len(self.trials), dict(asked.params))
        self.trials[made.number] = made
        self._asked[made.number] = asked
        return made

    def _ask(self, params: Mapping[str, Any] | None) -> Any:
        with _quiet():
            if params is not None:
                self._study.enqueue_trial(dict(params))
            return self._study.ask(self.space.distributions)

    def report(self, number: int, step: int, values: Mapping[str, Any]) -> bool:
        """Hear of a running trial. False: it is to be stopped, since it lags behind."""
        trial, found = self._running(number), self._values(values)
        trial.step, trial.values = step, {**trial.values, **numbers(values)}
        if self.asha is None or found is None:
            return True
        asked = self._asked[number]
        with _quiet():
            if not math.isfinite(found[0]):
                return False
            if step >= self.asha.first * self.asha.factor ** len(trial.rungs):
                trial.rungs.append((step, found[0]))
            asked.report(found[0], step)
            return not asked.should_prune()

    def tell(self, number: int, values: Mapping[str, Any]) -> None:
        """A trial has ended with these. Raises `UsageError` where a metric is not among them."""
        trial = self._running(number)
        found = self._values({**trial.values, **numbers(values)})
        if found is None:
            missing = [name for name in self.metrics if name not in values]
            raise UsageError(
                f"trial {number} told no {', '.join(missing)}, but {', '.join(values) or 'nothing'}"
                f": what it returns, or reports last, is to have {', '.join(self.metrics)}"
            )
        trial.values = {**trial.values, **numbers(values)}
        self._end(trial, "done", found if all(map(math.isfinite, found)) else None)

    def stop(self, number: int) -> None:
        """A trial was ended because it lags behind: its last report counts."""
        self._end(self._running(number), "stopped", None)

    def fail(self, number: int, why: str) -> None:
        """A trial came to nothing."""
        trial = self._running(number)
        trial.why = why
        self._end(trial, "failed", None)

    # --- within -----------------------------------------------------------------------------------

    def _values(self, values: Mapping[str, Any]) -> list[float] | None:
        found = numbers(values)
        if any(name not in found for name in self.metrics):
            return None
        return [found[name] for name in self.metrics]

    def _end(self, trial: Trial, state: str, values: Sequence[float] | None) -> None:
        from optuna.trial import TrialState

        trial.state = state
        asked = self._asked.pop(trial.number)
        with _quiet():
            if values is not None:
                self._study.tell(asked, list(values))
            elif state == "stopped":
                self._study.tell(asked, state=TrialState.PRUNED)
            else:
                self._study.tell(asked, state=TrialState.FAIL)

    def _restore(self, trial: Trial) -> None:
        if trial.number != len(self.trials):
            raise UsageError(f"the records have no trial {len(self.trials)}")
        state, trial.state = trial.state, "running"
        self.trials[trial.number] = trial
        asked = self._asked[trial.number] = self._ask(trial.params)
        for step, value in trial.rungs if self.asha is not None else ():
            asked.report(value, step)
            asked.should_prune()  # takes it for ranking the others
        if state == "done":
            self.tell(trial.number, trial.values)
        elif state == "stopped":
            self.stop(trial.number)
        elif state == "failed":
            self.fail(trial.number, trial.why)


def _study(
    space: Space, metrics: Mapping[str, Mode], algorithm: str, asha: Asha | None, seed: int | None
) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("sweeps need Optuna: pip install 'mlcloud[sweep]'") from error

    with _quiet():
        samplers = optuna.samplers
        sampler: Any
        if algorithm in ("random", "grid"):
            sampler = samplers.RandomSampler(seed=seed)
        elif algorithm == "nsga2":
            sampler = samplers.NSGAIISampler(seed=seed)
        else:
            # `constant_liar`: many run at once, and are not to be tried beside each other.
            sampler = samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        pruner: Any = optuna.pruners.NopPruner()
        if asha is not None:
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=asha.first, reduction_factor=asha.factor
            )
        return optuna.create_study(
            directions=["minimize" if mode == "min" else "maximize" for mode in metrics.values()],
            sampler=sampler,
            pruner=pruner,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells of each study and each experimental option; we tell of trials ourselves."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _grid(space: Space, seed: int | None) -> list[dict[str, Any]]:
    """Every place of the grid, shuffled where there is a seed: a budget may end it early."""
    grid = space.grid()
    places = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if seed is not None:
        random.Random(seed).shuffle(places)
    return places
