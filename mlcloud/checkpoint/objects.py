"""Objects that are saved by their state and restored in place: which kinds there are.

    state_dict     whatever has state_dict() and load_state_dict(): modules, optimizers, schedulers,
                   GradScaler, AveragedModel, StatefulDataLoader, a user's own class
    random…        generators (see `randomness`)
    sklearn …      fitted estimators (see `estimators`)
    dataclass      its fields, one by one; what stands in them is restored in place as well
    enum           its name; the member is that of the live object's class

A checkpoint holds no reference to a class that could be imported. The class is the live object's,
and its name in the checkpoint only says whether the two belong together.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import estimators, randomness


def how_of(value: Any) -> str | None:
    """How an object is saved and restored, or None when it is none of these."""
    if isinstance(value, type):
        return None
    kind = randomness.kind_of(value)
    if kind is not None:
        return kind
    if has_state_dict(value):
        return "state_dict"
    kind = estimators.kind_of(value)
    if kind is not None:
        return kind
    if isinstance(value, enum.Enum):
        return "enum"
    return "dataclass" if dataclasses.is_dataclass(value) else None


def has_state_dict(value: Any) -> bool:
    """True for an object (not a class) with `state_dict()` and `load_state_dict()`."""
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict")
    )


def fields(value: Any) -> dict[str, Any]:
    """A dataclass instance's attributes: its fields, and what else was set on it."""
    own = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    return own | getattr(value, "__dict__", {})


def set_field(value: Any, name: str, new: Any) -> None:
    """Also in a frozen dataclass: it is one of ours, or a copy that nobody has seen yet."""
    object.__setattr__(value, name, new)


def is_frozen(value: Any) -> bool:
    """Whether a dataclass's instances must not change: another takes their place."""
    return bool(type(value).__dataclass_params__.frozen)


def member(value: enum.Enum, state: dict[str, Any]) -> enum.Enum:
    """The member of `value`'s class that was saved. Raises UsageError when there is none."""
    kind = type(value)
    try:
        # Of flags, many values have no name of their own.
        return kind(state["value"]) if isinstance(value, enum.Flag) else kind[state["name"]]
    except (KeyError, ValueError) as error:
        raise errors.UsageError(f"a {kind.__qualname__}, which has no {state['name']!r}") from error
