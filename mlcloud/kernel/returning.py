"""What a notebook is told after its cell: what it has not seen, as values or in words.

    a group with something unseen ─┬─ small, and picklable ─► its values (`Return.groups`)
                                   ├─ too large, on a device, not picklable,
                                   │  or sharing with one that stays ─► previews (`Return.remote`)
                                   ├─ modules ─► imports
                                   └─ gone ────► deletions

Which names are looked at says `namespace.collect`; here nothing is changed but the versions' groups
and kinds.
"""

from __future__ import annotations

from mlcloud.kernel.tracking import Later, Tracking
from mlcloud.kernel.versions import Versions
from mlcloud.values.messages import Import, Return, Shipment, class_id
from mlcloud.values.preview import describe
from mlcloud.values.scan import Scan


class Returning:
    """The answer to one shipment. `seen`: the versions that its notebook knows, once it has what
    the shipment loaded."""

    def __init__(self, shipment: Shipment, versions: Versions, tracking: Tracking) -> None:
        self._shipment, self._versions, self._tracking = shipment, versions, tracking

    def later(self) -> Later:
        """What need not be hashed now, since it is only described."""
        shipment = self._shipment
        entries, rebound = self._versions.entries, self._versions.is_rebound

        def is_new(key: str) -> bool:
            return key not in entries or key in shipment.binds or rebound(key)

        wanted = {*(shipment.out or ()), *filter(None, [shipment.result])}
        return Later(self._stayed, is_new, shipment.max_return, wanted)

    def due(self, scan: Scan, seen: dict[str, int]) -> set[str]:
        """The shared keys that must be compared."""
        return {key for key in self._versions.entries if self._is_due(key, scan, seen)}

    def _is_due(self, key: str, scan: Scan, seen: dict[str, int]) -> bool:
        """Whether a shared key must be compared: it was looked at, is no value, or is news."""
        if key in scan.pickled or key in scan.failed or not self._versions.has(key):
            return True
        if key in scan.deferred:
            return True
        entry = self._versions.entries[key]
        return entry.kind == "module" or entry.version > seen.get(key, 0)

    def fill(
        self,
        back: Return,
        scan: Scan,
        mine: set[str],
        seen: dict[str, int],
        wanted: set[str],
        out: set[str],
        since: int,
    ) -> None:
        """Put into `back` the groups that have something unseen. `mine`: the keys that were
        compared, `wanted`: names to tell of, `out`: names whose values are asked for. `since`: the
        clock before."""
        entries, limit = self._versions.entries, self._shipment.max_return

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
            why = names and self._stays(scan, group, names, out)
            if not why:
                self._versions.regroup(group, scan, since)
                if any(map(unseen, keys)):
                    ready.append(keys)
                continue
            # What did not change is the same on both sides: the notebook keeps its own value.
            self._describe(scan, set(filter(unseen, names)), why, back)
            ready.append(
                {key for key in keys - names if unseen(key) and scan.pickled[key].size <= limit}
            )
        for name in scan.deferred.keys() & mine & wanted:
            if unseen(name):
                why = entries[name].why or _too_large(None, limit)
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

    def _stays(self, scan: Scan, group: frozenset[str], names: set[str], out: set[str]) -> str:
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
        limit = self._shipment.max_return
        if size > limit:
            return _too_large(size, limit)
        others = set[str]().union(*map(self._tracking.sharing, names)) - group
        stay = sorted(
            key for key in others if key in self._versions.namespace and self._stayed(key)
        )
        return f"it shares objects with `{stay[0]}`, which stays" if stay else ""

    def _stayed(self, key: str) -> bool:
        """Whether this value is only described to notebooks."""
        entry = self._versions.entries.get(key)
        return entry is not None and entry.kind == "remote"

    def _describe(self, scan: Scan, names: set[str], why: str, back: Return) -> None:
        for name in sorted(names):
            entry = self._versions.entries[name]
            entry.kind, entry.digest, entry.why = "remote", None, why
            pickled = scan.pickled.get(name)
            nbytes = pickled.size if pickled else self._tracking.size(name)
            value = self._versions.namespace[name]
            back.remote.append(describe(name, value, binding=entry.binding, nbytes=nbytes, why=why))
            back.versions[name] = entry.version


def _too_large(size: int | None, limit: int) -> str:
    """Why a value stays where it is."""
    much = f"over {limit:,}" if size is None else f"{size:,}"
    return f"{much} bytes, more than --max-return"
