"""What a cell would ship, and why: worked out before anything is sent.

    names.analyze(cell) ─► _need         the names it reads, and those that functions in them use
                        ─► _import       the modules among them
                        ─► _add_aliases  other names that may share objects with them
                        ─► _choose       of all these, the groups where something changed
                        ─► _check        conflicts, secrets, values that cannot travel
                        ─► Selection ─► LocalSide.prepare sends it, or raises its first error
                               └─► rows(selected): one line a name, for `--dry`

A name ships if it changed here since both sides were last equal (`shared`), together with every
name that shares an object with it.

Bounds. Names that were never shared are searched for shared objects too, but only `REACH` objects
deep each and `REACH_ALL` together; beyond that, an alias is kept only if it *is* the same object.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mlcloud import errors
from mlcloud.client.dynamic import RUNS_TEXT
from mlcloud.client.names import CellNames, analyze
from mlcloud.client.remote_value import RemoteValue
from mlcloud.client.shared import SharedNames
from mlcloud.values import messages, userdata
from mlcloud.values.immutable import is_immutable
from mlcloud.values.messages import Import, class_id, names_of
from mlcloud.values.scan import Scan, label, reach
from mlcloud.values.uses import attributes_used, globals_used

REACH = 1_000
REACH_ALL = 20_000
_HOLDERS = (type, types.FunctionType, types.MethodType, tuple, frozenset)  # of what can change


@dataclass
class Row:
    """One line of `--dry`."""

    name: str
    type: str
    bytes: int | None
    action: str
    why: str
    since: str = ""  # when both sides were last equal; `new` if they never were
    source: str = ""  # where its newest value is


@dataclass
class Selection:
    """What `prepare` would do. `errors`: why it would not."""

    shared: SharedNames
    names: CellNames
    scan: Scan
    temporary: set[str] = field(default_factory=set)
    needed: list[str] = field(default_factory=list)
    optional: set[str] = field(default_factory=set)  # of these: not read, only kept in step
    ship: list[frozenset[str]] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    mentions: set[str] = field(default_factory=set)
    modules: dict[str, str] = field(default_factory=dict)  # name -> import path
    errors: list[errors.MLCloudError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # of names that need no further look
    users: dict[str, str] = field(default_factory=dict)  # name -> the function that uses it


def select(
    shared: SharedNames,
    cell: str,
    only_in: Collection[str] | None,
    keep_remote: bool,
    temporary: Collection[str] = (),
) -> Selection:
    """What one cell would ship; the options are those of `LocalSide.prepare`. Raises SyntaxError.

    `temporary` are names that exist for this cell alone, and are in the namespace already.
    """
    names = analyze(cell, shared.namespace)
    scan = Scan(shared.namespace, shared.classes)
    selected = Selection(shared, names, scan, set(temporary), mentions=set(names.mentions))
    forced = set(only_in or ())
    if missing := sorted(forced - shared.namespace.keys()):
        selected.errors.append(errors.UsageError(f"--in: there is no {', '.join(missing)} here"))
    _need(selected, sorted(names.reads if only_in is None else forced), only_in is None)
    if only_in is None:
        _need_bound(selected)
    _import(selected)
    if only_in is None:
        _note_hidden_code(selected)
    if selected.needed:
        _add_aliases(selected)
        _need_former_aliases(selected)
        _choose(selected, expand=only_in is None)
        _check(selected, forced, keep_remote)
    return selected


def rows(selected: Selection) -> list[Row]:
    """What would be done with each name, and why, sorted by name."""
    found = list(selected.rows)
    shipped = {key: group for group in selected.ship for key in group}
    for key, group in shipped.items():
        if refusals := _refusals(selected, key):
            if class_id(key) is None:
                found.append(_row(selected, key, "refused", str(refusals[0])))
        elif class_id(key) is None:
            others = sorted(name for name in group if class_id(name) is None and name != key)
            why = "changed here" if key in selected.shared.entries else "not in the session yet"
            why += f"; shares objects with {', '.join(others)}" if others else ""
            found.append(_row(selected, key, "ship", why))
    for name in selected.needed:
        if name in selected.kept:
            found.append(_row(selected, name, "keep remote", "changed on both sides"))
        elif name in selected.scan.failed:
            found.append(_row(selected, name, "refused", str(selected.scan.failed[name])))
        elif name not in shipped:
            found.append(_row(selected, name, "nothing", "the session has it, unchanged"))
    for name in selected.modules:
        changed = any(entry.name == name for entry in selected.imports)
        why = f"import {selected.modules[name]}" if changed else "the session has it"
        found.append(_row(selected, name, "import" if changed else "nothing", why))
    found += [_row(selected, name, "delete", "deleted here") for name in selected.deletes]
    for error in selected.errors:
        if not isinstance(error, errors.NotPicklable):
            found.append(Row("", "", None, "refused", str(error)))
    return sorted(found, key=lambda row: row.name)


def _row(selected: Selection, name: str, action: str, why: str) -> Row:
    pickled, shared = selected.scan.pickled.get(name), selected.shared.entries.get(name)
    kind = ""
    if name in selected.shared.namespace:
        kind = type(selected.shared.namespace[name]).__qualname__
    source = "session" if action == "keep remote" else "notebook"
    if name in selected.modules:
        source = selected.modules[name]
    elif name in selected.users and name not in selected.names.reads:
        source += f", used by {selected.users[name]}"
    since = "new" if shared is None else shared.since
    return Row(name, kind, pickled.size if pickled else None, action, why, since, source)


# --- the steps ------------------------------------------------------------------------------------


def _need(selected: Selection, names: Iterable[str], expand: bool) -> None:
    """Look at these names and, for functions and classes in them, at the names those use."""
    namespace = selected.shared.namespace
    waiting, looked = list(names), set(selected.needed)
    while waiting:
        name = waiting.pop()
        if name in looked:
            continue
        looked.add(name)
        selected.mentions.add(name)
        if name not in namespace:
            shared = selected.shared.entries.get(name)
            if shared is not None and shared.kind != "remote" and name not in selected.deletes:
                selected.deletes.append(name)
            continue
        value = namespace[name]
        if userdata.is_internal(name, value) and name not in selected.temporary:
            continue
        if isinstance(value, types.ModuleType):
            path = userdata.import_path(value)
            if path is not None:
                selected.modules[name] = path
                continue
        elif selected.shared.is_handle(name, value):
            entry = selected.shared.entries.get(name)
            since = "" if entry is None else entry.since
            selected.rows.append(
                Row(name, value.type, value.nbytes, "nothing", "it is there", since, "session")
            )
            continue
        selected.needed.append(name)
        selected.scan.add([name])
        if expand:
            used = _used_by(selected, [name])
            for other in used:
                selected.users.setdefault(other, name)
            waiting += used


def _need_bound(selected: Selection) -> None:
    """Names that the cell may bind, where the session could not tell that it did.

    The session sees a name bound anew by its object. `k = 7` over a 7 is no other object, so if `k`
    changed here meanwhile, the session gets that first: what it has after the cell is then news.
    """
    required, entries = set(selected.needed), selected.shared.entries
    for name in sorted(selected.names.binds - required):
        shared = entries.get(name)
        if shared is not None and not shared.tracked and not selected.shared.is_newer(name):
            _need(selected, [name], expand=False)
    gone = selected.names.binds & set(selected.deletes)
    selected.optional = (set(selected.needed) - required | gone) - selected.names.reads


def _used_by(selected: Selection, keys: Iterable[str]) -> list[str]:
    """The names of this namespace that functions in these values use."""
    used: set[str] = set()
    for key in selected.scan.with_classes(keys):
        if key in selected.scan.pickled:
            used |= selected.scan.pickled[key].annotated
            for code in selected.scan.pickled[key].codes:
                used |= globals_used(code)
    namespace, entries = selected.shared.namespace, selected.shared.entries
    return [name for name in used if name in namespace or name in entries]


def _import(selected: Selection) -> None:
    """The modules among the needed names, with the submodules the code seems to use."""
    if not selected.modules:
        return
    attributes = set(selected.names.attributes)
    for pickled in selected.scan.pickled.values():
        for code in pickled.codes:
            attributes |= attributes_used(code)
    for name, path in selected.modules.items():
        entry = Import(name, path, _submodules(path, attributes))
        shared = selected.shared.entries.get(name)
        if shared is None or shared.kind != "module" or shared.digest != entry.digest:
            selected.imports.append(entry)


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


def _note_hidden_code(selected: Selection) -> None:
    """Say where code runs that is in no text we see: names used only there are not sent."""
    words = set(selected.names.dynamic)
    for pickled in selected.scan.pickled.values():
        for code in pickled.codes:
            found = sorted(RUNS_TEXT & globals_used(code))
            words |= {f"{word}(…) in `{code.co_name}`" for word in found}
    if words:
        selected.notes.append(
            f"{', '.join(sorted(words))} may use names that the cell's text does not show, and "
            "those are not sent: mention them in the cell, or list all it needs with `--in`"
        )


def _add_aliases(selected: Selection) -> None:
    """Look at the other names that may share objects with the needed ones."""
    scan, namespace = selected.scan, selected.shared.namespace
    if not any(scan.ids(key) for key in scan.pickled):
        return
    scan.add(
        name
        for name, shared in selected.shared.entries.items()
        if shared.kind == "value" and class_id(name) is None and name in namespace
    )
    budget = REACH_ALL
    reached: dict[str, set[int]] = {}
    for name, value in list(namespace.items()):
        if name in scan.pickled or name in scan.failed or userdata.is_internal(name, value):
            continue
        if isinstance(value, (types.ModuleType, RemoteValue)):
            continue
        if is_immutable(type(value)) and not isinstance(value, _HOLDERS):
            continue
        if type(value).__module__.startswith("mlcloud.client."):
            continue  # a Session knows the whole namespace, and means none of it
        reached[name] = reach(value, min(REACH, max(budget, 1)))
        budget -= len(reached[name])
    objects = set().union(*(scan.ids(key) for key in scan.pickled))
    while near := [name for name, found in reached.items() if not objects.isdisjoint(found)]:
        for name in near:
            del reached[name]
            scan.add([name])
            if name in scan.pickled:
                objects |= scan.pickled[name].ids  # it may share others with one more name
            else:
                selected.notes.append(
                    f"`{name}` shares objects with what the cell uses, and cannot travel: "
                    "after a change in the session it keeps the objects it has now"
                )


def _need_former_aliases(selected: Selection) -> None:
    """Names that shared objects with the needed ones when both sides were equal.

    In the session they still do. One that holds something else here by now goes along, else the
    session would return a change of the needed name as a change of both.
    """
    entries, before = selected.shared.entries, set(selected.needed)
    for key in selected.scan.with_classes(selected.needed):
        shared = entries.get(key)
        if shared is not None and shared.group is not None:
            _need(selected, sorted(filter(entries.get, names_of(shared.group))), expand=False)
    selected.optional |= set(selected.needed) - before


def _choose(selected: Selection, expand: bool) -> None:
    """The groups to ship: those the cell needs, where something changed."""
    scan, changed = selected.scan, selected.shared.changed
    while True:
        needed = scan.with_classes(selected.needed).union(*map(scan.with_classes, selected.ship))
        groups = scan.groups(scan.pickled)
        selected.ship = [group for group in groups if group & needed and changed(group, scan)]
        members = set().union(*selected.ship)
        if expand:
            before = len(selected.needed)
            _need(selected, _used_by(selected, members - selected.optional), expand)
            if len(selected.needed) > before:
                continue
        if scan.with_classes(members) <= needed:
            return


def _check(selected: Selection, forced: set[str], keep_remote: bool) -> None:
    """Everything that stands against shipping."""
    scan = selected.scan
    required = scan.with_classes(name for name in selected.needed if name not in selected.optional)
    selected.errors += [
        scan.failed[name] for name in selected.needed if name in scan.failed and name in required
    ]
    going = []
    for group in selected.ship:
        clash = [key for key in group if selected.shared.is_newer(key)]
        if not group & required:
            if any(_problems(selected, key, forced) for key in group):
                selected.deletes += names_of(group & selected.optional)
            elif not clash:
                going.append(group)
                selected.optional |= group
            continue
        if clash and not (group & forced):
            if keep_remote:
                selected.kept.update(clash)
                going.append(group.difference(clash))
                continue
            selected.errors.append(messages.name_conflict(label(scan.value(k), k) for k in clash))
        going.append(group)
    selected.ship = [group for group in going if group]
    selected.deletes += [name for name in selected.optional if name in scan.failed]
    selected.optional -= required
    for name in sorted(set().union(*selected.ship)):
        selected.errors += _problems(selected, name, forced)


def _refusals(selected: Selection, key: str) -> list[errors.NotPicklable]:
    """Of the classes that a value needs, those that cannot travel."""
    failed = selected.scan.failed
    return [failed[each] for each in sorted(selected.scan.with_classes([key])) if each in failed]


def _problems(selected: Selection, key: str, forced: Collection[str]) -> list[errors.MLCloudError]:
    """Why this key must not travel: what it needs, a secret, or an object of another session."""
    if class_id(key):
        return []
    found: list[errors.MLCloudError] = list(_refusals(selected, key))
    if (
        key not in forced
        and key not in selected.temporary
        and userdata.looks_secret(key, selected.shared.namespace[key])
    ):
        found.append(
            errors.UsageError(
                f"`{key}` looks like a secret, and the cell would send it to the session. "
                f"If that is meant, name it: `--in {key}` (with all else the cell needs)."
            )
        )
    for session, remote, _ in selected.scan.pickled[key].refs:
        if session == "job":
            found.append(
                errors.NotPicklable(
                    f"`{key}` holds a result of job {remote}, which is not in this session: give "
                    "it to another job, or fetch it first with `.result()` or `.get()`, if it can "
                    "be pickled"
                )
            )
        elif session not in selected.shared.own:
            found.append(
                errors.NotPicklable(
                    f"`{key}` holds `{remote}`, which lives in another session "
                    f"({session}): fetch it with `.get()` first"
                )
            )
    return found
