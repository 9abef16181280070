"""What of a shipment a session takes in: nothing that would replace a value unseen.

    a group ─┬─ the notebook has seen this side's present values ──────────► taken
             ├─ this side has just that, or what came of it ───────────────► here already
             └─ this side has something newer ─┬─ forced, or rank 0 took it ► taken
                                               ├─ the cell binds the name ──► left out
                                               ├─ `keep_remote` ────────────► this side's is kept
                                               └────────────────────────────► NameConflict

Imports and deletions are judged in the same way. Nothing is bound here: that is `namespace`'s.
"""

from __future__ import annotations

import types

from mlcloud.kernel.versions import Versions
from mlcloud.values import messages
from mlcloud.values.messages import Group, Import, Shipment, class_id
from mlcloud.values.scan import Scan, label


class Acceptance:
    """A shipment, judged against what this side has. First `groups`, then `names`.

    `loaded`: versions that the notebook has without being sent anything. `kept`: names that stay as
    they are here. `follows`: another rank decided, and the notebook knows its values.
    """

    def __init__(self, shipment: Shipment, versions: Versions, *, follows: bool) -> None:
        self._shipment, self._versions, self._follows = shipment, versions, follows
        self.loaded: dict[str, int] = {}
        self.kept: set[str] = set()

    def groups(self) -> list[Group]:
        """Those to load: not those that are here already, nor those the user gave up. Raises
        `NameConflict`."""
        shipment, versions = self._shipment, self._versions
        if not shipment.groups:
            return []
        keys = [key for group in shipment.groups for key in group.keys if versions.has(key)]
        scan = versions.refresh(keys, hash_new=True)
        accepted, clashes = [], []
        for group in shipment.groups:
            if all(self._is_in_step(key) for key in group.keys):
                accepted.append(group)  # it has seen all of this side's, and sends something else
                continue
            if all(self._holds(key, group) for key in group.keys):
                self.loaded.update({key: versions.entry(key).version for key in group.keys})
                continue
            if all(self._came_from(key, group) for key in group.keys):
                # Sent before, and changed here since: the notebook only missed what came of it.
                self.loaded.update({key: versions.entry(key).loaded for key in group.keys})
                continue
            newer = [key for key in group.keys if self._is_newer(key, group, scan)]
            if not newer or not set(group.keys).isdisjoint(shipment.force):
                accepted.append(group)
            elif set(group.keys) <= set(shipment.optional):
                continue  # the cell is about to bind it: what is here now is in nobody's way
            elif shipment.keep_remote:
                self.kept.update(newer)
                if not any(map(class_id, newer)):  # loading would replace the class
                    accepted.append(group)
            elif self._follows:
                accepted.append(group)  # as rank 0 does, which the notebook knows
            else:
                clashes += [
                    label(scan.value(key), key) if versions.has(key) else key for key in newer
                ]
        if clashes:
            raise messages.name_conflict(clashes)
        return accepted

    def names(self) -> tuple[list[Import], list[str]]:
        """The imports and the deletions to do: they too must not replace a value unseen. Raises
        `NameConflict`."""
        shipment, namespace = self._shipment, self._versions.namespace
        clashes = []
        left = set[str]()  # deletions not made: the cell binds the name
        for entry in shipment.imports:
            mine = namespace.get(entry.name)
            known = self._versions.entries.get(entry.name)
            seen = known is not None and known.version <= shipment.known.get(entry.name, 0)
            if mine is None or isinstance(mine, types.ModuleType) or seen:
                continue
            if shipment.keep_remote:
                self.kept.add(entry.name)
            elif entry.name not in shipment.force:
                clashes.append(entry.name)
        for name in shipment.deletes:
            known = self._versions.entries.get(name)
            if name not in namespace or known is None:
                continue
            self._versions.refresh([name])
            if known.version > shipment.known.get(name, 0):
                if name in shipment.optional:
                    left.add(name)
                    continue
                (self.kept.add if shipment.keep_remote else clashes.append)(name)
        if clashes:
            raise messages.name_conflict(clashes)
        imports = [entry for entry in shipment.imports if entry.name not in self.kept]
        return imports, [name for name in shipment.deletes if name not in self.kept | left]

    def _is_in_step(self, key: str) -> bool:
        """Whether the notebook has seen this side's present value."""
        entry = self._versions.entries.get(key)
        return entry is not None and entry.version == self._shipment.known.get(key, 0)

    def _holds(self, key: str, group: Group) -> bool:
        """Whether what the notebook sends is what this side has, unchanged."""
        entry = self._versions.entries.get(key)
        if entry is None or not self._versions.has(key):
            return False
        if entry.source == group.digest and entry.loaded == entry.version:
            return True
        same = entry.kind == "value" and entry.digest == group.digests[key]
        return same and len(group.keys) == 1

    def _came_from(self, key: str, group: Group) -> bool:
        """Whether this side's value grew out of this very group from this very notebook."""
        entry = self._versions.entries.get(key)
        if entry is None or not self._versions.has(key) or key in self._shipment.force:
            return False
        return entry.source == group.digest and entry.sender == self._shipment.sender

    def _is_newer(self, key: str, group: Group, scan: Scan) -> bool:
        """Whether this side has a value that the notebook has not seen."""
        if not self._versions.has(key):
            return False  # gone here, changed there: the change is what there is to keep
        entry = self._versions.entries.get(key)
        if entry is not None and entry.version <= self._shipment.known.get(key, 0):
            return False
        mine = scan.pickled.get(key)
        if mine is None or (entry is not None and entry.kind == "remote"):
            return True
        return mine.digest != group.digests[key]
