"""A whole namespace as plain data, and back: what a snapshot is made of.

    dump_groups(versions) ─► Dumped ─► (kernel.snapshot: the store) ─► restore, restore_state

Every user name goes, packed by the objects it shares; modules go as imports. What cannot be
pickled, and groups above a limit, are left out with the reason. `Dumped.state` holds the versions
and bindings too: a notebook that knew the old kernel is in step with the new one, sends nothing
again, and its RemoteValues still name their objects.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mlcloud import errors
from mlcloud.kernel.imports import as_import, imported
from mlcloud.kernel.versions import Entry, Versions
from mlcloud.values import userdata
from mlcloud.values.messages import Group, Import, ResolveBlob, class_id
from mlcloud.values.scan import Scan, unpack


@dataclass
class Dumped:
    """A whole namespace: groups in loading order, imports, and what was left out and why.

    `unchanged` are saved groups that are as they were, and need not be written; one of them has
    the classes, if none of `groups` has.
    `state` (plain data) gives `restore` the versions, so notebooks stay in step with the session.
    """

    groups: list[Group]
    marks: dict[frozenset[str], str]  # of `groups`, by which the next dump knows them
    unchanged: list[frozenset[str]]
    imports: list[Import]
    skipped: dict[str, str]
    state: dict[str, Any]


def dump_groups(
    versions: Versions,
    max_bytes: int | None = None,
    *,
    scan: Scan | None = None,
    saved: Collection[frozenset[str]] = (),
    skipped_before: Mapping[str, str] = MappingProxyType({}),
    marks: Mapping[frozenset[str], str] = MappingProxyType({}),
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Dumped:
    """Every user name, packed by groups; larger values and unpicklable ones are `skipped`.

    `scan` has what may have changed since the groups `saved` were written; without one everything
    is looked at. `skipped_before`: what it left out then, which is looked at only if `scan` did.
    `marks`: of the groups written then. `left_out`: names that are made again instead, and why.
    """
    names, imports, skipped = [], [], dict[str, str]()
    for name, value in list(versions.namespace.items()):
        if userdata.is_internal(name, value):
            continue
        if isinstance(value, types.ModuleType):
            entry = as_import(name, value)
            if entry is None:
                skipped[name] = "it is a module that cannot be imported by name"
            else:
                imports.append(entry)
        else:
            names.append(name)
    if scan is None:
        scan, saved = Scan(versions.namespace, versions.classes), ()
        scan.add(names)
    else:
        saved = _unchanged(scan, saved, set(names))
        left = set(names).difference(*saved)
        known = {key: why for key, why in skipped_before.items() if key in left}
        for key in scan.pickled.keys() | scan.failed.keys():
            known.pop(key, None)
        skipped.update(known)
        names = [name for name in names if name not in known]
        scan.add(left - known.keys())
    # What was looked at may be gone since: a call's result is forgotten when it has been returned.
    here = set(names).difference(*saved)
    looked = [key for key in (*scan.pickled, *scan.failed) if key in here or class_id(key)]
    kept: list[set[str]] = []
    for group in scan.groups(looked):
        # What shares objects with a value that cannot be pickled is saved by itself all the same.
        good = set(group)
        for key in group:
            if reason := left_out.get(key) or _why_not(scan, key, max_bytes):
                good.discard(key)
                if class_id(key) is None:
                    skipped[key] = reason
        if good:
            kept.append(good)
    found, packed, unchanged = dict[frozenset[str], str](), list[set[str]](), list(saved)
    for good in kept:
        keys = frozenset(good)
        mark = scan.mark(keys)
        if mark is not None:
            found[keys] = mark
        if mark is not None and marks.get(keys) == mark:
            unchanged.append(keys)  # looked at, and as it was
        else:
            packed.append(good)
    return Dumped(scan.pack(packed), found, unchanged, imports, skipped, _state(versions))


def _unchanged(
    scan: Scan, saved: Collection[frozenset[str]], names: set[str]
) -> list[frozenset[str]]:
    """Of the saved groups those that are as they were. All classes are one group.

    If something that a group shares had changed, `tracking` would have looked at all of it.
    """
    looked = scan.pickled.keys() | scan.failed.keys()
    classes = any(map(class_id, looked))
    kept = []
    for group in saved:
        has_classes = any(map(class_id, group))
        there = {key for key in group if class_id(key) is None} <= names
        seen = looked.isdisjoint(group) if has_classes else not group <= looked
        if there and seen and not (classes and has_classes):
            kept.append(group)
        else:
            scan.add(key for key in group if key in names or class_id(key) in scan.classes.by_id)
    return kept


def _why_not(scan: Scan, key: str, max_bytes: int | None) -> str:
    """Why a key is left out, or ""."""
    failed = sorted(each for each in scan.with_classes([key]) if each in scan.failed)
    if failed:
        error = scan.failed[failed[0]]
        return error.holds or str(error)
    size = scan.pickled[key].size
    if max_bytes is not None and size > max_bytes:
        return f"{size:,} bytes, more than {max_bytes:,}"
    return ""


def _state(versions: Versions) -> dict[str, Any]:
    """The versions, without digests: those a new kernel makes from its own pickles."""
    entries = {
        key: [
            *(entry.version, entry.kind, entry.binding),
            *(entry.source, entry.sender, entry.loaded),
        ]
        for key, entry in versions.entries.items()
    }
    return {"epoch": versions.epoch, "entries": entries}


def restore(
    versions: Versions,
    groups: Iterable[Group],
    imports: Iterable[Import],
    *,
    resolve: ResolveBlob | None = None,
) -> dict[str, str]:
    """Fill a fresh namespace from a dump; `restore_state` comes after it.

    What needs a package that is not here, or whose own code fails to read it, is left out and
    returned with the reason: one value must not cost all the rest.
    """
    namespace = versions.namespace
    missing: dict[str, str] = {}
    for entry in imports:
        try:
            namespace[entry.name] = imported(entry)
        except errors.UsageError as error:
            missing[entry.name] = f"there is no package {_absent(error)!r} on this node"
    waiting, before = list(groups), -1
    while waiting and len(waiting) != before:
        # What a value's own code needs to build it may be a name that is read after it.
        before, failed = len(waiting), list[Group]()
        for group in waiting:
            try:
                values = unpack(group, namespace, versions.classes, blobs=resolve)
            except ModuleNotFoundError as error:
                why = f"there is no package {error.name!r} on this node"
            except (errors.MLCloudError, MemoryError):  # the store's, or a node too small
                raise
            except Exception as error:
                why = f"it cannot be read again ({type(error).__name__}: {error})"
            else:
                namespace.update({k: v for k, v in values.items() if class_id(k) is None})
                for name in group.names:
                    missing.pop(name, None)
                continue
            missing.update(dict.fromkeys(group.names, why))
            failed.append(group)
        waiting = failed
    return missing


def _absent(error: BaseException) -> str | None:
    """The module that an import did not find."""
    return getattr(error.__cause__, "name", None)


def restore_state(versions: Versions, state: dict[str, Any]) -> None:
    """Give the names of a filled namespace their versions: notebooks need not send again."""
    versions.epoch = state["epoch"]
    namespace, entries = versions.namespace, versions.entries
    for key, (version, kind, binding, source, sender, when) in state["entries"].items():
        if not versions.has(key) and kind != "gone":
            # It was skipped: the notebook hears that it is gone.
            version, kind = versions.tick(), "gone"
        entries[key] = Entry(version, kind, None, binding, source, sender, when)
        if class_id(key) is None and key in namespace:
            versions.note_binding(key)
            entries[key].binding = binding
    scan = Scan(namespace, versions.classes)
    scan.add(key for key, entry in entries.items() if entry.kind == "value")
    for key, pickled in scan.pickled.items():
        if key in entries and entries[key].kind == "value":
            entries[key].digest = pickled.digest
    for name, entry in entries.items():
        if entry.kind == "module" and name in namespace:
            module = as_import(name, namespace[name])
            entry.digest = None if module is None else module.digest
