"""The notebook's side of the shared names: what a cell needs goes, what it changed comes back.

    prepare(cell) ─► Shipment ══► kernel.namespace.RemoteSide ══► Return ─► apply(ret)

`prepare` packs what `selection` says the cell needs. `apply` puts what changed in the session into
the namespace, and leaves alone what changed here meanwhile. How "changed" is told is `shared`.

A name that the cell itself binds is no conflict: the cell ran after the local change, as the next
line of a script would. Deleting a RemoteValue here forgets the handle and leaves the session's
object.
"""

from __future__ import annotations

import contextlib
import sys
import types
import uuid
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlcloud.client.remote_value import Fetch, RemoteValue
from mlcloud.client.selection import Row, Selection, rows, select
from mlcloud.client.shared import Shared, SharedNames, is_tracked
from mlcloud.values.digests import Known
from mlcloud.values.immutable import is_immutable
from mlcloud.values.messages import (
    Group,
    Import,
    RemoteInfo,
    ResolveBlob,
    Return,
    Shipment,
    class_id,
)
from mlcloud.values.modules import LaterModule
from mlcloud.values.scan import Joints, Scan, label, unpack

__all__ = ["MAX_RETURN", "LocalSide", "Row"]

MAX_RETURN = 1 << 20
PENDING = 64  # cells in flight, remembered at most


@dataclass
class _Pending:
    """What must be remembered from `prepare` until the cell's `Return`."""

    digests: dict[str, str] = field(default_factory=dict)  # of every key looked at
    groups: dict[str, frozenset[str]] = field(default_factory=dict)
    joints: dict[str, Joints] = field(default_factory=dict)
    binds: set[str] = field(default_factory=set)  # names the cell binds or deletes,
    bound: dict[str, Any] = field(default_factory=dict)  # and the values they had before
    kept: set[str] = field(default_factory=set)  # --keep-remote
    deletes: set[str] = field(default_factory=set)  # deleted here, and so there
    temporary: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)
    result: str | None = None


@contextlib.contextmanager
def _overlaid(namespace: dict[str, Any], names: Mapping[str, Any]) -> Iterator[None]:
    """The namespace with these names too: it is one object, whose identity functions refer to."""
    nothing = object()
    before = {name: namespace.get(name, nothing) for name in names}
    namespace.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is nothing:
                namespace.pop(name, None)
            else:
                namespace[name] = value


class LocalSide:
    """The shared names of one session, inside the notebook.

    `fetch(name, binding)` is what `RemoteValue.get()` calls; `session_name` is how RemoteValues
    show where they live (else the id); `ancestors` are sessions it was forked from.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        session_id: str,
        *,
        fetch: Fetch | None = None,
        session_name: str | None = None,
        ancestors: Iterable[str] = (),
    ) -> None:
        self.namespace = namespace
        self.session_id = session_id
        self.session_name = session_name
        self.fetch = fetch
        self._shared = SharedNames(namespace, session_id, ancestors)
        self.classes = self._shared.classes
        self._sender = uuid.uuid4().hex
        self.reset()

    def reset(self) -> None:
        """Forget what is shared: the session's kernel is a new, empty one."""
        self._shared.clear()
        self._pending: dict[str, _Pending] = {}
        self._results: dict[str, Any] = {}
        self._released: list[str] = []  # results in the session whose last handle is gone
        self._epoch: str | None = None

    def rewound(self, names: Collection[str]) -> None:
        """The session went back to an earlier state, in which it had these names alone.

        With the next cell they come back; what else is here stays, and is the notebook's own.
        """
        for key in list(self._shared.entries):
            if class_id(key) is None and key not in names:
                self._shared.forget(key)
        for name in names:
            if name not in self.namespace:  # it asks for them
                self._shared.put(name, Shared(0, "remote"))
        self._shared.missed.clear()

    # --- before the cell --------------------------------------------------------------------------

    def prepare(
        self,
        cell: str,
        *,
        only_in: Collection[str] | None = None,
        out: Collection[str] | None = None,
        keep_remote: bool = False,
        max_return: int = MAX_RETURN,
        temporary: Mapping[str, Any] | None = None,
        result: str | None = None,
    ) -> Shipment:
        """What to send before `cell` runs. Nothing is sent, and nothing remembered, if it raises.

        `only_in`: exactly these ship, and win over the session's. `out`: exactly these come back,
        by value whatever their size. `keep_remote`: where both sides changed, the session's wins.
        `temporary`: names and values that the cell sees, and neither namespace has afterwards.
        `result`: such a name that the cell binds; `take_result` has its value after `apply`.
        Raises SyntaxError, `NotPicklable`, `NameConflict`, and `UsageError` for secrets.
        """
        with _overlaid(self.namespace, temporary or {}):
            return self._prepare(
                select(self._shared, cell, only_in, keep_remote, list(temporary or ())),
                only_in=only_in,
                out=out,
                keep_remote=keep_remote,
                max_return=max_return,
                result=result,
            )

    def _prepare(
        self,
        selected: Selection,
        *,
        only_in: Collection[str] | None,
        out: Collection[str] | None,
        keep_remote: bool,
        max_return: int,
        result: str | None,
    ) -> Shipment:
        if selected.errors:
            raise selected.errors[0]
        shipment = Shipment(
            groups=selected.scan.pack(selected.ship),
            imports=selected.imports,
            deletes=selected.deletes,
            # What a cell that still runs will bind is ours too, whatever the next one does to it.
            known={name: 0 for pending in self._pending.values() for name in pending.binds}
            | dict.fromkeys(selected.kept, 0)
            | {key: shared.version for key, shared in self._shared.entries.items()},
            reads=sorted(selected.mentions),
            binds=sorted(selected.names.binds | selected.names.deletes),
            optional=sorted(selected.optional),
            temporary=sorted(selected.temporary),
            released=list(self._released),
            result=result,
            force=list(only_in or ()),
            out=None if out is None else list(out),
            keep_remote=keep_remote,
            star=bool(selected.names.star_imports),
            max_return=max_return,
            epoch=self._epoch,
            sender=self._sender,
            notes=selected.notes,
            modules={
                module: label(selected.scan.value(key), key)
                for key in sorted(set().union(*selected.ship), reverse=True)
                for module in selected.scan.pickled[key].modules
            },
        )
        pending = _Pending(kept=selected.kept, deletes=set(selected.deletes))
        pending.temporary, pending.released = selected.temporary, shipment.released
        pending.result = result
        pending.binds = set(shipment.binds)
        pending.bound = {
            name: self.namespace[name] for name in shipment.binds if name in self.namespace
        }
        for group in selected.ship:
            pending.groups.update(dict.fromkeys(group, group))
            pending.joints.update(selected.scan.joints(group) or {})
        for key in selected.scan.with_classes(selected.needed).union(*selected.ship):
            if key in selected.scan.pickled:
                pending.digests[key] = selected.scan.pickled[key].digest
        pending.digests.update({entry.name: entry.digest for entry in selected.imports})
        self._pending[shipment.id] = pending
        while len(self._pending) > PENDING:
            del self._pending[next(iter(self._pending))]
        return shipment

    def dry(
        self, cell: str, *, only_in: Collection[str] | None = None, keep_remote: bool = False
    ) -> list[Row]:
        """What `prepare` would do with each name, and why; nothing is raised but SyntaxError."""
        return rows(select(self._shared, cell, only_in, keep_remote))

    # --- after the cell ---------------------------------------------------------------------------

    def apply(self, ret: Return, resolve: ResolveBlob | None = None) -> list[str]:
        """Bring the session's changes in; the names that are now different, sorted.

        What changed here since `prepare` stays as it is, and `ret.notes` says so; the next cell
        that reads it raises `NameConflict`. A Return that arrives twice changes nothing.
        """
        if self._epoch not in (None, ret.epoch):
            self._shared.clear()
        self._epoch = ret.epoch
        pending = self._pending.pop(ret.id, None) or _Pending()
        for name in pending.released:
            self._released.remove(name)
        for key, version in ret.loaded.items():
            if key in pending.temporary:
                continue
            digest = pending.digests.get(key)
            kind = "module" if digest and digest.startswith("module ") else "value"
            group_of, joints = pending.groups.get(key), pending.joints.get(key)
            tracked = kind == "value" and is_tracked(self.namespace.get(key))
            self._shared.put(key, Shared(version, kind, digest, group_of, joints, tracked))
        for name in pending.deletes - set(ret.kept):
            self._shared.forget(name)

        changed: list[str] = []
        for group in ret.groups:
            if self._may_replace(group.keys, ret, pending, group):
                left_out = [n for n in group.names if self._stays_deleted(n, ret, pending)]
                changed += self._bind_group(group, ret, pending, resolve, left_out)
        for info in ret.remote:
            if self._stays_deleted(info.name, ret, pending):
                self._shared.missed[info.name] = ret.versions[info.name]
            elif self._may_replace([info.name], ret, pending):
                self.namespace[info.name] = self._handle(info)
                self._shared.put(info.name, Shared(ret.versions[info.name], "remote"))
                changed.append(info.name)
        for entry in ret.imports:
            changed += self._bind_module(entry, ret, pending)
        for name in ret.deleted:
            if self._may_replace([name], ret, pending):
                if name in self.namespace:
                    del self.namespace[name]
                    changed.append(name)
                self._shared.forget(name)
        if pending.result is not None and pending.result in self.namespace:
            value = self._results[ret.id] = self.namespace.pop(pending.result)
            if isinstance(value, RemoteValue):
                weakref.finalize(value, self._released.append, pending.result)
            self._shared.forget(pending.result)
            changed.remove(pending.result)
        return sorted(set(changed))

    def take_result(self, shipment_id: str) -> Any:
        """What the cell bound to `result`, once. Raises LookupError if it did not return it."""
        return self._results.pop(shipment_id)

    def _may_replace(
        self, keys: Collection[str], ret: Return, pending: _Pending, group: Group | None = None
    ) -> bool:
        """Whether all these keys may take the session's value; if not, all keep theirs."""
        news = [key for key in keys if ret.versions[key] > self._shared.version(key)]
        if not news:
            return False
        scan = Scan(self.namespace, self.classes)
        blocked = [key for key in keys if not self._is_free(key, scan, ret, pending, group)]
        if not blocked:
            return True
        self._shared.missed.update({key: ret.versions[key] for key in keys})
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
        shared = self._shared.entries.get(name)
        if name in pending.bound:
            return True  # deleted while the cell ran
        asked = name in pending.binds or name in ret.kept
        return shared is not None and shared.kind == "value" and not asked

    def _is_free(
        self, key: str, scan: Scan, ret: Return, pending: _Pending, group: Group | None
    ) -> bool:
        """Whether this key's local value is one that the session knew, or that may be lost."""
        shared = self._shared.entries.get(key)
        known_class = class_id(key)
        if known_class is not None:
            if known_class not in self.classes.by_id or shared is None:
                return True
        elif key not in self.namespace:
            return True  # if it was deleted here, it stays so: see `_stays_deleted`
        else:
            value = self.namespace[key]
            if self._shared.is_handle(key, value):
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
            if shared is not None and shared.kind == "value" and scan.is_unstable(key):
                return True  # nobody can tell, and the session did change it
            if group is not None and group.digests.get(key) == now:
                return True  # both made the same change
            if (key in pending.kept or key in ret.kept) and pending.digests.get(key) == now:
                return True
        same_object = key in pending.bound and pending.bound[key] is self.namespace.get(key)
        return same_object and pending.digests.get(key, now) == now

    def _bind_group(
        self,
        group: Group,
        ret: Return,
        pending: _Pending,
        resolve: ResolveBlob | None,
        left_out: Collection[str],
    ) -> list[str]:
        """Unpickle a group and bind its names, and names that were the same objects."""
        names = [name for name in group.names if name not in left_out]
        try:
            known = Known()  # what came verified is not hashed again
            values = unpack(group, self.namespace, self.classes, blobs=resolve, known=known)
        except Exception as error:  # a package that only the session has, or its other version
            why = f"it could not be loaded here: {type(error).__name__}: {error}"
            for name in names:
                info = RemoteInfo(name, ret.bindings[name], "object", "", why=why)
                self.namespace[name] = self._handle(info)
                self._shared.put(name, Shared(ret.versions[name], "remote"))
            return names
        bound = list(names)
        for name in names:
            old = self.namespace.get(name)
            self.namespace[name] = values[name]
            if name in pending.binds:
                continue  # other names of the old object keep it
            if old is None or is_immutable(type(old)) or isinstance(old, RemoteValue):
                continue
            for alias in [key for key, value in self.namespace.items() if value is old]:
                # A shared alias that did not come along is a separate object in the session.
                if alias not in self._shared.entries and alias not in ret.versions:
                    self.namespace[alias] = values[name]
                    bound.append(alias)
        scan = Scan(self.namespace, self.classes, known)
        members = frozenset(group.keys) - set(left_out)
        scan.add(members)
        joints = scan.joints(members) or {}
        self._shared.missed.update({name: ret.versions[name] for name in left_out})
        for key in members:
            digest = scan.pickled[key].digest if key in scan.pickled else None
            shared = Shared(ret.versions[key], "value", digest, members, joints.get(key))
            shared.tracked = is_tracked(values[key])
            self._shared.put(key, shared)
        return bound

    def _bind_module(self, entry: Import, ret: Return, pending: _Pending) -> list[str]:
        """A module the cell imported: bound here, and imported when it is first used."""
        module = sys.modules.get(entry.module)
        current = self.namespace.get(entry.name)
        if module is None:
            module = LaterModule(entry.module, entry.name, self.namespace)
            if isinstance(current, LaterModule) and current.__name__ == entry.module:
                return []
        elif current is module:
            return []
        if not self._may_replace([entry.name], ret, pending):
            return []
        self.namespace[entry.name] = module
        self._shared.put(entry.name, Shared(ret.versions[entry.name], "module", entry.digest))
        return [entry.name]

    def holds(self, name: str, version: int) -> bool:
        """Whether a name is here as the session has it in this version."""
        current = self._shared.version(name) == version and not self._shared.is_newer(name)
        return current and name in self.namespace

    def _handle(self, info: RemoteInfo) -> RemoteValue:
        return RemoteValue(info, self.session_id, self.fetch, place=self.session_name)

    def open(self, group: Group, resolve: ResolveBlob | None = None) -> Any:
        """The value of a group from `RemoteSide.fetch`: a copy, not shared."""
        return unpack(group, self.namespace, self.classes, blobs=resolve)[group.names[0]]
