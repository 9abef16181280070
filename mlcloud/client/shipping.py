"""The notebook's side of the shared names: what a cell needs goes, what it changed comes back.

    prepare(cell) ─► Shipment ══► kernel.namespace.RemoteSide ══► Return ─► apply(ret)

`prepare` asks `names.analyze` what the cell reads, adds what functions among those values use, and
pickles them. A name ships if it changed here since both sides were last equal, together with every
name that shares an object with it. `apply` puts what changed in the session into the namespace, and
leaves alone what changed here meanwhile.

For each shared key this side remembers the digest of its *own* pickle, and the version of the
session's value, at the moment both were equal:

    digest now == digest then, version newer   changed there        it comes back
    digest differs,            version same    changed here         it ships, when a cell reads it
    digest differs,            version newer   changed on both      NameConflict before the cell

"Version newer" is seen here when a `Return` could not be applied (then `_seen` holds it), else by
the session when the shipment arrives. A name that the cell itself binds is no conflict: the cell
ran after the local change, as the next line of a script would.

Bounds. Names that were never shared are searched for shared objects too, but only `REACH` objects
deep each and `REACH_ALL` together; beyond that, an alias is kept only if it *is* the same object.
Deleting a RemoteValue here forgets the handle and leaves the session's object.
"""

from __future__ import annotations

import sys
import types
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from mlcloud import errors
from mlcloud.client.names import CellNames, analyze
from mlcloud.client.remote_value import Fetch, RemoteValue
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
from mlcloud.values.pickling import is_immutable
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Scan, label, reach, unpack
from mlcloud.values.uses import attributes_used, globals_used

MAX_RETURN = 1 << 20
REACH = 1_000
REACH_ALL = 20_000
PENDING = 64  # cells in flight, remembered at most


@dataclass
class _Shared:
    """One key as it was when both sides were equal."""

    version: int
    kind: str  # value, remote, module
    digest: str | None = None  # of this side's own dump
    group: frozenset[str] | None = None  # names it shared objects with; None: not looked at yet


@dataclass
class _Pending:
    """What must be remembered from `prepare` until the cell's `Return`."""

    digests: dict[str, str] = field(default_factory=dict)  # of every key looked at
    groups: dict[str, frozenset[str]] = field(default_factory=dict)
    binds: set[str] = field(default_factory=set)  # names the cell binds or deletes,
    bound: dict[str, Any] = field(default_factory=dict)  # and the values they had before
    kept: set[str] = field(default_factory=set)  # --keep-remote
    deletes: set[str] = field(default_factory=set)  # deleted here, and so there


@dataclass
class Row:
    """One line of `--dry`."""

    name: str
    type: str
    bytes: int | None
    action: str
    why: str


@dataclass
class _Plan:
    """What `prepare` would do. `errors`: why it would not."""

    names: CellNames
    scan: Scan
    needed: list[str] = field(default_factory=list)
    ship: list[frozenset[str]] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    mentions: set[str] = field(default_factory=set)
    modules: dict[str, str] = field(default_factory=dict)  # name -> import path
    errors: list[errors.MLCloudError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


class LocalSide:
    """The shared names of one session, inside the notebook.

    `fetch(name, binding)` is what `RemoteValue.get()` calls.
    """

    def __init__(
        self, namespace: dict[str, Any], session_id: str, *, fetch: Fetch | None = None
    ) -> None:
        self.namespace = namespace
        self.session_id = session_id
        self.fetch = fetch
        self.classes = Classes()
        self._sender = uuid.uuid4().hex
        self.reset()

    def reset(self) -> None:
        """Forget what is shared: the session's kernel is a new, empty one."""
        self._shared: dict[str, _Shared] = {}
        self._seen: dict[str, int] = {}  # versions that could not be applied here
        self._pending: dict[str, _Pending] = {}
        self._epoch: str | None = None

    # --- before the cell --------------------------------------------------------------------------

    def prepare(
        self,
        cell: str,
        *,
        only_in: Collection[str] | None = None,
        out: Collection[str] | None = None,
        keep_remote: bool = False,
        max_return: int = MAX_RETURN,
    ) -> Shipment:
        """What to send before `cell` runs. Nothing is sent, and nothing remembered, if it raises.

        `only_in`: exactly these ship, and win over the session's. `out`: exactly these come back,
        by value whatever their size. `keep_remote`: where both sides changed, the session's wins.
        Raises SyntaxError, `NotPicklable`, `NameConflict`, and `UsageError` for secrets.
        """
        plan = self._plan(cell, only_in, keep_remote)
        if plan.errors:
            raise plan.errors[0]
        shipment = Shipment(
            groups=plan.scan.pack(plan.ship),
            imports=plan.imports,
            deletes=plan.deletes,
            known=dict.fromkeys(plan.kept, 0)
            | {key: shared.version for key, shared in self._shared.items()},
            reads=sorted(plan.mentions),
            binds=sorted(plan.names.binds | plan.names.deletes),
            force=list(only_in or ()),
            out=None if out is None else list(out),
            keep_remote=keep_remote,
            star=bool(plan.names.star_imports),
            max_return=max_return,
            epoch=self._epoch,
            sender=self._sender,
            notes=plan.notes,
        )
        pending = _Pending(kept=plan.kept, deletes=set(plan.deletes))
        pending.binds = set(shipment.binds)
        pending.bound = {
            name: self.namespace[name] for name in shipment.binds if name in self.namespace
        }
        for group in plan.ship:
            pending.groups.update(dict.fromkeys(group, group))
        for key in plan.scan.with_classes(plan.needed).union(*plan.ship):
            if key in plan.scan.pickled:
                pending.digests[key] = plan.scan.pickled[key].digest
        pending.digests.update({entry.name: entry.digest for entry in plan.imports})
        self._pending[shipment.id] = pending
        while len(self._pending) > PENDING:
            del self._pending[next(iter(self._pending))]
        return shipment

    def dry(
        self, cell: str, *, only_in: Collection[str] | None = None, keep_remote: bool = False
    ) -> list[Row]:
        """What `prepare` would do with each name, and why; nothing is raised but SyntaxError."""
        plan = self._plan(cell, only_in, keep_remote)
        shipped = {key: group for group in plan.ship for key in group}
        for key, group in shipped.items():
            if class_id(key) is None:
                others = sorted(name for name in group if class_id(name) is None and name != key)
                why = "changed here" if key in self._shared else "not in the session yet"
                why += f"; shares objects with {', '.join(others)}" if others else ""
                plan.rows.append(self._row(key, plan, "ship", why))
        for name in plan.needed:
            if name in plan.kept:
                plan.rows.append(self._row(name, plan, "keep remote", "changed on both sides"))
            elif name in plan.scan.failed:
                plan.rows.append(self._row(name, plan, "refused", str(plan.scan.failed[name])))
            elif name not in shipped:
                plan.rows.append(self._row(name, plan, "nothing", "the session has it, unchanged"))
        for name in plan.modules:
            changed = any(entry.name == name for entry in plan.imports)
            why = f"import {plan.modules[name]}" if changed else "the session has it"
            plan.rows.append(self._row(name, plan, "import" if changed else "nothing", why))
        plan.rows += [Row(name, "", None, "delete", "deleted here") for name in plan.deletes]
        for error in plan.errors:
            if not isinstance(error, errors.NotPicklable):
                plan.rows.append(Row("", "", None, "refused", str(error)))
        return sorted(plan.rows, key=lambda row: row.name)

    def _row(self, name: str, plan: _Plan, action: str, why: str) -> Row:
        pickled = plan.scan.pickled.get(name)
        kind = type(self.namespace.get(name)).__qualname__
        return Row(name, kind, pickled.size if pickled else None, action, why)

    def _plan(self, cell: str, only_in: Collection[str] | None, keep_remote: bool) -> _Plan:
        names = analyze(cell, self.namespace)
        plan = _Plan(names, Scan(self.namespace, self.classes), mentions=set(names.mentions))
        forced = set(only_in or ())
        if missing := sorted(forced - self.namespace.keys()):
            plan.errors.append(errors.UsageError(f"--in: there is no {', '.join(missing)} here"))
        self._need(plan, sorted(names.reads if only_in is None else forced), only_in is None)
        self._import(plan)
        if plan.needed:
            self._add_aliases(plan)
            self._choose(plan, expand=only_in is None)
            self._check(plan, forced, keep_remote)
        return plan

    def _need(self, plan: _Plan, names: Iterable[str], expand: bool) -> None:
        """Look at these names and, for functions and classes in them, at the names those use."""
        waiting, looked = list(names), set(plan.needed)
        while waiting:
            name = waiting.pop()
            if name in looked:
                continue
            looked.add(name)
            plan.mentions.add(name)
            shared = self._shared.get(name)
            if name not in self.namespace:
                if shared is not None and shared.kind != "remote" and name not in plan.deletes:
                    plan.deletes.append(name)
                continue
            value = self.namespace[name]
            if userdata.is_internal(name, value):
                continue
            if isinstance(value, types.ModuleType):
                path = userdata.import_path(value)
                if path is not None:
                    plan.modules[name] = path
                    continue
            elif self._is_handle(name, value):
                plan.rows.append(Row(name, value.type, None, "nothing", "it is in the session"))
                continue
            plan.needed.append(name)
            plan.scan.add([name])
            if expand:
                waiting += self._used_by(plan, [name])

    def _used_by(self, plan: _Plan, keys: Iterable[str]) -> list[str]:
        """The names of this namespace, or once shared, that functions in these values use."""
        used: set[str] = set()
        for key in plan.scan.with_classes(keys):
            if key in plan.scan.pickled:
                for code in plan.scan.pickled[key].codes:
                    used |= globals_used(code)
        return [name for name in used if name in self.namespace]

    def _import(self, plan: _Plan) -> None:
        """The modules among the needed names, with the submodules the code seems to use."""
        if not plan.modules:
            return
        attributes = set(plan.names.attributes)
        for pickled in plan.scan.pickled.values():
            for code in pickled.codes:
                attributes |= attributes_used(code)
        for name, path in plan.modules.items():
            entry = Import(name, path, _submodules(path, attributes))
            shared = self._shared.get(name)
            if shared is None or shared.kind != "module" or shared.digest != entry.digest:
                plan.imports.append(entry)

    def _add_aliases(self, plan: _Plan) -> None:
        """Look at the other names that may share objects with the needed ones."""
        scan = plan.scan
        objects = set().union(*(scan.ids(key) for key in scan.pickled))
        if not objects:
            return
        scan.add(
            name
            for name, shared in self._shared.items()
            if shared.kind == "value" and class_id(name) is None and name in self.namespace
        )
        budget = REACH_ALL
        for name, value in list(self.namespace.items()):
            if name in scan.pickled or name in scan.failed or userdata.is_internal(name, value):
                continue
            if isinstance(value, (types.ModuleType, RemoteValue)) or is_immutable(type(value)):
                continue
            if type(value).__module__.startswith("mlcloud.client."):
                continue  # a Session knows the whole namespace, and means none of it
            found = reach(value, min(REACH, max(budget, 1)))
            budget -= len(found)
            if not objects.isdisjoint(found):
                scan.add([name])
                if name in scan.failed:
                    plan.notes.append(
                        f"`{name}` shares objects with what the cell uses, and cannot travel: "
                        "after a change in the session it keeps the objects it has now"
                    )

    def _choose(self, plan: _Plan, expand: bool) -> None:
        """The groups to ship: those the cell needs, where something changed."""
        scan = plan.scan
        while True:
            needed = scan.with_classes(plan.needed).union(*map(scan.with_classes, plan.ship))
            groups = scan.groups(scan.pickled)
            plan.ship = [group for group in groups if group & needed and self._changed(group, scan)]
            members = set().union(*plan.ship)
            if expand:
                used = self._used_by(plan, members)
                before = len(plan.needed)
                self._need(plan, used, expand)
                if len(plan.needed) > before:
                    continue
            if scan.with_classes(members) <= needed:
                return

    def _changed(self, group: frozenset[str], scan: Scan) -> bool:
        """Whether the session does not have this group as it is now."""
        for key in group:
            shared = self._shared.get(key)
            if shared is None or shared.kind != "value":
                return True
            if shared.digest != scan.pickled[key].digest:
                return True
            if shared.group is not None and not group <= shared.group:
                return True  # two names that were apart now share an object
        for key in group:
            self._shared[key].group = group
        return False

    def _check(self, plan: _Plan, forced: set[str], keep_remote: bool) -> None:
        """Everything that stands against shipping."""
        plan.errors += [plan.scan.failed[name] for name in plan.needed if name in plan.scan.failed]
        going = []
        for group in plan.ship:
            clash = [key for key in group if self._is_newer(key)]
            if clash and not (group & forced):
                if keep_remote:
                    plan.kept.update(clash)
                    going.append(group.difference(clash))
                    continue
                names = [label(plan.scan.value(key), key) for key in clash]
                plan.errors.append(messages.name_conflict(names))
            going.append(group)
        plan.ship = [group for group in going if group]
        for name in sorted(set().union(*plan.ship)):
            if class_id(name):
                continue
            if name not in forced and userdata.looks_secret(name, self.namespace[name]):
                plan.errors.append(
                    errors.UsageError(
                        f"`{name}` looks like a secret, and the cell would send it to the session. "
                        f"If that is meant, name it: `--in {name}` (with all else the cell needs)."
                    )
                )
            for session, remote, _ in plan.scan.pickled[name].refs:
                if session != self.session_id:
                    plan.errors.append(
                        errors.NotPicklable(
                            f"`{name}` holds `{remote}`, which lives in another session "
                            f"({session}): fetch it with `.get()` first"
                        )
                    )

    def _is_newer(self, key: str) -> bool:
        """Whether the session has a value that could not be applied here."""
        shared = self._shared.get(key)
        return self._seen.get(key, 0) > (shared.version if shared else 0)

    def _is_handle(self, name: str, value: Any) -> bool:
        """Whether the name holds the RemoteValue of this very name."""
        return type(value) is RemoteValue and value.__mlcloud_ref__[:2] == (self.session_id, name)

    # --- after the cell ---------------------------------------------------------------------------

    def apply(self, ret: Return, resolve: ResolveBlob | None = None) -> list[str]:
        """Bring the session's changes in; the names that are now different, sorted.

        What changed here since `prepare` stays as it is, and `ret.notes` says so; the next cell
        that reads it raises `NameConflict`. A Return that arrives twice changes nothing.
        """
        if self._epoch not in (None, ret.epoch):
            self._shared.clear()
            self._seen.clear()
        self._epoch = ret.epoch
        pending = self._pending.pop(ret.id, None) or _Pending()
        for key, version in ret.loaded.items():
            digest = pending.digests.get(key)
            kind = "module" if digest and digest.startswith("module ") else "value"
            self._shared[key] = _Shared(version, kind, digest, pending.groups.get(key))
        for name in pending.deletes - set(ret.kept):
            self._shared.pop(name, None)

        changed: list[str] = []
        for group in ret.groups:
            if self._may_replace(group.keys, ret, pending, group):
                left_out = [n for n in group.names if self._stays_deleted(n, ret, pending)]
                changed += self._bind_group(group, ret, resolve, left_out)
        for info in ret.remote:
            if self._stays_deleted(info.name, ret, pending):
                self._seen[info.name] = ret.versions[info.name]
            elif self._may_replace([info.name], ret, pending):
                self._bind(info.name, RemoteValue(info, self.session_id, self.fetch))
                self._shared[info.name] = _Shared(ret.versions[info.name], "remote")
                changed.append(info.name)
        for entry in ret.imports:
            changed += self._bind_module(entry, ret, pending)
        for name in ret.deleted:
            if self._may_replace([name], ret, pending):
                if name in self.namespace:
                    del self.namespace[name]
                    changed.append(name)
                self._shared.pop(name, None)
        return sorted(set(changed))

    def _may_replace(
        self, keys: Collection[str], ret: Return, pending: _Pending, group: Group | None = None
    ) -> bool:
        """Whether all these keys may take the session's value; if not, all keep theirs."""
        news = [key for key in keys if ret.versions[key] > self._version(key)]
        if not news:
            return False
        scan = Scan(self.namespace, self.classes)
        blocked = [key for key in keys if not self._is_free(key, scan, ret, pending, group)]
        if not blocked:
            return True
        self._seen.update({key: ret.versions[key] for key in keys})
        names = ", ".join(sorted(f"`{key}`" for key in keys if class_id(key) is None))
        ret.notes.append(
            f"{names} changed here while the session changed it too: the notebook's value is kept, "
            "and the next cell that reads it will ask which one to use"
        )
        return False

    def _stays_deleted(self, name: str, ret: Return, pending: _Pending) -> bool:
        """Whether the user deleted this name, and neither the cell nor they asked for it since."""
        if name in self.namespace:
            return False
        shared = self._shared.get(name)
        if name in pending.bound:
            return True  # deleted while the cell ran
        asked = name in pending.binds or name in ret.kept
        return shared is not None and shared.kind == "value" and not asked

    def _version(self, key: str) -> int:
        shared = self._shared.get(key)
        return shared.version if shared else 0

    def _is_free(
        self, key: str, scan: Scan, ret: Return, pending: _Pending, group: Group | None
    ) -> bool:
        """Whether this key's local value is one that the session knew, or that may be lost."""
        shared = self._shared.get(key)
        known_class = class_id(key)
        if known_class is not None:
            if known_class not in self.classes.by_id or shared is None:
                return True
        elif key not in self.namespace:
            return True  # if it was deleted here, it stays so: see `_stays_deleted`
        else:
            value = self.namespace[key]
            if self._is_handle(key, value):
                return True
            if isinstance(value, types.ModuleType):
                return (shared is not None and shared.kind == "module") or (
                    pending.bound.get(key) is value
                )
        scan.add([key])
        pickled = scan.pickled.get(key)
        now = pickled.digest if pickled else None
        if now is not None:
            if shared is not None and shared.kind == "value" and shared.digest == now:
                return True
            if group is not None and group.digests.get(key) == now:
                return True  # both made the same change
            if (key in pending.kept or key in ret.kept) and pending.digests.get(key) == now:
                return True
        same_object = key in pending.bound and pending.bound[key] is self.namespace.get(key)
        return same_object and pending.digests.get(key, now) == now

    def _bind_group(
        self, group: Group, ret: Return, resolve: ResolveBlob | None, left_out: Collection[str]
    ) -> list[str]:
        """Unpickle a group and bind its names, and names that were the same objects."""
        names = [name for name in group.names if name not in left_out]
        try:
            values = unpack(group, self.namespace, self.classes, blobs=resolve)
        except Exception as error:  # a package that only the session has, or its other version
            why = f"it could not be loaded here: {type(error).__name__}: {error}"
            for name in names:
                info = RemoteInfo(name, ret.bindings[name], "object", "", why=why)
                self._bind(name, RemoteValue(info, self.session_id, self.fetch))
                self._shared[name] = _Shared(ret.versions[name], "remote")
            return names
        bound = list(names)
        for name in names:
            old = self.namespace.get(name)
            self._bind(name, values[name])
            if old is None or is_immutable(type(old)) or isinstance(old, RemoteValue):
                continue
            for alias in [key for key, value in self.namespace.items() if value is old]:
                # A shared alias that did not come along is a separate object in the session.
                if alias not in self._shared and alias not in ret.versions:
                    self._bind(alias, values[name])
                    bound.append(alias)
        scan = Scan(self.namespace, self.classes)
        members = frozenset(group.keys) - set(left_out)
        scan.add(members)
        self._seen.update({name: ret.versions[name] for name in left_out})
        for key in members:
            digest = scan.pickled[key].digest if key in scan.pickled else None
            self._shared[key] = _Shared(ret.versions[key], "value", digest, members)
        return bound

    def _bind_module(self, entry: Import, ret: Return, pending: _Pending) -> list[str]:
        """A module the cell imported: bound here if importing it costs nothing."""
        module = sys.modules.get(entry.module)
        if module is None or self.namespace.get(entry.name) is module:
            return []
        if not self._may_replace([entry.name], ret, pending):
            return []
        self._bind(entry.name, module)
        self._shared[entry.name] = _Shared(ret.versions[entry.name], "module", entry.digest)
        return [entry.name]

    def _bind(self, name: str, value: Any) -> None:
        self.namespace[name] = value

    def open(self, group: Group, resolve: ResolveBlob | None = None) -> Any:
        """The value of a group from `RemoteSide.fetch`: a copy, not shared."""
        return unpack(group, self.namespace, self.classes, blobs=resolve)[group.names[0]]


def _submodules(path: str, attributes: Collection[str]) -> list[str]:
    """Submodules that are loaded here and that the code seems to name (`scipy.sparse`)."""
    prefix = f"{path}."
    return sorted(
        name
        for name in list(sys.modules)
        if name.startswith(prefix) and _covered(name[len(prefix) :], attributes)
    )


def _covered(rest: str, attributes: Collection[str]) -> bool:
    """Whether every part of a dotted name occurs in the code."""
    return all(part in attributes for part in rest.split("."))
