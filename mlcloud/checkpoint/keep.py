"""Which steps of a series are kept: the newest, the best, and one an hour or so.

Keep(last=3, best=2, every="1h")     a step that any of these wants is kept
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from mlcloud import errors
from mlcloud.units import parse_duration


class Step(Protocol):
    """What the rules look at."""

    @property
    def step(self) -> int: ...
    @property
    def created(self) -> datetime: ...
    @property
    def metric(self) -> float | None: ...


@dataclass(frozen=True)
class Keep:
    """A rule. Raises `UsageError` for one that would keep nothing, or cannot be understood.

    Args:
        last: so many of the newest steps.
        best: so many of those with the best metric; steps without one do not count.
        mode: whether a small or a large metric is good.
        every: the first step of each span of this length, `"1h"`, from the oldest step on.
    """

    last: int = 1
    best: int = 0
    mode: Literal["min", "max"] = "min"
    every: str | timedelta | None = None

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0:
            raise errors.UsageError(
                f"keep: last={self.last}, best={self.best}: at least the newest step is kept"
            )
        if self.mode not in ("min", "max"):
            raise errors.UsageError(f"keep: mode is 'min' or 'max', not {self.mode!r}")
        if self.every is not None and parse_duration(self.every) <= timedelta():
            raise errors.UsageError(f"keep: every={self.every!r} is no length of time")

    @property
    def looks(self) -> bool:
        """Whether it asks for more than the steps' numbers."""
        return bool(self.best) or self.every is not None

    def of(self, steps: Sequence[Step]) -> set[int]:
        """The steps to keep, of these, in order."""
        kept = {each.step for each in steps[-self.last :]}
        if self.best:
            sign = 1 if self.mode == "min" else -1
            rated = [
                (sign * each.metric, -each.step)
                for each in steps
                if each.metric is not None and not math.isnan(each.metric)
            ]
            kept |= {-step for _, step in sorted(rated)[: self.best]}
        if self.every is not None and steps:
            span, spans = parse_duration(self.every), set[int]()
            for each in steps:
                number = (each.created - steps[0].created) // span
                if number not in spans:
                    spans.add(number)
                    kept.add(each.step)
        return kept


def rule(keep: int | Keep) -> Keep:
    """`keep=5` is `Keep(last=5)`."""
    return keep if isinstance(keep, Keep) else Keep(last=keep)
