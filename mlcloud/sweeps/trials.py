"""What is known of a sweep's trials: their configurations, their state, the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlcloud.errors import UsageError

Mode = Literal["min", "max"]


@dataclass
class Trial:
    """One configuration and what came of it.

    `state`: "running", "done", "stopped" or "failed". `values`: what was told, or reported last;
    `rungs`: the steps and values it was ranked at.
    """

    number: int
    params: dict[str, Any]
    state: str = "running"
    values: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    why: str = ""
    rungs: list[tuple[int, float]] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        return dict(vars(self))


class Trials:
    """Trials by number, and which of them are best by `metrics` (name: "min" or "max")."""

    def __init__(self, metrics: Mapping[str, Mode]) -> None:
        if not metrics or any(mode not in ("min", "max") for mode in metrics.values()):
            raise UsageError('metrics: {"loss": "min"} or {"accuracy": "max", "seconds": "min"}')
        self.metrics = dict(metrics)
        self.trials: dict[int, Trial] = {}

    @property
    def running(self) -> list[int]:
        return [number for number, each in self.trials.items() if each.state == "running"]

    @property
    def records(self) -> list[dict[str, Any]]:
        """All that is known, as plain data."""
        return [each.to_record() for each in self.trials.values()]

    @property
    def best(self) -> Trial | None:
        """The best of those that came to their end; where none did, of those that were stopped, by
        what they reported last. Of several metrics, by the first."""
        name, mode = next(iter(self.metrics.items()))
        counted = [each for each in self.trials.values() if self._counts(each)]
        ended = [each for each in counted if each.state == "done"] or counted
        if not ended:
            return None
        return (min if mode == "min" else max)(ended, key=lambda each: each.values[name])

    @property
    def front(self) -> list[Trial]:
        """Those that no other is better than in every metric (Pareto), by the first metric."""
        signs = {name: 1.0 if mode == "min" else -1.0 for name, mode in self.metrics.items()}
        ended = [each for each in self.trials.values() if self._counts(each)]

        def costs(trial: Trial) -> tuple[float, ...]:
            return tuple(sign * trial.values[name] for name, sign in signs.items())

        def beaten(trial: Trial) -> bool:
            mine = costs(trial)
            return any(
                theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
                for theirs in map(costs, ended)
            )

        return sorted((each for each in ended if not beaten(each)), key=costs)

    def _counts(self, trial: Trial) -> bool:
        return trial.state in ("done", "stopped") and all(
            math.isfinite(trial.values.get(name, math.nan)) for name in self.metrics
        )

    def _running(self, number: int) -> Trial:
        trial = self.trials.get(number)
        if trial is None or trial.state != "running":
            raise UsageError(f"there is no running trial {number}")
        return trial


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers, numpy's and torch's scalars too."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, (str, bytes)) or value is None:
            continue
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found
