"""Search spaces as a user writes them, and the configurations that lie in them.

    space = {
        "lr": (1e-5, 1e-1, "log"),       floats from … to …, evenly by their logarithm
        "dropout": (0.0, 0.5),           floats
        "layers": (1, 8),                whole numbers, both ends included
        "width": (64, 512, 64),          whole numbers, by steps of 64
        "optimizer": ["adam", "sgd"],    one of these, of any type
        "data": {"crop": [0.8, 1.0]},    a dict within the configuration
        "epochs": 10,                    the same for all
    }

Distributions of Optuna are taken as they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlcloud.errors import UsageError

LOG = "log"
_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float | None = None

    @property
    def distribution(self) -> Any:
        """As Optuna has it."""
        from optuna import distributions

        if self.whole:
            return distributions.IntDistribution(
                int(self.low), int(self.high), log=self.log, step=int(self.step or 1)
            )
        return distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def sample(self, dice: random.Random) -> float:
        if self.step is not None:
            steps = int((self.high - self.low) / self.step + 1e-9)
            return self._clean(self.low + self.step * dice.randint(0, steps))
        if self.log:
            return self._clean(math.exp(dice.uniform(math.log(self.low), math.log(self.high))))
        if self.whole:
            return dice.randint(int(self.low), int(self.high))
        return dice.uniform(self.low, self.high)

    def near(self, value: float, factor: float, dice: random.Random) -> float:
        """`value` times `factor`, within the range; whole numbers move by one at least."""
        found = value * factor
        if self.whole and round(found) == value:
            found = value + (1 if factor > 1 else -1)
        return self._clean(found)

    def _clean(self, value: float) -> float:
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def has(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def grid(self) -> list[Any]:
        """Every value there is. Raises `UsageError` where they are not counted."""
        if not self.whole and self.step is None:
            raise UsageError(
                f"a grid over all numbers from {self.low:g} to {self.high:g} has no end: give a "
                "list of values, or a step as the third number"
            )
        step = self.step or 1
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [self._clean(self.low + step * number) for number in range(count)]


@dataclass(frozen=True)
class Choice:
    """One of these. What is no number, text or None goes by its place."""

    values: tuple[Any, ...]

    @property
    def scalar(self) -> bool:
        return all(isinstance(each, _SCALARS) for each in self.values)

    @property
    def distribution(self) -> Any:
        from optuna import distributions

        return distributions.CategoricalDistribution(
            self.values if self.scalar else tuple(range(len(self.values)))
        )

    def sample(self, dice: random.Random) -> Any:
        return dice.choice(self.grid())

    def near(self, value: Any, factor: float, dice: random.Random) -> Any:
        """A neighbour in the list, as written."""
        values = self.grid()
        at = values.index(value) + (1 if factor > 1 else -1)
        return values[min(max(at, 0), len(values) - 1)]

    def has(self, value: Any) -> bool:
        return value in self.grid()

    def grid(self) -> list[Any]:
        return list(self.values) if self.scalar else list(range(len(self.values)))


Dimension = Range | Choice


class Space:
    """A space that `read` understood: its dimensions by dotted name, and what is fixed."""

    def __init__(self, dimensions: dict[str, Dimension], fixed: dict[str, Any]) -> None:
        self.dimensions = dimensions
        self.fixed = fixed

    @property
    def distributions(self) -> dict[str, Any]:
        return {name: each.distribution for name, each in self.dimensions.items()}

    def config(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the user's function gets: nested as the space is, with what is fixed."""
        made: dict[str, Any] = {}
        for name, value in {**self.fixed, **self._values(params)}.items():
            into = made
            *path, last = name.split(".")
            for part in path:
                into = into.setdefault(part, {})
            into[last] = value
        return made

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in params.items():
            dimension = self.dimensions[name]
            by_place = isinstance(dimension, Choice) and not dimension.scalar
            found[name] = dimension.values[value] if by_place else value  # type: ignore[union-attr]
        return found

    def sample(self, dice: random.Random) -> dict[str, Any]:
        return {name: each.sample(dice) for name, each in self.dimensions.items()}

    def describe(self) -> dict[str, Any]:
        """As JSON, for who searches: without what is fixed, values that are no scalars by name."""
        return {
            name: vars(each).copy()
            if isinstance(each, Range)
            else {"values": list(each.values)}
            if each.scalar
            else {"names": [_name(value) for value in each.values]}
            for name, each in self.dimensions.items()
        }

    def grid(self) -> dict[str, list[Any]]:
        return {name: each.grid() for name, each in self.dimensions.items()}


def described(dimensions: Mapping[str, Mapping[str, Any]]) -> Space:
    """The space of which `describe` is given; what is no scalar is a place in its list there.

    Raises `UsageError` for what no `describe` gives.
    """
    found: dict[str, Dimension] = {}
    try:
        for name, each in dimensions.items():
            if "low" in each:
                found[name] = _range_described(**each)
            else:
                listed = "values" in each
                values = each["values"] if listed else range(len(each["names"]))
                choice = found[name] = Choice(tuple(values))
                if not values or not choice.scalar:
                    raise ValueError
    except (TypeError, ValueError, KeyError, AttributeError):
        raise UsageError("a space is described by its ranges and values, by name") from None
    if not found:
        raise UsageError("nothing varies in this space")
    return Space(found, {})


def _range_described(
    low: float, high: float, whole: bool = False, log: bool = False, step: float | None = None
) -> Range:
    third = LOG if log else step
    made = _range("a range", (low, high) if third is None else (low, high, third))
    return Range(made.low, made.high, bool(whole) and made.whole, made.log, made.step)


def _name(value: Any) -> str:
    return str(getattr(value, "__name__", value))[:40]


def read(space: Mapping[str, Any]) -> Space:
    """Understand a space as a user writes it. Raises `UsageError` that names what is wrong."""
    if not isinstance(space, Mapping) or not space:
        raise UsageError(
            "a sweep's space is a dict from names to what may be tried: "
            '{"lr": (1e-5, 1e-1, "log"), "layers": [1, 2, 3]}'
        )
    dimensions, fixed = dict[str, Dimension](), dict[str, Any]()

    def go(part: Mapping[str, Any], above: str) -> None:
        for name, value in part.items():
            if not isinstance(name, str) or not name or "." in name:
                raise UsageError(f"{name!r} is no name of a parameter: a text without dots is")
            full = above + name
            if isinstance(value, Mapping):
                go(value, f"{full}.")
                continue
            found = _dimension(full, value)
            if found is None:
                fixed[full] = value
            else:
                dimensions[full] = found

    go(space, "")
    if not dimensions:
        raise UsageError(
            f"nothing varies in this space ({', '.join(fixed)}): give a list of values, or a "
            "range as a tuple"
        )
    return Space(dimensions, fixed)


def _dimension(name: str, value: Any) -> Dimension | None:
    if isinstance(value, list):
        if not value:
            raise UsageError(f"{name} is an empty list: there is nothing to choose from")
        return Choice(tuple(value))
    if isinstance(value, tuple):
        return _range(name, value)
    if type(value).__module__.startswith("optuna.distributions"):
        return _of_optuna(value)
    return None


def _range(name: str, value: Sequence[Any]) -> Range:
    numbers = [each for each in value[:2] if _is_number(each)]
    if len(value) not in (2, 3) or len(numbers) != 2:
        raise UsageError(
            f'{name} is {value!r}: a range is (low, high), (low, high, "log") or '
            "(low, high, step); values to choose from stand in a list"
        )
    low, high = numbers
    third = value[2] if len(value) == 3 else None
    log = third == LOG
    if third is not None and not log and not (_is_number(third) and third > 0):
        raise UsageError(f'{name}: the third of {value!r} is a step above 0, or "log"')
    if not low < high:
        raise UsageError(f"{name}: {low!r} is not below {high!r}")
    if log and low <= 0:
        raise UsageError(f"{name}: a range by its logarithm begins above 0, not at {low!r}")
    step = None if third is None or log else third
    whole = all(isinstance(each, int) for each in (low, high, step or 1))
    return Range(low, high, whole, log, step)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _of_optuna(value: Any) -> Dimension:
    if hasattr(value, "choices"):
        return Choice(tuple(value.choices))
    whole = type(value).__name__.startswith("Int")
    step = None if whole and value.step == 1 else value.step
    return Range(value.low, value.high, whole, value.log, step)
