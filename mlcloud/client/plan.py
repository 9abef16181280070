"""What a cell would ship, and why: worked out before anything is sent.

    names.analyze(cell) ─► _need         the names it reads, and those that functions in them use
                        ─► _import       the modules among them
                        ─► _add_aliases  other names that may share objects with them
                        ─► _choose       of all these, the groups where something changed
                        ─► _check        conflicts, secrets, values that cannot travel
                        ─► Plan ─► LocalSide.prepare sends it, or raises its first error
                               └─► rows(plan): one line a name, for `--dry`

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
class Plan:
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


def plan_cell(
    shared: SharedNames,
    cell: str,
    only_in: Collection[str] | None,
    keep_remote: bool,
    temporary: Collection[str] = (),
) -> Plan:
    """The plan for one cell; the options are those of `LocalSide.prepare`. Raises SyntaxError.

    `temporary` are names that exist for this cell alone, and are in the namespace already.
    """
    names = analyze(cell, shared.namespace)
    scan = Scan(shared.namespace, shared.classes)
    plan = Plan(shared, names, scan, set(temporary), mentions=set(names.mentions))
    forced = set(only_in or ())
    if missing := sorted(forced - shared.namespace.keys()):
        plan.errors.append(errors.UsageError(f"--in: there is no {', '.join(missing)} here"))
    _need(plan, sorted(names.reads if only_in is None else forced), only_in is None)
    if only_in is None:
        _need_bound(plan)
    _import(plan)
    if only_in is None:
        _note_hidden_code(plan)
    if plan.needed:
        _add_aliases(plan)
        _need_former_aliases(plan)
        _choose(plan, expand=only_in is None)
        _check(plan, forced, keep_remote)
    return plan


def rows(plan: Plan) -> list[Row]:
    """What the plan does with each name, and why, sorted by name."""
    found = list(plan.rows)
    shipped = {key: group for group in plan.ship for key in group}
    for key, group in shipped.items():
        if refusals := _refusals(plan, key):
            if class_id(key) is None:
                found.append(_row(plan, key, "refused", str(refusals[0])))
        elif class_id(key) is None:
            others = sorted(name for name in group if class_id(name) is None and name != key)
            why = "changed here" if key in plan.shared.entries else "not in the session yet"
            why += f"; shares objects with {', '.join(others)}" if others else ""
            found.append(_row(plan, key, "ship", why))
    for name in plan.needed:
        if name in plan.kept:
            found.append(_row(plan, name, "keep remote", "changed on both sides"))
        elif name in plan.scan.failed:
            found.append(_row(plan, name, "refused", str(plan.scan.failed[name])))
        elif name not in shipped:
            found.append(_row(plan, name, "nothing", "the session has it, unchanged"))
    for name in plan.modules:
        changed = any(entry.name == name for entry in plan.imports)
        why = f"import {plan.modules[name]}" if changed else "the session has it"
        found.append(_row(plan, name, "import" if changed else "nothing", why))
    found += [_row(plan, name, "delete", "deleted here") for name in plan.deletes]
    for error in plan.errors:
        if not isinstance(error, errors.NotPicklable):
            found.append(Row("", "", None, "refused", str(error)))
    return sorted(found, key=lambda row: row.name)


def _row(plan: Plan, name: str, action: str, why: str) -> Row:
    pickled, shared = plan.scan.pickled.get(name), plan.shared.entries.get(name)
    kind = ""
    if name in plan.shared.namespace:
        kind = type(plan.shared.namespace[name]).__qualname__
    source = "session" if action == "keep remote" else "notebook"
    if name in plan.modules:
        source = plan.modules[name]
    elif name in plan.users and name not in plan.names.reads:
        source += f", used by {plan.users[name]}"
    since = "new" if shared is None else shared.since
    return Row(name, kind, pickled.size if pickled else None, action, why, since, source)


# --- the steps ------------------------------------------------------------------------------------


def _need(plan: Plan, names: Iterable[str], expand: bool) -> None:
    """Look at these names and, for functions and classes in them, at the names those use."""
    namespace = plan.shared.namespace
    waiting, looked = list(names), set(plan.needed)
    while waiting:
        name = waiting.pop()
        if name in looked:
            continue
        looked.add(name)
        plan.mentions.add(name)
        if name not in namespace:
            shared = plan.shared.entries.get(name)
            if shared is not None and shared.kind != "remote" and name not in plan.deletes:
                plan.deletes.append(name)
            continue
        value = namespace[name]
        if userdata.is_internal(name, value) and name not in plan.temporary:
            continue
        if isinstance(value, types.ModuleType):
            path = userdata.import_path(value)
            if path is not None:
                plan.modules[name] = path
                continue
        elif plan.shared.is_handle(name, value):
            entry = plan.shared.entries.get(name)
            since = "" if entry is None else entry.since
            plan.rows.append(
                Row(name, value.type, value.nbytes, "nothing", "it is there", since, "session")
            )
            continue
        plan.needed.append(name)
        plan.scan.add([name])
        if expand:
            used = _used_by(plan, [name])
            for other in used:
                plan.users.setdefault(other, name)
            waiting += used


def _need_bound(plan: Plan) -> None:
    """Names that the cell may bind, where the session could not tell that it did.

    The session sees a name bound anew by its object. `k = 7` over a 7 is no other object, so if `k`
    changed here meanwhile, the session gets that first: what it has after the cell is then news.
    """
    required, entries = set(plan.needed), plan.shared.entries
    for name in sorted(plan.names.binds - required):
        shared = entries.get(name)
        if shared is not None and not shared.tracked and not plan.shared.is_newer(name):
            _need(plan, [name], expand=False)
    plan.optional = set(plan.needed) - required | (plan.names.binds & set(plan.deletes))
    plan.optional -= plan.names.reads


def _used_by(plan: Plan, keys: Iterable[str]) -> list[str]:
    """The names of this namespace that functions in these values use."""
    used: set[str] = set()
    for key in plan.scan.with_classes(keys):
        if key in plan.scan.pickled:
            used |= plan.scan.pickled[key].annotated
            for code in plan.scan.pickled[key].codes:
                used |= globals_used(code)
    namespace, entries = plan.shared.namespace, plan.shared.entries
    return [name for name in used if name in namespace or name in entries]


def _import(plan: Plan) -> None:
    """The modules among the needed names, with the submodules the code seems to use."""
    if not plan.modules:
        return
    attributes = set(plan.names.attributes)
    for pickled in plan.scan.pickled.values():
        for code in pickled.codes:
            attributes |= attributes_used(code)
    for name, path in plan.modules.items():
        entry = Import(name, path, _submodules(path, attributes))
        shared = plan.shared.entries.get(name)
        if shared is None or shared.kind != "module" or shared.digest != entry.digest:
            plan.imports.append(entry)


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


def _note_hidden_code(plan: Plan) -> None:
    """Say where code runs that is in no text we see: names used only there are not sent."""
    words = set(plan.names.dynamic)
    for pickled in plan.scan.pickled.values():
        for code in pickled.codes:
            found = sorted(RUNS_TEXT & globals_used(code))
            words |= {f"{word}(…) in `{code.co_name}`" for word in found}
    if words:
        plan.notes.append(
            f"{', '.join(sorted(words))} may use names that the cell's text does not show, and "
            "those are not sent: mention them in the cell, or list all it needs with `--in`"
        )


def _add_aliases(plan: Plan) -> None:
    """Look at the other names that may share objects with the needed ones."""
    scan, namespace = plan.scan, plan.shared.namespace
    if not any(scan.ids(key) for key in scan.pickled):
        return
    scan.add(
        name
        for name, shared in plan.shared.entries.items()
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
                plan.notes.append(
                    f"`{name}` shares objects with what the cell uses, and cannot travel: "
                    "after a change in the session it keeps the objects it has now"
                )


def _need_former_aliases(plan: Plan) -> None:
    """Names that shared objects with the needed ones when both sides were equal.

    In the session they still do. One that holds something else here by now goes along, else the
    session would return a change of the needed name as a change of both.
    """
    entries, before = plan.shared.entries, set(plan.needed)
    for key in plan.scan.with_classes(plan.needed):
        shared = entries.get(key)
        if shared is not None and shared.group is not None:
            _need(plan, sorted(filter(entries.get, names_of(shared.group))), expand=False)
    plan.optional |= set(plan.needed) - before


def _choose(plan: Plan, expand: bool) -> None:
    """The groups to ship: those the cell needs, where something changed."""
    scan, changed = plan.scan, plan.shared.changed
    while True:
        needed = scan.with_classes(plan.needed).union(*map(scan.with_classes, plan.ship))
        groups = scan.groups(scan.pickled)
        plan.ship = [group for group in groups if group & needed and changed(group, scan)]
        members = set().union(*plan.ship)
        if expand:
            before = len(plan.needed)
            _need(plan, _used_by(plan, members - plan.optional), expand)
            if len(plan.needed) > before:
                continue
        if scan.with_classes(members) <= needed:
            return


def _check(plan: Plan, forced: set[str], keep_remote: bool) -> None:
    """Everything that stands against shipping."""
    scan = plan.scan
    required = scan.with_classes(name for name in plan.needed if name not in plan.optional)
    plan.errors += [
        scan.failed[name] for name in plan.needed if name in scan.failed and name in required
    ]
    going = []
    for group in plan.ship:
        clash = [key for key in group if plan.shared.is_newer(key)]
        if not group & required:
            if any(_problems(plan, key, forced) for key in group):
                plan.deletes += names_of(group & plan.optional)
            elif not clash:
                going.append(group)
                plan.optional |= group
            continue
        if clash and not (group & forced):
            if keep_remote:
                plan.kept.update(clash)
                going.append(group.difference(clash))
                continue
            plan.errors.append(messages.name_conflict(label(scan.value(k), k) for k in clash))
        going.append(group)
    plan.ship = [group for group in going if group]
    plan.deletes += [name for name in plan.optional if name in scan.failed]
    plan.optional -= required
    for name in sorted(set().union(*plan.ship)):
        plan.errors += _problems(plan, name, forced)


def _refusals(plan: Plan, key: str) -> list[errors.NotPicklable]:
    """Of the classes that a value needs, those that cannot travel."""
    failed = plan.scan.failed
    return [failed[each] for each in sorted(plan.scan.with_classes([key])) if each in failed]


def _problems(plan: Plan, key: str, forced: Collection[str]) -> list[errors.MLCloudError]:
    """Why this key must not travel: what it needs, a secret, or an object of another session."""
    if class_id(key):
        return []
    found: list[errors.MLCloudError] = list(_refusals(plan, key))
    if (
        key not in forced
        and key not in plan.temporary
        and userdata.looks_secret(key, plan.shared.namespace[key])
    ):
        found.append(
            errors.UsageError(
                f"`{key}` looks like a secret, and the cell would send it to the session. "
                f"If that is meant, name it: `--in {key}` (with all else the cell needs)."
            )
        )
    for session, remote, _ in plan.scan.pickled[key].refs:
        if session == "job":
            found.append(
                errors.NotPicklable(
                    f"`{key}` holds a result of job {remote}, which is not in this session: give "
                    "it to another job, or fetch it first with `.result()` or `.get()`, if it can "
                    "be pickled"
                )
            )
        elif session not in plan.shared.own:
            found.append(
                errors.NotPicklable(
                    f"`{key}` holds `{remote}`, which lives in another session "
                    f"({session}): fetch it with `.get()` first"
                )
            )
    return found
