"""What a trial tells of itself: `mlcloud.report(loss=0.3)`, and what it returned.

In a sweep it goes to the search, which may stop the trial: `report` raises `TrialStopped` then.
Elsewhere nothing happens, so a function for a sweep also runs by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlcloud.checkpoint import context
from mlcloud.errors import UsageError
from mlcloud.sweeps.space import Space
from mlcloud.sweeps.trials import numbers


class TrialStopped(BaseException):
    """Raised by `mlcloud.report` in a trial that is to make room for others.

    No `Exception`: `except Exception` in a training loop does not keep it. `finally` runs.
    """


def report(*, step: int | None = None, **values: Any) -> None:
    """Tell how a trial of a sweep does: numbers by name, such as `loss=0.31`.

    `step`: how much of it is done; without it, the step of the `mlcloud.resumable` loop around, or
    how often this run of the function has reported. Raises `TrialStopped` where the sweep has
    decided that the trial is to end here, and `UsageError` where nothing of it is a number.
    """
    found = numbers(values)
    if not found:
        raise UsageError(f"mlcloud.report({', '.join(values)}): none of this is a number")
    run = context.current()
    if run is None:
        return
    run.reports += 1
    if step is None:
        step = run.reports if run.step is None else run.step + 1
    context.report({"type": "metrics", "step": int(step), "values": found})


class Configured:
    """A function of a configuration, called with the plain parameters that a search gives."""

    def __init__(self, function: Callable[[Any], Any], space: Space, metrics: list[str]) -> None:
        self.function, self.space, self.metrics = function, space, metrics
        self.__qualname__ = str(getattr(function, "__qualname__", "trial"))

    def __call__(self, params: Mapping[str, Any]) -> Any:
        value = self.function(self.space.config(params))
        if isinstance(value, Mapping):
            found = numbers({str(name): each for name, each in value.items()})
        else:
            found = numbers({self.metrics[0]: value}) if len(self.metrics) == 1 else {}
        run = context.current()
        if found and run is not None:
            done = {"type": "metrics", "step": run.reports, "values": found, "final": True}
            context.report(done)
        return value
