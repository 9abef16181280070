"""What the session's side knows of each shared key, and which of them changed since it last looked.

    refresh(keys) ─► a `Scan` of those keys ─► another digest, another object: a new version

**Versions.** Each shared key has a version, a number from one growing clock. It moves when the
value was replaced by a shipment, or was found changed. A notebook says which versions it knows
(`Shipment.known`), so several notebooks share a session without this side knowing them.

**Bindings.** A RemoteValue names an object, not its contents: `model.fit` leaves it good, `model =
other` does not. So each name also counts how often it was bound to another object.

**Kinds.** A name of kind `value` is pickled and hashed after each cell. One of kind `remote` (too
large to return, or not picklable) is not hashed: it counts as changed when the cell mentions it,
and is pickled without hashing, or walked, to know with whom it shares objects. A value
whose pickle is another one each time counts as changed in the same way.

Which keys are looked at after a cell says `tracking`.
"""

from __future__ import annotations

import time
import types
import uuid
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from mlcloud import errors
from mlcloud.kernel.imports import as_import
from mlcloud.values.messages import class_id
from mlcloud.values.pickled import Ref
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Joints, Scan


@dataclass
class Entry:
    """What this side knows of one shared key."""

    version: int
    kind: str = "value"  # value, remote, module, gone
    digest: str | None = None  # of our own dump; None: not hashed
    binding: int = 0
    source: str | None = None  # the digest of the group that was loaded last,
    sender: str = ""  # from this notebook,
    loaded: int = 0  # and the version it became
    group: frozenset[str] | None = None  # keys it shared objects with; None: not looked at yet
    joints: Joints | None = None  # those of them without another one between; None: unknown
    why: str = ""  # it is `remote`, as notebooks were told last


class Versions:
    """The shared keys of one namespace. `epoch` names the life that the versions count in."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.classes = Classes()
        self.epoch = uuid.uuid4().hex
        self.entries: dict[str, Entry] = {}
        self._bound: dict[str, Any] = {}  # name -> a weak reference to its object, or its id
        self._clock = 0

    def entry(self, key: str) -> Entry:
        """The key's entry, a new one at version 0 if there was none."""
        return self.entries.setdefault(key, Entry(version=0))

    def has(self, key: str) -> bool:
        """Whether the name is bound, or the class known."""
        known_class = class_id(key)
        if known_class is not None:
            return known_class in self.classes.by_id
        return key in self.namespace

    def tick(self) -> int:
        """A number larger than any before, also than those of an earlier kernel's."""
        self._clock = max(self._clock + 1, time.time_ns())
        return self._clock

    # --- what changed -----------------------------------------------------------------------------

    def refresh(
        self,
        keys: Iterable[str],
        *,
        touched: Collection[str] = (),
        bound: Collection[str] = (),
        limit: int | None = None,
        out: Collection[str] = (),
        hash_new: bool = False,
        scan: Scan | None = None,
    ) -> Scan:
        """Look at these keys, and give those that changed a new version.

        `scan`: what has been looked at just now; the rest is added to it.
        `touched`: the cell mentioned these. `bound`: it may have bound these.
        `limit`: a new value larger than this is not hashed, it becomes `remote`.
        `out`: these are hashed whatever their size.
        `hash_new`: names nobody shared yet are only looked at, and stay unknown.
        """
        looked = set(keys)
        scan = Scan(self.namespace, self.classes) if scan is None else scan
        for key in sorted(looked):
            if not self.has(key):
                self._lost(key)
            elif class_id(key) is None and isinstance(self.namespace[key], types.ModuleType):
                if not hash_new:
                    self._saw_module(key)
            elif key not in scan.deferred:
                known = self.entries.get(key)
                whole = key in out or (known is not None and known.kind == "value")
                scan.add([key], None if whole else limit)
        looked = scan.with_classes(looked)
        for key in [*scan.pickled, *scan.failed, *scan.deferred]:
            if key not in looked or (hash_new and key not in self.entries):
                continue
            is_new = key not in self.entries
            entry = self.entry(key)
            rebound = class_id(key) is None and self.note_binding(key)
            again = is_new or rebound or key in bound
            pickled = scan.pickled.get(key)
            large = pickled is not None and limit is not None and pickled.size > limit
            news = again or entry.kind != "value"
            away = pickled is None or (large and key not in out and news)
            if entry.kind == "remote" and not again and key not in out:
                away = True
            if away:
                changed = again or entry.kind != "remote" or key in touched
                entry.why = "" if again else entry.why
                entry.kind, entry.digest = "remote", None
            else:
                assert pickled is not None
                # Bound to another object with the same content: its aliases are others now, and
                # the notebook's own value may be something else by now.
                changed = rebound or entry.kind != "value" or entry.digest != pickled.digest
                if changed and not again and entry.kind == "value" and key not in touched:
                    changed = not scan.is_unstable(key)
                entry.kind, entry.digest = "value", pickled.digest
            if changed:
                entry.version = self.tick()
        return scan

    def regroup(self, found: frozenset[str], scan: Scan, since: int) -> None:
        """Give those keys of a group a new version that share objects with others than before.

        Equal contents do not tell `f.data = a` from `f.data = b`. A key whose former aliases were
        all bound to something else is as it was, and so are two that only such a one joined.
        `since`: the clock before this scan.
        """
        group = frozenset(found & self.entries.keys())
        joints = scan.joints(group)
        same = {key for key in group if self.entries[key].version <= since}
        for key in group:
            entry = self.entries[key]
            before, entry.group = entry.group, group
            then, entry.joints = entry.joints, None if joints is None else joints[key]
            if before is None or key not in same:
                continue
            left = [
                other
                for other in (before if then is None else then.keys()) - group
                if other in scan.pickled and self.entries[other].version <= since
            ]
            turned = (
                then is not None
                and entry.joints is not None
                and any(then.get(other) != entry.joints.get(other) for other in same & before)
            )
            if left or turned or not group <= before:
                entry.version = self.tick()

    def part(self, keys: Collection[str]) -> None:
        """These keys get other objects now: what they shared with is as it was, by itself."""
        for key, entry in self.entries.items():
            if entry.group is not None and key not in keys:
                entry.group = entry.group.difference(keys)
                if entry.joints is not None:
                    entry.joints = {k: how for k, how in entry.joints.items() if k not in keys}

    def now(self) -> int:
        """The clock: later versions are larger."""
        return self._clock

    def _lost(self, key: str) -> None:
        entry = self.entries.get(key)
        if entry is not None and entry.kind != "gone":
            entry.kind, entry.digest, entry.version = "gone", None, self.tick()
            self._bound.pop(key, None)

    def _saw_module(self, name: str) -> None:
        found = as_import(name, self.namespace[name])
        path = None if found is None else found.module
        entry = self.entry(name)
        self.note_binding(name)
        same = entry.kind == "module" and (entry.digest or "").split(" ")[1:2] == [path]
        if not same:
            entry.kind, entry.version = "module", self.tick()
            entry.digest = None if found is None else found.digest

    # --- which object a name holds ----------------------------------------------------------------

    def bind(self, name: str, value: Any) -> None:
        """Bind a name, and count it."""
        self.namespace[name] = value
        self.entry(name)
        self.note_binding(name)

    def forget(self, name: str) -> None:
        """Delete a name, and all that was known of it."""
        self.namespace.pop(name, None)
        self.entries.pop(name, None)
        self._bound.pop(name, None)

    def is_rebound(self, name: str) -> bool:
        """Whether the name holds another object than when last seen."""
        value, before = self.namespace[name], self._bound.get(name)
        if isinstance(before, weakref.ref):
            return before() is not value
        return bool(before != (id(value), type(value)))

    def note_binding(self, name: str) -> bool:
        """Count a binding if the name holds another object than when last seen."""
        if not self.is_rebound(name):
            return False
        value = self.namespace[name]
        try:
            self._bound[name] = weakref.ref(value)
        except TypeError:  # lists, dicts and numbers: an address used again goes unnoticed
            self._bound[name] = (id(value), type(value))
        self.entry(name).binding = self.tick()
        return True

    def resolve(self, ref: Ref, *, any_binding: bool = False) -> Any:
        """The object that a RemoteValue stands for. Raises `StaleRemoteValue`.

        `any_binding`: where another rank's counts.
        """
        _, name, binding = ref
        entry = self.entries.get(name)
        if entry is None or name not in self.namespace:
            raise errors.StaleRemoteValue(f"`{name}` is no longer in the session: it was deleted")
        self.note_binding(name)
        if entry.binding != binding and not any_binding:
            raise errors.StaleRemoteValue(
                f"`{name}` was bound anew in the session since this RemoteValue was made: use the "
                "present one, which the name holds after the next cell"
            )
        return self.namespace[name]
