"""The session's side of the shared names: takes a `Shipment` in, tells a `Return` what changed.

    load(shipment)       look at the names it would replace: if one changed since the notebook last
                         saw it, NameConflict and nothing done; else imports, deletions, unpickle
                         everything, then bind everything
    collect(shipment)    look at every shared name, those the cell binds, and new ones: another
                         digest is a new version; group names that share objects; return what the
                         notebook has not seen: groups up to `max_return` by value, else a preview

What a version is, and how a change is found, is `versions`; `dump` writes the whole namespace down
for a snapshot, and reads it back.
"""

from __future__ import annotations

import contextlib
import gc
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlcloud import errors
from mlcloud.kernel import dump
from mlcloud.kernel.choice import Choice, Chosen
from mlcloud.kernel.dump import Dumped
from mlcloud.kernel.imports import imported, is_importable
from mlcloud.kernel.mentions import EVERYTHING, used_by
from mlcloud.kernel.recipes import CellRun, Recipes
from mlcloud.kernel.tracking import ALL, CHEAP_S, Later, Tracking
from mlcloud.kernel.versions import Versions
from mlcloud.values import messages, userdata
from mlcloud.values.digests import Known
from mlcloud.values.messages import (
    Group,
    Import,
    Prefetch,
    RemoteInfo,
    ResolveBlob,
    Return,
    Shipment,
    class_id,
)
from mlcloud.values.pickled import Ref
from mlcloud.values.preview import describe
from mlcloud.values.scan import Scan, label, unpack

__all__ = ["Dumped", "RemoteSide"]

PENDING = 64  # shipments whose cell has not ended, remembered at most


@dataclass
class _Run:
    """What must be remembered from a shipment until its cell ended."""

    before: set[str] = field(default_factory=set)
    loaded: dict[str, int] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)  # deletions not made: the cell binds the name


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collections: pickling makes many objects and no cycles, and each collection
    walks over all that the user has."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class RemoteSide:
    """The shared names of one session, inside its kernel."""

    def __init__(
        self,
        namespace: dict[str, Any],
        cheap_s: float = CHEAP_S,
        snapshot_max: int | None = None,
    ) -> None:
        self.namespace = namespace
        self._versions = Versions(namespace)
        self.classes = self._versions.classes
        self._runs: dict[str, _Run] = {}
        self._tracking = Tracking(self._versions, cheap_s)
        self._scan: Scan | None = None  # the last look, until it is dumped
        self._dirty: set[str] = {EVERYTHING}  # keys looked at since the last dump
        self._active: set[str] = set()  # keys that cells since the last dump may have changed
        self._doubtful = True
        self._marks: dict[frozenset[str], str] = {}  # of the groups that dumps wrote
        self._new_marks: dict[frozenset[str], str] = {}  # of the one that is on its way
        self._skipped: dict[str, str] = {}  # what the last dump left out, and why
        self.follows = False  # another rank's names, which the notebook shares (`ranks`)
        self.recipes = Recipes(namespace, self.classes)
        self.choice = Choice(namespace, snapshot_max)

    @property
    def epoch(self) -> str:
        """Which life of the session the versions count in: a kernel started anew has another."""
        return self._versions.epoch

    # --- before the cell --------------------------------------------------------------------------

    def load(
        self,
        shipment: Shipment,
        resolve: ResolveBlob | None = None,
        prefetch: Prefetch | None = None,
    ) -> None:
        """Bring the notebook's values in. Raises before anything changed, or does it all.

        `prefetch` hears which blobs `resolve` will be asked for, and may fetch them together.
        `NameConflict`: a name changed on both sides. `Conflict`: the shipment was made for a kernel
        that is gone; reset the sender and prepare again. `UsageError`: a package is missing here.
        """
        self._scan = None
        self._tracking.let_go()
        if shipment.epoch not in (None, self.epoch) and not self.follows:
            raise errors.Conflict("the session's kernel was started anew: prepare the cell again")
        run = _Run()
        groups = self._accepted(shipment, run) if shipment.groups else []
        imports, deletes = self._accepted_names(shipment, run)
        modules = [(entry, imported(entry)) for entry in imports]
        refs: list[Any] = []
        verified = Known()  # memory whose content's name is known: it need not be hashed again
        if prefetch is not None:
            prefetch(blob for group in groups for blob in group.blobs())
        loaded = [(group, self._unpack(group, resolve, refs, verified)) for group in groups]

        for name in (*deletes, *shipment.released):
            self._versions.forget(name)
        for entry, module in modules:
            self._versions.bind(entry.name, module)
            known = self._versions.entry(entry.name)
            known.kind, known.digest = "module", entry.digest
            run.loaded[entry.name] = known.version = self._versions.tick()
        self._tracking.forget(key for group, _ in loaded for key in group.keys)
        for group, values in loaded:
            self._take(group, values, refs, run, shipment.sender, verified)
        run.before = set(self.namespace)
        self._runs[shipment.id] = run
        while len(self._runs) > PENDING:
            del self._runs[next(iter(self._runs))]

    def _accepted(self, shipment: Shipment, run: _Run) -> list[Group]:
        """The groups to load: not those that are here already, nor those the user gave up."""
        versions = self._versions
        keys = [key for group in shipment.groups for key in group.keys if versions.has(key)]
        scan = versions.refresh(keys, hash_new=True)
        accepted, clashes = [], []
        for group in shipment.groups:
            if all(self._is_in_step(key, shipment) for key in group.keys):
                accepted.append(group)  # it has seen all of this side's, and sends something else
                continue
            if all(self._holds(key, group) for key in group.keys):
                run.loaded.update({key: versions.entry(key).version for key in group.keys})
                continue
            if all(self._came_from(key, group, shipment) for key in group.keys):
                # Sent before, and changed here since: the notebook only missed what came of it.
                run.loaded.update({key: versions.entry(key).loaded for key in group.keys})
                continue
            newer = [key for key in group.keys if self._is_newer(key, group, shipment, scan)]
            if not newer or not set(group.keys).isdisjoint(shipment.force):
                accepted.append(group)
            elif set(group.keys) <= set(shipment.optional):
                continue  # the cell is about to bind it: what is here now is in nobody's way
            elif shipment.keep_remote:
                run.kept.update(newer)
                if not any(map(class_id, newer)):  # loading would replace the class
                    accepted.append(group)
            elif self.follows:
                accepted.append(group)  # as rank 0 does, which the notebook knows
            else:
                clashes += [
                    label(scan.value(key), key) if versions.has(key) else key for key in newer
                ]
        if clashes:
            raise messages.name_conflict(clashes)
        return accepted

    def _is_in_step(self, key: str, shipment: Shipment) -> bool:
        """Whether the notebook has seen this side's present value."""
        entry = self._versions.entries.get(key)
        return entry is not None and entry.version == shipment.known.get(key, 0)

    def _holds(self, key: str, group: Group) -> bool:
        """Whether what the notebook sends is what this side has, unchanged."""
        entry = self._versions.entries.get(key)
        if entry is None or not self._versions.has(key):
            return False
        if entry.source == group.digest and entry.loaded == entry.version:
            return True
        same = entry.kind == "value" and entry.digest == group.digests[key]
        return same and len(group.keys) == 1

    def _came_from(self, key: str, group: Group, shipment: Shipment) -> bool:
        """Whether this side's value grew out of this very group from this very notebook."""
        entry = self._versions.entries.get(key)
        if entry is None or not self._versions.has(key) or key in shipment.force:
            return False
        return entry.source == group.digest and entry.sender == shipment.sender

    def _is_newer(self, key: str, group: Group, shipment: Shipment, scan: Scan) -> bool:
        """Whether this side has a value that the notebook has not seen."""
        if not self._versions.has(key):
            return False  # gone here, changed there: the change is what there is to keep
        entry = self._versions.entries.get(key)
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
            known = self._versions.entries.get(entry.name)
            seen = known is not None and known.version <= shipment.known.get(entry.name, 0)
            if mine is None or isinstance(mine, types.ModuleType) or seen:
                continue
            if shipment.keep_remote:
                run.kept.add(entry.name)
            elif entry.name not in shipment.force:
                clashes.append(entry.name)
        for name in shipment.deletes:
            known = self._versions.entries.get(name)
            if name not in self.namespace or known is None:
                continue
            self._versions.refresh([name])
            if known.version > shipment.known.get(name, 0):
                if name in shipment.optional:
                    run.left.add(name)
                    continue
                (run.kept.add if shipment.keep_remote else clashes.append)(name)
        if clashes:
            raise messages.name_conflict(clashes)
        imports = [entry for entry in shipment.imports if entry.name not in run.kept]
        return imports, [name for name in shipment.deletes if name not in run.kept | run.left]

    def _unpack(
        self, group: Group, resolve: ResolveBlob | None, refs: list[Any], known: Known
    ) -> dict[str, Any]:
        def object_of(ref: Ref) -> Any:
            refs.append(self.resolve(ref))
            return refs[-1]

        try:
            return unpack(
                group, self.namespace, self.classes, blobs=resolve, refs=object_of, known=known
            )
        except ModuleNotFoundError as error:
            names = ", ".join(f"`{name}`" for name in group.names) or "a class"
            raise errors.UsageError(
                f"{names} needs the package {error.name!r}, which the session does not have: "
                "install it there (`%pip install …` in a %%remote cell), then run the cell again."
            ) from error

    def _take(
        self,
        group: Group,
        values: dict[str, Any],
        refs: list[Any],
        run: _Run,
        sender: str,
        known: Known,
    ) -> None:
        """Bind what arrived, and remember what it looks like from here."""
        keys = [key for key in group.keys if key not in run.kept]
        self._versions.part(keys)
        for key in keys:
            if class_id(key) is None:
                self._versions.bind(key, values[key])
        scan = Scan(self.namespace, self.classes, known)
        if not refs:
            scan.add(keys)
            # What it calls may rebind its name, and be gone when the cell has ended.
            self._tracking.came(used_by(scan.codes(keys)))
        for key in keys:
            entry = self._versions.entry(key)
            pickled = scan.pickled.get(key)
            remote = any(values[key] is ref for ref in refs)
            entry.kind = "remote" if remote or key in scan.failed else "value"
            entry.digest = pickled.digest if pickled else None
            entry.source, entry.sender, entry.version = group.digest, sender, self._versions.tick()
            entry.group = frozenset(group.keys)
            run.loaded[key] = entry.loaded = entry.version

    def resolve(self, ref: Ref) -> Any:
        """The object that a RemoteValue stands for. Raises `StaleRemoteValue`."""
        return self._versions.resolve(ref)

    # --- after the cell ---------------------------------------------------------------------------

    def look(self, mentioned: Collection[str] = ALL, later: Later | None = None) -> Scan:
        """Scan what code that mentions these names may have changed (`tracking`)."""
        doubtful, self._doubtful = self._doubtful, False
        with uncollected():
            self._scan = scan = self._tracking.look(ALL if doubtful else mentioned, later)
        self._looked(scan)
        return scan

    def _looked(self, scan: Scan) -> None:
        self._active |= self._tracking.active
        self._dirty |= scan.pickled.keys() | scan.failed.keys() | scan.deferred.keys()

    @property
    def pending(self) -> int:
        """Bytes of what may have changed since the last dump, about: it is not hashed yet."""
        scan = self._scan
        if scan is None:
            return 0
        return sum(each.size for each in scan.pickled.values()) + sum(scan.deferred.values())

    @property
    def cost(self) -> float:
        """Seconds of this process that the next dump will take, about."""
        dirty = ALL if self._doubtful or EVERYTHING in self._dirty else self._dirty
        return 2 * self._tracking.cost(dirty)  # looked at, and packed

    @property
    def is_doubtful(self) -> bool:
        """Whether something ran of which no cell's code tells, since the last dump."""
        return EVERYTHING in self._dirty

    def doubt(self) -> None:
        """Something ran of which no cell's code tells: everything is to be looked at."""
        self._doubtful = True
        self._dirty.add(EVERYTHING)
        self._active.add(EVERYTHING)

    def collect(self, shipment: Shipment, mentioned: Collection[str] = ALL) -> Return:
        """What this notebook has not seen, after its cell ran (also when it failed).

        `mentioned`: the names in the cell's code; by default it may have changed anything.
        """
        scan = self.look(mentioned, self._later(shipment))
        run = self._runs.pop(shipment.id, None) or _Run(before=set(self.namespace))
        new = {
            name
            for name in self.namespace.keys() - run.before
            if not userdata.is_hidden(name, self.namespace[name])
            and not (shipment.star and is_importable(self.namespace[name]))
        }
        bound = {
            name
            for name in shipment.binds
            if not userdata.is_internal(name, self.namespace.get(name))
        }
        out = None if shipment.out is None else set(shipment.out)
        if shipment.result is not None:
            bound.add(shipment.result)
            out = None if out is None else out | {shipment.result}
        asked = bound | new | (out or set())
        seen = {**shipment.known, **run.loaded}
        mine = {key for key in self._versions.entries if self._is_due(key, scan, seen)}
        mine |= {name for name in asked if name in self.namespace}
        since = self._versions.now()
        self._versions.refresh(
            mine,
            touched=shipment.reads,
            bound=bound,
            limit=shipment.max_return,
            out=out or (),
            scan=scan,
        )
        back = Return(shipment.id, self.epoch, loaded=run.loaded, kept=sorted(run.kept))
        wanted = asked | set(shipment.known) | set(run.loaded) | run.kept
        if out is not None:
            wanted = out
        wanted -= set(shipment.temporary) - {shipment.result}
        forced = (out or set()) - {shipment.result}
        self._report(scan, mine, shipment, seen, wanted, forced, since, back)
        stays = {info.name for info in back.remote}
        for name in [*shipment.temporary, *filter(None, [shipment.result])]:
            if name not in stays:  # a result that does stay is what its RemoteValue names
                self._versions.forget(name)
        return back

    def _later(self, shipment: Shipment) -> Later:
        entries, rebound = self._versions.entries, self._versions.is_rebound

        def is_new(key: str) -> bool:
            return key not in entries or key in shipment.binds or rebound(key)

        wanted = {*(shipment.out or ()), *filter(None, [shipment.result])}
        return Later(self._stayed, is_new, shipment.max_return, wanted)

    def _stayed(self, key: str) -> bool:
        """Whether this value is only described to notebooks."""
        entry = self._versions.entries.get(key)
        return entry is not None and entry.kind == "remote"

    def _is_due(self, key: str, scan: Scan, seen: dict[str, int]) -> bool:
        """Whether a shared key must be compared: it was looked at, is no value, or is news."""
        if key in scan.pickled or key in scan.failed or not self._versions.has(key):
            return True
        if key in scan.deferred:
            return True
        entry = self._versions.entries[key]
        return entry.kind == "module" or entry.version > seen.get(key, 0)

    def _report(
        self,
        scan: Scan,
        mine: set[str],
        shipment: Shipment,
        seen: dict[str, int],
        wanted: set[str],
        out: set[str],
        since: int,
        back: Return,
    ) -> None:
        """Fill `back` with the groups that have something unseen. `since`: the clock before."""
        entries = self._versions.entries

        def unseen(key: str) -> bool:
            return entries[key].version > seen.get(key, 0)

        classes = {
            key
            for key in scan.with_classes(name for name in wanted if name in scan.pickled)
            | (seen.keys() & scan.pickled.keys())
            if class_id(key) and key in scan.pickled
        }
        ready: list[set[str]] = []
        mine = scan.with_classes(mine)
        for group in scan.groups(key for key in (*scan.pickled, *scan.failed) if key in mine):
            keys = set(group & (wanted | classes))
            names = {key for key in keys if class_id(key) is None}
            why = names and self._stays(scan, group, names, shipment.max_return, out)
            if not why:
                self._versions.regroup(group, scan, since)
                if any(map(unseen, keys)):
                    ready.append(keys)
                continue
            # What did not change is the same on both sides: the notebook keeps its own value.
            self._describe(scan, set(filter(unseen, names)), why, back)
            ready.append(
                {
                    key
                    for key in keys - names
                    if unseen(key) and scan.pickled[key].size <= shipment.max_return
                }
            )
        for name in scan.deferred.keys() & mine & wanted:
            if unseen(name):
                why = entries[name].why or _too_large(None, shipment.max_return)
                self._describe(scan, {name}, why, back)
        ready = [keys for keys in ready if keys]
        merged = self._with_aliases(scan, ready)
        for packed in scan.pack(merged):
            back.groups.append(packed)
            for key in packed.keys:
                entry = entries[key]
                entry.kind, entry.digest = "value", scan.pickled[key].digest
                back.versions[key] = entry.version
            back.bindings.update({name: entries[name].binding for name in packed.names})
        for name in sorted(wanted & entries.keys()):
            entry = entries[name]
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
        failed = sorted(key for key in scan.with_classes(group) if key in scan.failed)
        if failed:
            return str(scan.failed[failed[0]])
        if names <= out:
            return ""
        devices = sorted({place for name in names for place in scan.pickled[name].devices})
        if devices:
            return f"it is on {devices[0]}"
        size = sum(scan.pickled[name].size for name in names)
        if size > limit:
            return _too_large(size, limit)
        others = set[str]().union(*map(self._tracking.sharing, names)) - group
        stay = sorted(key for key in others if key in self.namespace and self._stayed(key))
        return f"it shares objects with `{stay[0]}`, which stays" if stay else ""

    def _describe(self, scan: Scan, names: set[str], why: str, back: Return) -> None:
        for name in sorted(names):
            entry = self._versions.entries[name]
            entry.kind, entry.digest, entry.why = "remote", None, why
            pickled = scan.pickled.get(name)
            nbytes = pickled.size if pickled else self._tracking.size(name)
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

    def name_of(self, value: Any) -> tuple[str, int] | None:
        """A shared name that holds this very object, and its version."""
        for name, entry in self._versions.entries.items():
            if self.namespace.get(name) is value:
                return name, entry.version
        return None

    def describe(self, name: str) -> RemoteInfo:
        """The preview of a name as it is now."""
        if name not in self.namespace:
            raise errors.NotFound(f"the session has no `{name}`")
        self._versions.note_binding(name)
        binding = self._versions.entry(name).binding
        return describe(name, self.namespace[name], binding=binding, nbytes=None, why="")

    # --- snapshots --------------------------------------------------------------------------------

    def dump_groups(
        self,
        max_bytes: int | None = None,
        *,
        saved: Collection[frozenset[str]] = (),
        run: CellRun | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Dumped:
        """Every user name, packed by groups; larger values and unpicklable ones are `skipped`.

        `saved`: groups that the last dump wrote; those that are as they were are only named. Call
        `dumped()` when it is being written. `run`: the cell after which this is. `stop`: asked
        now and then; where it says so, `Stopped` is raised, and all is as before.
        """
        with uncollected():
            return self._dump(max_bytes, saved, run, stop)

    def _dump(
        self,
        max_bytes: int | None,
        saved: Collection[frozenset[str]],
        run: CellRun | None,
        stop: Callable[[], bool] | None,
    ) -> Dumped:
        scan = self._scan
        seen = set[str]() if scan is None else scan.pickled.keys() | scan.failed.keys()
        if scan is None or EVERYTHING in self._dirty:
            scan = self._scan = None
            seen, scan = set(), self._tracking.look(self._dirty, stop=stop)
        elif not self._dirty <= seen:
            try:
                self._tracking.complete(scan, self._active, self._dirty, stop)
            finally:  # what it found so far, where it was stopped
                self._looked(scan)
        scan.stop = stop
        self._looked(scan)
        self._notice(scan, seen)
        chosen = Chosen()
        if run is not None:
            # What ran beside the cells may have changed what the last snapshot has.
            stored = set[str]() if EVERYTHING in self._active else set[str]().union(*saved)
            chosen = self.choice.of(run, scan, self.recipes.by_name, stored)
        dumped = dump.dump_groups(
            self._versions,
            max_bytes,
            scan=scan,
            saved=saved,
            skipped_before=self._skipped,
            marks={keys: mark for keys, mark in self._marks.items() if keys in saved},
            left_out=chosen.why,
        )
        self._scan = None
        self._tracking.hashed(scan)
        self._skipped = dumped.skipped
        self._new_marks = dumped.marks
        if run is not None:
            self.recipes.cell(run, scan, self._active, chosen.digests, chosen.why)
        return dumped

    def _notice(self, scan: Scan, seen: Collection[str]) -> None:
        """Values found changed only now have a new version too: notebooks hear of it later."""
        entries = self._versions.entries
        found = {key for key in scan.pickled if key not in seen and key in entries}
        self._versions.refresh({k for k in found if entries[k].kind == "value"}, scan=scan)

    def dumped(self) -> None:
        """The last dump is being written: the next one need not look at the same again."""
        self._dirty, self._active = set(), set()
        self._marks.update(self._new_marks)

    def undumped(self) -> None:
        """It could not be written: the next one looks at everything."""
        self._marks = {}
        self.doubt()

    def restore(
        self,
        groups: Iterable[Group],
        imports: Iterable[Import],
        resolve: ResolveBlob | None = None,
    ) -> dict[str, str]:
        """Fill this (fresh) namespace from a dump; then, with what else is there, `restore_state`.

        What needs a package that is not here is left out, and returned with the reason.
        """
        return dump.restore(self._versions, groups, imports, resolve=resolve)

    def restore_state(self, state: dict[str, Any], *, news: bool = False) -> None:
        """Notebooks that knew the dumped namespace need not send again, and their handles hold.

        `news`: these are not the values that notebooks saw last; they come back with a next cell.
        """
        dump.restore_state(self._versions, state)
        if news:
            for entry in self._versions.entries.values():
                entry.version = self._versions.tick()


def _too_large(size: int | None, limit: int) -> str:
    """Why a value stays where it is."""
    much = f"over {limit:,}" if size is None else f"{size:,}"
    return f"{much} bytes, more than --max-return"
