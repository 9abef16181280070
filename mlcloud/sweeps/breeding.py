"""Population based training: who lags copies a leader's state, and tries other values.

    population of 8 ─ each trains, and reports each step
        every `interval` steps: is it in the lowest quarter?
            no   it goes on
            yes  it ends here; its place goes on from the checkpoint of one of the best quarter,
                 whose values it takes, each ×0.8 or ×1.2 (or next to it in a list), or drawn anew

Members reach their marks at different times, and none waits: each is ranked among the last reports
that the others made, as in Jaderberg et al., "Population Based Training of Neural Networks", 2017.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlcloud.errors import UsageError
from mlcloud.sweeps.space import Space
from mlcloud.sweeps.trials import Mode, Trial, Trials, numbers


@dataclass(frozen=True)
class Breeding:
    """How a population is bred. `interval`: steps between two looks at a member."""

    interval: int = 1
    quantile: float = 0.25
    resample: float = 0.25
    factors: tuple[float, float] = (0.8, 1.2)

    def __post_init__(self) -> None:
        if self.interval < 1 or not 0 < self.quantile <= 0.5 or not 0 <= self.resample <= 1:
            raise UsageError("Breeding(interval ≥ 1, 0 < quantile ≤ 0.5, 0 ≤ resample ≤ 1)")


@dataclass
class Member(Trial):
    """A trial of a population. `parent`: it begins with the checkpoint of that trial's `since`."""

    parent: int | None = None
    since: int | None = None
    looked: int = 0  # the step at which it was looked at last


class Population(Trials):
    """As `Search`, for a population of `size`: `ask` gives a member whenever a place is free."""

    def __init__(
        self,
        space: Space,
        metrics: Mapping[str, Mode],
        size: int,
        breeding: Breeding = Breeding(),
        *,
        seed: int | None = None,
        records: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(metrics)
        if size < 2:
            raise UsageError("a population has at least 2 members: trials=2 or more")
        if len(self.metrics) != 1:
            raise UsageError("a population is ranked by one metric")
        self.space, self.breeding = space, breeding
        self._metric, self._mode = next(iter(self.metrics.items()))
        self._dice = random.Random(seed)
        self._next: list[Member] = []  # successors of those that were stopped
        for record in sorted(records, key=lambda each: int(each["number"])):
            member = Member(**record)
            self.trials[member.number] = member
        first = sum(each.parent is None for each in self._members)
        self._unborn = max(0, size - first)
        stopped = sum(each.state == "stopped" for each in self._members)
        for _ in range(stopped - (len(self._members) - first)):  # theirs were not asked for yet
            ranked = sorted((each for each in self._members if self._counts(each)), key=self._rank)
            if ranked:
                self._next.append(self._successor(ranked[0]))

    @property
    def _members(self) -> list[Member]:
        return [each for each in self.trials.values() if isinstance(each, Member)]

    @property
    def waits(self) -> bool:
        """Whether somebody is to begin."""
        return bool(self._next or self._unborn)

    def ask(self) -> Member | None:
        """Who begins next; None: nobody, for now."""
        if self._next:
            member = self._next.pop(0)
        elif self._unborn:
            self._unborn -= 1
            member = Member(len(self.trials), self.space.sample(self._dice))
        else:
            return None
        member.number = len(self.trials)
        self.trials[member.number] = member
        return member

    def report(self, number: int, step: int, values: Mapping[str, Any]) -> bool:
        """Hear of a member. False: it is to be stopped; `ask` gives its successor."""
        member = self._member(number)
        member.step, member.values = step, {**member.values, **numbers(values)}
        if self._metric not in member.values or step - member.looked < self.breeding.interval:
            return True
        member.looked = step
        leader = self._leader_of(member)
        if leader is None:
            return True
        self._next.append(self._successor(leader))
        return False

    def _successor(self, leader: Member) -> Member:
        params, since = self._varied(leader.params), leader.step
        return Member(-1, params, parent=leader.number, since=since, looked=since or 0)

    def _leader_of(self, member: Member) -> Member | None:
        """Whose state it is to go on with; None: its own."""
        ranked = sorted(
            (
                each
                for each in self._members
                if each.state in ("running", "done") and self._metric in each.values
            ),
            key=self._rank,
        )
        count = int(len(ranked) * self.breeding.quantile)
        if not count and len(ranked) > 1:
            count = 1
        if not count or all(each is not member for each in ranked[-count:]):
            return None
        leader = self._dice.choice(ranked[:count])
        return leader if self._rank(leader) < self._rank(member) else None

    def _rank(self, member: Member) -> float:
        value = member.values[self._metric]
        if not math.isfinite(value):
            return math.inf
        return value if self._mode == "min" else -value

    def _varied(self, params: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in params.items():
            dimension = self.space.dimensions[name]
            if self._dice.random() < self.breeding.resample:
                found[name] = dimension.sample(self._dice)
            else:
                factor = self._dice.choice(self.breeding.factors)
                found[name] = dimension.near(value, factor, self._dice)
        return found

    def _member(self, number: int) -> Member:
        found = self._running(number)
        assert isinstance(found, Member)
        return found

    def tell(self, number: int, values: Mapping[str, Any]) -> None:
        """A member has come to its end. Raises `UsageError` where the metric is not known."""
        member = self._member(number)
        member.values = {**member.values, **numbers(values)}
        if self._metric not in member.values:
            raise UsageError(f"trial {number} told no {self._metric}")
        member.state = "done"

    def stop(self, number: int) -> None:
        """A member has made room for its successor."""
        self._member(number).state = "stopped"

    def fail(self, number: int, why: str) -> None:
        """A member came to nothing."""
        member = self._member(number)
        member.state, member.why = "failed", why
