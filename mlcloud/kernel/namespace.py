"""The session's side of the shared names: takes a `Shipment` in, tells a `Return` what changed.

    load(shipment)       look at the names it would replace: if one changed since the notebook last
                         saw it, NameConflict and nothing done; else imports, deletions, unpickle
                         everything, then bind everything
    collect(shipment)    look at every shared name, those the cell binds, and new ones: another
                         digest is a new version; group names that share objects; return what the
                         notebook has not seen: groups up to `max_return` by value, else a preview

**Versions.** Each shared key has a version, a number from one growing clock. It moves when the
value was replaced by a shipment, or was found changed. A notebook says which versions it knows
(`Shipment.known`), so several notebooks share a session without this side knowing them.

**Bindings.** A RemoteValue names an object, not its contents: `model.fit` leaves it good, `model =
other` does not. So each name also counts how often it was bound to another object.

**Kinds.** A name of kind `value` is pickled and hashed after each cell. One of kind `remote` (too
large to return, or not picklable) is not hashed: it counts as changed when the cell mentions it,
and is pickled without hashing, or walked, to know with whom it shares objects.

The names and values found by a full scan are the simplest true form. What replaces it later is
`_refresh`: which names may have changed.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
import uuid
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from mlcloud import errors
from mlcloud.values import messages, userdata
from mlcloud.values.messages import (
    Group,
    Import,
    RemoteInfo,
    ResolveBlob,
    Return,
    Shipment,
    class_id,
)
from mlcloud.values.pickling import Ref
from mlcloud.values.preview import describe
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Scan, label, unpack

PENDING = 64  # shipments whose cell has not ended, remembered at most


@dataclass
class _Entry:
    """What this side knows of one shared key."""

    version: int
    kind: str = "value"  # value, remote, module, gone
    digest: str | None = None  # of our own dump; None: not hashed
    binding: int = 0
    source: str | None = None  # the digest of the group that was loaded last,
    sender: str = ""  # from this notebook,
    loaded: int = 0  # and the version it became


@dataclass
class _Run:
    """What must be remembered from a shipment until its cell ended."""

    before: set[str] = field(default_factory=set)
    loaded: dict[str, int] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)


@dataclass
class Dumped:
    """A whole namespace: groups in loading order, imports, and what was left out and why.

    `state` (plain data) gives `restore` the versions, so notebooks stay in step with the session.
    """

    groups: list[Group]
    imports: list[Import]
    skipped: dict[str, str]
    state: dict[str, Any]


class RemoteSide:
    """The shared names of one session, inside its kernel."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.classes = Classes()
        self.epoch = uuid.uuid4().hex
        self._entries: dict[str, _Entry] = {}
        self._bound: dict[str, Any] = {}  # name -> a weak reference to its object, or its id
        self._runs: dict[str, _Run] = {}
        self._clock = 0

    # --- before the cell --------------------------------------------------------------------------

    def load(self, shipment: Shipment, resolve: ResolveBlob | None = None) -> None:
        """Bring the notebook's values in. Raises before anything changed, or does it all.

        `NameConflict`: a name changed on both sides. `Conflict`: the shipment was made for a kernel
        that is gone; reset the sender and prepare again. `UsageError`: a package is missing here.
        """
        if shipment.epoch not in (None, self.epoch):
            raise errors.Conflict("the session's kernel was started anew: prepare the cell again")
        run = _Run()
        groups = self._accepted(shipment, run) if shipment.groups else []
        imports, deletes = self._accepted_names(shipment, run)
        modules = [(entry, _import(entry)) for entry in imports]
        refs: list[Any] = []
        loaded = [(group, self._unpack(group, resolve, refs)) for group in groups]

        for name in deletes:
            self.namespace.pop(name, None)
            self._entries.pop(name, None)
            self._bound.pop(name, None)
        for entry, module in modules:
            self._bind(entry.name, module)
            known = self._entry(entry.name)
            known.kind, known.digest = "module", entry.digest
            run.loaded[entry.name] = known.version = self._tick()
        for group, values in loaded:
            self._take(group, values, refs, run, shipment.sender)
        run.before = set(self.namespace)
        self._runs[shipment.id] = run
        while len(self._runs) > PENDING:
            del self._runs[next(iter(self._runs))]

    def _accepted(self, shipment: Shipment, run: _Run) -> list[Group]:
        """The groups to load: not those that are here already, nor those the user gave up."""
        keys = [key for group in shipment.groups for key in group.keys if self._has(key)]
        scan = self._refresh(keys, hash_new=True)
        accepted, clashes = [], []
        for group in shipment.groups:
            if all(self._holds(key, group) for key in group.keys):
                run.loaded.update({key: self._entry(key).version for key in group.keys})
                continue
            if all(self._came_from(key, group, shipment) for key in group.keys):
                # Sent before, and changed here since: the notebook only missed what came of it.
                run.loaded.update({key: self._entry(key).loaded for key in group.keys})
                continue
            newer = [key for key in group.keys if self._is_newer(key, group, shipment, scan)]
            if not newer or not set(group.keys).isdisjoint(shipment.force):
                accepted.append(group)
            elif shipment.keep_remote:
                run.kept.update(newer)
                if not any(map(class_id, newer)):  # loading would replace the class
                    accepted.append(group)
            else:
                clashes += [label(scan.value(key), key) if self._has(key) else key for key in newer]
        if clashes:
            raise messages.name_conflict(clashes)
        return accepted

    def _holds(self, key: str, group: Group) -> bool:
        """Whether what the notebook sends is what this side has, unchanged."""
        entry = self._entries.get(key)
        if entry is None or not self._has(key):
            return False
        if entry.source == group.digest and entry.loaded == entry.version:
            return True
        same = entry.kind == "value" and entry.digest == group.digests[key]
        return same and len(group.keys) == 1

    def _came_from(self, key: str, group: Group, shipment: Shipment) -> bool:
        """Whether this side's value grew out of this very group from this very notebook."""
        entry = self._entries.get(key)
        if entry is None or not self._has(key) or key in shipment.force:
            return False
        return entry.source == group.digest and entry.sender == shipment.sender

    def _is_newer(self, key: str, group: Group, shipment: Shipment, scan: Scan) -> bool:
        """Whether this side has a value that the notebook has not seen."""
        if not self._has(key):
            return False  # gone here, changed there: the change is what there is to keep
        entry = self._entries.get(key)
        if entry is not None and entry.version <= shipment.known.get(key, 0):
            return False
        mine = scan.pickled.get(key)
        if mine is None or (entry is not None and entry.kind == "remote"):
            return True
        return mine.digest != group.digests[key]

    def _accepted_names(self, shipment: Shipment, run: _Run) -> tuple[list[Import], list[str]]:
        """The imports and deletions to do: they too must not replace a value unseen."""
        clashes = []
        for entry in shipment.imports:
            mine = self.namespace.get(entry.name)
            known = self._entries.get(entry.name)
            seen = known is not None and known.version <= shipment.known.get(entry.name, 0)
            if mine is None or isinstance(mine, types.ModuleType) or seen:
                continue
            if shipment.keep_remote:
                run.kept.add(entry.name)
            elif entry.name not in shipment.force:
                clashes.append(entry.name)
        for name in shipment.deletes:
            known = self._entries.get(name)
            if name not in self.namespace or known is None:
                continue
            self._refresh([name])
            if known.version > shipment.known.get(name, 0):
                (run.kept.add if shipment.keep_remote else clashes.append)(name)
        if clashes:
            raise messages.name_conflict(clashes)
        imports = [entry for entry in shipment.imports if entry.name not in run.kept]
        return imports, [name for name in shipment.deletes if name not in run.kept]

    def _unpack(self, group: Group, resolve: ResolveBlob | None, refs: list[Any]) -> dict[str, Any]:
        def object_of(ref: Ref) -> Any:
            refs.append(self.resolve(ref))
            return refs[-1]

        try:
            return unpack(group, self.namespace, self.classes, blobs=resolve, refs=object_of)
        except ModuleNotFoundError as error:
            names = ", ".join(f"`{name}`" for name in group.names) or "a class"
            raise errors.UsageError(
                f"{names} needs the package {error.name!r}, which the session does not have: "
                "install it there (`%pip install …` in a %%remote cell), then run the cell again."
            ) from error

    def _take(
        self, group: Group, values: dict[str, Any], refs: list[Any], run: _Run, sender: str
    ) -> None:
        """Bind what arrived, and remember what it looks like from here."""
        keys = [key for key in group.keys if key not in run.kept]
        for key in keys:
            if class_id(key) is None:
                self._bind(key, values[key])
        scan = Scan(self.namespace, self.classes)
        if not refs:
            scan.add(keys)
        for key in keys:
            entry = self._entry(key)
            pickled = scan.pickled.get(key)
            remote = any(values[key] is ref for ref in refs)
            entry.kind = "remote" if remote or key in scan.failed else "value"
            entry.digest = pickled.digest if pickled else None
            entry.source, entry.sender, entry.version = group.digest, sender, self._tick()
            run.loaded[key] = entry.loaded = entry.version

    def resolve(self, ref: Ref) -> Any:
        """The object that a RemoteValue stands for."""
        _, name, binding = ref
        entry = self._entries.get(name)
        if entry is None or name not in self.namespace:
            raise errors.StaleRemoteValue(f"`{name}` is no longer in the session: it was deleted")
        self._note_binding(name)
        if entry.binding != binding:
            raise errors.StaleRemoteValue(
                f"`{name}` was bound anew in the session since this RemoteValue was made: use the "
                "present one, which the name holds after the next cell"
            )
        return self.namespace[name]

    # --- after the cell ---------------------------------------------------------------------------

    def collect(self, shipment: Shipment) -> Return:
        """What this notebook has not seen, after its cell ran (also when it failed)."""
        run = self._runs.pop(shipment.id, None) or _Run(before=set(self.namespace))
        new = {
            name
            for name in self.namespace.keys() - run.before
            if not userdata.is_hidden(name, self.namespace[name])
            and not (shipment.star and _is_importable(self.namespace[name]))
        }
        bound = {
            name
            for name in shipment.binds
            if not userdata.is_internal(name, self.namespace.get(name))
        }
        out = None if shipment.out is None else set(shipment.out)
        asked = bound | new | (out or set())
        mine = set(self._entries) | {name for name in asked if name in self.namespace}
        scan = self._refresh(
            mine, touched=shipment.reads, bound=bound, limit=shipment.max_return, out=out or ()
        )
        back = Return(shipment.id, self.epoch, loaded=run.loaded, kept=sorted(run.kept))
        seen = {**shipment.known, **run.loaded}
        wanted = asked | set(shipment.known) | set(run.loaded) | run.kept
        if out is not None:
            wanted = out
        self._report(scan, shipment, seen, wanted, out or set(), back)
        return back

    def _report(
        self,
        scan: Scan,
        shipment: Shipment,
        seen: dict[str, int],
        wanted: set[str],
        out: set[str],
        back: Return,
    ) -> None:
        """Fill `back` with the groups that have something unseen."""

        def unseen(key: str) -> bool:
            return self._entries[key].version > seen.get(key, 0)

        ready: list[set[str]] = []
        for group in scan.groups([*scan.pickled, *scan.failed]):
            names = {key for key in group & wanted if class_id(key) is None}
            if not any(map(unseen, names)):
                continue
            why = self._stays(scan, group, names, shipment.max_return, out)
            if why:
                self._describe(scan, names, why, back)
            else:
                ready.append(names)
        reached = scan.with_classes(key for names in ready for key in names)
        classes = {
            key
            for key in self._entries
            if class_id(key) and (key in reached or key in seen) and unseen(key)
        }
        if classes:
            ready.append(classes)
        merged = self._with_aliases(scan, ready)
        for packed in scan.pack(merged):
            back.groups.append(packed)
            for key in packed.keys:
                entry = self._entries[key]
                entry.kind, entry.digest = "value", scan.pickled[key].digest
                back.versions[key] = entry.version
            back.bindings.update({name: self._entries[name].binding for name in packed.names})
        for name in sorted(wanted & self._entries.keys()):
            entry = self._entries[name]
            if entry.kind == "gone" and name in seen and unseen(name):
                back.deleted.append(name)
                back.versions[name] = entry.version
            elif entry.kind == "module" and unseen(name) and entry.digest:
                _, module, *submodules = entry.digest.split(" ")
                back.imports.append(Import(name, module, submodules))
                back.versions[name] = entry.version

    @staticmethod
    def _with_aliases(scan: Scan, ready: list[set[str]]) -> list[set[str]]:
        """Classes join the names they share objects with."""
        keys = [key for names in ready for key in names]
        return [set(group) for group in scan.groups(keys)]

    def _stays(
        self, scan: Scan, group: frozenset[str], names: set[str], limit: int, out: set[str]
    ) -> str:
        """Why a group stays in the session, or "" if it comes back."""
        failed = sorted(key for key in group if key in scan.failed)
        if failed:
            return str(scan.failed[failed[0]])
        if names <= out:
            return ""
        devices = sorted({place for name in names for place in scan.pickled[name].devices})
        if devices:
            return f"it is on {devices[0]}"
        size = sum(scan.pickled[name].size for name in names)
        if size > limit:
            return f"{size:,} bytes, more than --max-return"
        return ""

    def _describe(self, scan: Scan, names: set[str], why: str, back: Return) -> None:
        for name in sorted(names):
            entry = self._entries[name]
            entry.kind, entry.digest = "remote", None
            pickled = scan.pickled.get(name)
            nbytes = pickled.size if pickled else None
            value = self.namespace[name]
            back.remote.append(describe(name, value, binding=entry.binding, nbytes=nbytes, why=why))
            back.versions[name] = entry.version

    def fetch(self, name: str, binding: int | None = None) -> Group:
        """One value by itself, whatever its size: what `RemoteValue.get()` asks for."""
        if binding is not None:
            self.resolve(("", name, binding))
        if name not in self.namespace:
            raise errors.NotFound(f"the session has no `{name}`")
        scan = Scan(self.namespace, self.classes)
        scan.add([name])
        if name in scan.failed:
            raise scan.failed[name]
        # Its classes go inside: this value is a copy, outside all sharing.
        return scan.pack([scan.with_classes([name])])[0]

    def describe(self, name: str) -> RemoteInfo:
        """The preview of a name as it is now."""
        if name not in self.namespace:
            raise errors.NotFound(f"the session has no `{name}`")
        self._note_binding(name)
        binding = self._entry(name).binding
        return describe(name, self.namespace[name], binding=binding, nbytes=None, why="")

    # --- versions ---------------------------------------------------------------------------------

    def _refresh(
        self,
        keys: Iterable[str],
        *,
        touched: Collection[str] = (),
        bound: Collection[str] = (),
        limit: int | None = None,
        out: Collection[str] = (),
        hash_new: bool = False,
    ) -> Scan:
        """Look at these keys, and give those that changed a new version.

        `limit`: a new value larger than this is not hashed, it becomes `remote`.
        `hash_new`: names nobody shared yet are only looked at, and stay unknown.
        """
        scan = Scan(self.namespace, self.classes)
        keys = set(keys)
        for key in sorted(keys):
            if not self._has(key):
                self._lost(key)
            elif isinstance(self._value(key), types.ModuleType):
                if not hash_new:
                    self._saw_module(key)
            else:
                scan.add([key])
        for key in list(scan.pickled) + list(scan.failed):
            if hash_new and key not in self._entries:
                continue
            is_new = key not in self._entries
            entry = self._entry(key)
            rebound = class_id(key) is None and self._note_binding(key)
            again = is_new or rebound or key in bound
            pickled = scan.pickled.get(key)
            large = pickled is not None and limit is not None and pickled.size > limit
            news = again or entry.kind != "value"
            away = pickled is None or (large and key not in out and news)
            if entry.kind == "remote" and not again and key not in out:
                away = True
            if away:
                changed = again or entry.kind != "remote" or key in touched
                entry.kind, entry.digest = "remote", None
            else:
                assert pickled is not None
                changed = entry.kind != "value" or entry.digest != pickled.digest
                entry.kind, entry.digest = "value", pickled.digest
            if changed:
                entry.version = self._tick()
        return scan

    def _lost(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.kind != "gone":
            entry.kind, entry.digest, entry.version = "gone", None, self._tick()
            self._bound.pop(key, None)

    def _saw_module(self, name: str) -> None:
        path = userdata.import_path(self.namespace[name])
        entry = self._entry(name)
        self._note_binding(name)
        same = entry.kind == "module" and (entry.digest or "").split(" ")[1:2] == [path]
        if not same:
            entry.kind, entry.version = "module", self._tick()
            entry.digest = Import(name, path).digest if path else None

    def _entry(self, key: str) -> _Entry:
        return self._entries.setdefault(key, _Entry(version=0))

    def _has(self, key: str) -> bool:
        known_class = class_id(key)
        if known_class is not None:
            return known_class in self.classes.by_id
        return key in self.namespace

    def _value(self, key: str) -> Any:
        known_class = class_id(key)
        return self.namespace[key] if known_class is None else self.classes.by_id[known_class]

    def _bind(self, name: str, value: Any) -> None:
        self.namespace[name] = value
        self._entry(name)
        self._note_binding(name)

    def _note_binding(self, name: str) -> bool:
        """Count a binding if the name holds another object than when last seen."""
        value, before = self.namespace[name], self._bound.get(name)
        if isinstance(before, weakref.ref):
            if before() is value:
                return False
        elif before == (id(value), type(value)):
            return False
        try:
            self._bound[name] = weakref.ref(value)
        except TypeError:  # lists, dicts and numbers: an address used again goes unnoticed
            self._bound[name] = (id(value), type(value))
        self._entry(name).binding = self._tick()
        return True

    def _tick(self) -> int:
        """A number larger than any before, also than those of an earlier kernel's."""
        self._clock = max(self._clock + 1, time.time_ns())
        return self._clock

    # --- snapshots --------------------------------------------------------------------------------

    def dump_groups(self, max_bytes: int | None = None) -> Dumped:
        """Every user name, packed by groups; larger groups and unpicklable ones are `skipped`."""
        names, imports, skipped = [], [], dict[str, str]()
        for name, value in list(self.namespace.items()):
            if userdata.is_internal(name, value):
                continue
            if isinstance(value, types.ModuleType):
                path = userdata.import_path(value)
                if path is None:
                    skipped[name] = "it is a module that cannot be imported by name"
                else:
                    imports.append(Import(name, path))
            else:
                names.append(name)
        scan = Scan(self.namespace, self.classes)
        scan.add(names)
        kept: list[set[str]] = []
        for group in scan.groups([*scan.pickled, *scan.failed]):
            failed = sorted(key for key in group if key in scan.failed)
            size = sum(scan.pickled[key].size for key in group if key in scan.pickled)
            reason = ""
            if failed:
                reason = str(scan.failed[failed[0]])
            elif max_bytes is not None and size > max_bytes:
                reason = f"{size:,} bytes, more than {max_bytes:,}"
            if reason:
                skipped.update({key: reason for key in group if class_id(key) is None})
            else:
                kept.append(set(group))
        entries = {
            key: [
                *(entry.version, entry.kind, entry.binding),
                *(entry.source, entry.sender, entry.loaded),
            ]
            for key, entry in self._entries.items()
        }
        state = {"epoch": self.epoch, "entries": entries}
        return Dumped(scan.pack(kept), imports, skipped, state)

    def restore(
        self,
        groups: Iterable[Group],
        imports: Iterable[Import],
        *,
        state: dict[str, Any] | None = None,
        resolve: ResolveBlob | None = None,
    ) -> None:
        """Fill this (fresh) namespace from a dump. With `state`, notebooks need not send again."""
        for entry in imports:
            self.namespace[entry.name] = _import(entry)
        loaded = [unpack(group, self.namespace, self.classes, blobs=resolve) for group in groups]
        for values in loaded:
            self.namespace.update({k: v for k, v in values.items() if class_id(k) is None})
        if state is None:
            return
        self.epoch = state["epoch"]
        for key, (version, kind, binding, source, sender, when) in state["entries"].items():
            if not self._has(key) and kind != "gone":
                # It was skipped: the notebook hears that it is gone.
                version, kind = self._tick(), "gone"
            self._entries[key] = _Entry(version, kind, None, binding, source, sender, when)
            if class_id(key) is None and key in self.namespace:
                self._note_binding(key)
                self._entries[key].binding = binding
        scan = Scan(self.namespace, self.classes)
        scan.add(key for key, entry in self._entries.items() if entry.kind == "value")
        for key, pickled in scan.pickled.items():
            if key in self._entries and self._entries[key].kind == "value":
                self._entries[key].digest = pickled.digest
        for name, known in self._entries.items():
            if known.kind == "module" and name in self.namespace:
                path = userdata.import_path(self.namespace[name])
                known.digest = Import(name, path).digest if path else None


def _import(entry: Import) -> types.ModuleType:
    """The module, and its submodules where they exist here."""
    try:
        importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        raise errors.UsageError(
            f"`{entry.name}` is the module {entry.module!r} in the notebook, and the session has "
            f"no package {error.name!r}: install it there (`%pip install …` in a %%remote cell), "
            "then run the cell again."
        ) from error
    for submodule in entry.submodules:
        try:
            importlib.import_module(submodule)
        except ImportError:  # only guessed from the cell's text: the cell will say what it misses
            continue
    return sys.modules[entry.module]


def _is_importable(value: Any) -> bool:
    """Whether a star import may have brought this: something that lives in another module."""
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and module != "__main__"
