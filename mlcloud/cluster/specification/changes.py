"""What differs between the specification of a running cluster and a new one, and what that takes.

    in place       the running cluster takes it up: limits, budgets, idle times, groups
    new nodes      nodes that are up stay as they are, those launched from now on have it
    down and up    the cluster must end first: cloud, name, network, store, head

Groups, machines and mounts are compared by their names, not by their places in a list.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from mlcloud.cluster.specification.model import Specification
from mlcloud.cluster.specification.parts import Effect, Machine, Mount, NodeGroup, OnChange, Part

EFFECTS: tuple[Effect, ...] = ("in place", "new nodes", "down and up")
_MEANS: dict[Effect, str] = {
    "in place": "applied in place",
    "new nodes": "for nodes launched from now on",
    "down and up": "needs down and up",
}
_NOT_SET = "–"


@dataclass(frozen=True)
class Change:
    """A field that differs: `old` and `new` as they are written, `–` for what is not there."""

    field: str
    old: str
    new: str
    effect: Effect
    note: str = ""

    @property
    def means(self) -> str:
        return _MEANS[self.effect] + (f": {self.note}" if self.note else "")

    def __str__(self) -> str:
        return f"{self.field}: {self.old} → {self.new} ({self.means})"


class ChangeList(Sequence[Change]):
    """All that differs. Shows itself as a table; false where nothing does."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = tuple(changes)

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return self._changes[index]

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def needs_restart(self) -> bool:
        """Whether some of it cannot be had without `down` and `up`."""
        return any(each.effect == "down and up" for each in self)

    def of(self, effect: Effect) -> list[Change]:
        return [each for each in self if each.effect == effect]

    def _bundle(self) -> dict[str, str]:
        from mlcloud.widgets.tables import table

        ordered = sorted(self, key=lambda each: EFFECTS.index(each.effect))
        rows = [(each.field, each.old, each.new, each.means) for each in ordered]
        return table(("field", "runs with", "new", "what happens"), rows)

    def __repr__(self) -> str:
        return self._bundle()["text/plain"] if self else "nothing differs"

    def _repr_html_(self) -> str:
        return self._bundle()["text/html"] if self else "<div>nothing differs</div>"


def changes(old: Specification, new: Specification) -> ChangeList:
    """What differs between `old`, which runs, and `new`."""
    return ChangeList(list(_parts(old, new, "")))


def _parts(old: Part, new: Part, prefix: str) -> Iterator[Change]:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for name, field in type(old).model_fields.items():
        was, now = getattr(old, name), getattr(new, name)
        if was == now:
            continue
        path = f"{prefix}{name}"
        effect = next(each.effect for each in field.metadata if isinstance(each, OnChange))
        if isinstance(was, Part):
            yield from _parts(was, now, f"{path}.")
        elif _named(was) or _named(now):
            yield from _items(was, now, path, effect)
        elif isinstance(was, dict):
            for key in {**was, **now}:
                if was.get(key) != now.get(key):
                    text = (_text(before[name].get(key)), _text(after[name].get(key)))
                    yield Change(f"{path}.{key}", *text, effect)
        else:
            yield Change(path, _text(before[name]), _text(after[name]), effect)


def _items(old: Sequence[Part], new: Sequence[Part], path: str, effect: Effect) -> Iterator[Change]:
    was, now = {_key(each): each for each in old}, {_key(each): each for each in new}
    for key in {**was, **now}:
        at = f"{path}[{key}]"
        if key not in now:
            note = "its nodes are given back" if isinstance(was[key], NodeGroup) else ""
            yield Change(at, _describe(was[key]), _NOT_SET, effect, note)
        elif key not in was:
            yield Change(at, _NOT_SET, _describe(now[key]), effect)
        else:
            yield from _parts(was[key], now[key], f"{at}.")


def _named(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(each, Part) for each in value)


def _key(part: Part) -> str:
    if isinstance(part, NodeGroup):
        return part.key
    if isinstance(part, Machine):
        return part.host if part.port == 22 else f"{part.host}:{part.port}"
    return part.path if isinstance(part, Mount) else repr(part)


def _describe(part: Part) -> str:
    if isinstance(part, NodeGroup):
        return f"{part}, {part.market}, {part.min} to {part.max} nodes"
    return part.url if isinstance(part, Mount) else str(getattr(part, "host", part))


def _text(value: Any) -> str:
    if value is None or value == [] or value == "":
        return _NOT_SET
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, (bool, types.NoneType)):
        return "yes" if value else "no"
    return str(value)
