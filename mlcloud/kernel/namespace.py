"""The session's side of the shared names: takes a `Shipment` in, tells a `Return` what changed.

    load(shipment)       look at the names it would replace: if one changed since the notebook last
                         saw it, NameConflict and nothing done (`accepting`); else imports,
                         deletions, unpickle everything, then bind everything
    collect(shipment)    look at every shared name, those the cell binds, and new ones: another
                         digest is a new version; group names that share objects; return what the
                         notebook has not seen: groups up to `max_return` by value, else a preview
                         (`returning`)

What a version is, and how a change is found, is `versions`; `dump` writes the whole namespace down
for a snapshot, and reads it back.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlcloud import errors
from mlcloud.kernel import dump
from mlcloud.kernel.accepting import Acceptance
from mlcloud.kernel.choice import Choice, Chosen
from mlcloud.kernel.dump import Dumped
from mlcloud.kernel.imports import imported, is_importable
from mlcloud.kernel.mentions import EVERYTHING, used_by
from mlcloud.kernel.recipes import CellRun, Recipes
from mlcloud.kernel.returning import Returning
from mlcloud.kernel.tracking import ALL, CHEAP_S, Later, Tracking
from mlcloud.kernel.versions import Versions
from mlcloud.values import userdata
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
from mlcloud.values.scan import Scan, unpack

__all__ = ["Dumped", "RemoteSide"]

PENDING = 64  # shipments whose cell has not ended, remembered at most


@dataclass
class _Run:
    """What must be remembered from a shipment until its cell ended."""

    before: set[str] = field(default_factory=set)
    loaded: dict[str, int] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)


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
        accepted = Acceptance(shipment, self._versions, follows=self.follows)
        groups = accepted.groups()
        imports, deletes = accepted.names()
        run = _Run(loaded=accepted.loaded, kept=accepted.kept)
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
        return self._versions.resolve(ref, any_binding=self.follows)

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
        returning = Returning(shipment, self._versions, self._tracking)
        scan = self.look(mentioned, returning.later())
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
        mine = returning.due(scan, seen) | {name for name in asked if name in self.namespace}
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
        returning.fill(back, scan, mine, seen, wanted, forced, since)
        stays = {info.name for info in back.remote}
        for name in [*shipment.temporary, *filter(None, [shipment.result])]:
            if name not in stays:  # a result that does stay is what its RemoteValue names
                self._versions.forget(name)
        return back

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
