"""What differs between the specification of a running cluster and a new one, and what that takes.

    in place       the running cluster takes it up: limits, budgets, idle times, groups
    new nodes      nodes that are up stay as they are, those launched from now on have it
    new sessions   sessions that there are stay as they are, those made from now on have it
    down and up    the cluster must end first: cloud, name, network, store, head

    split(old, new) ─► what is applied, as a specification of its own, and what is refused

Groups, machines and mounts are compared by their names, not by their places in a list.
"""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from pydantic import ValidationError

from mlcloud.cluster.specification.model import Specification
from mlcloud.cluster.specification.parts import Effect, Machine, Mount, NodeGroup, OnChange, Part

EFFECTS: tuple[Effect, ...] = ("in place", "new nodes", "new sessions", "down and up")
_MEANS: dict[Effect, str] = {
    "in place": "applied in place",
    "new nodes": "for nodes launched from now on",
    "new sessions": "for sessions made from now on",
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


#: The same file as before, with other packages in it.
OTHER_LOCK = Change("environment.lock", "as it was", "other packages", "new sessions")


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


@dataclass(frozen=True)
class Split:
    """What a running cluster makes of a changed specification.

    `merged` is what it runs with afterwards: the new specification, with the old value of each
    field of which something is refused.
    """

    merged: Specification
    applied: ChangeList
    refused: ChangeList

    def refusal(self) -> str:
        """What a user is told of what was refused: which fields, and what to do."""
        name = self.merged.name
        done = (
            "This was applied: " + "; ".join(map(str, self.applied))
            if self.applied
            else "Nothing was changed"
        )
        return (
            f"the cluster {name!r} runs, and cannot take this up while it does:\n"
            f"{self.refused!r}\n{done}. For the rest `mlcloud down`, then `up` starts it anew with "
            "its sessions, which stay in the store; or leave these fields as they were"
        )


#: With another of these it is another cluster: nothing of it is for the one that runs.
_IDENTITY = ("name", "cloud")


def split(old: Specification, new: Specification) -> Split:
    """What of `new` the cluster that runs with `old` can take up, field by field of the whole.

    Of a field of which one part needs `down` and `up`, nothing is applied. Where what is left would
    contradict itself (fewer regions, and the store not moved with them), nothing is applied at all.
    """
    everything = changes(old, new)
    other = any(getattr(old, name) != getattr(new, name) for name in _IDENTITY)
    kept = {_field(each) for each in everything if each.effect == "down and up"}
    if not kept:
        return Split(new, everything, ChangeList(()))
    refused = [each for each in everything if other or _field(each) in kept]
    merged = None
    if not other:
        told = {**new.model_dump(mode="json"), **old.model_dump(mode="json", include=kept)}
        with contextlib.suppress(ValidationError):
            merged = Specification.model_validate(told)
    if merged is None:
        return Split(old, ChangeList(()), ChangeList(list(everything)))
    applied = [each for each in everything if each not in refused]
    return Split(merged, ChangeList(applied), ChangeList(refused))


def _field(change: Change) -> str:
    """The specification's own field that a change is in."""
    return re.split(r"[.\[]", change.field, maxsplit=1)[0]


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
    if path == "ssh.hosts" and list(was)[:1] != list(now)[:1]:
        # The first is the head, and it cannot move while it runs.
        yield Change(path, _text(list(was)), _text(list(now)), "down and up")
        return
    for key in {**was, **now}:
        at = f"{path}[{key}]"
        if key not in now:
            note = "its nodes end when they are idle" if isinstance(was[key], NodeGroup) else ""
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
