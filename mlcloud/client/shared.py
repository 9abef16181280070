"""The names that notebook and session share, as they were when both sides were last equal.

For each shared key the notebook's side remembers the digest of its *own* pickle, and the version of
the session's value, at the moment both were equal:

    digest now == digest then, version newer   changed there        it comes back
    digest differs,            version same    changed here         it ships, when a cell reads it
    digest differs,            version newer   changed on both      NameConflict before the cell

"Version newer" is seen here when a `Return` could not be applied (then `missed` holds it), else by
the session when the shipment arrives. `selection` reads this record before a cell; `shipping`
writes it after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mlcloud.client import frontend
from mlcloud.client.remote_value import RemoteValue
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Joints, Scan


@dataclass
class Shared:
    """One key as it was when both sides were equal."""

    version: int
    kind: str  # value, remote, module
    digest: str | None = None  # of this side's own dump
    group: frozenset[str] | None = None  # names it shared objects with; None: not looked at yet
    joints: Joints | None = None  # those of them that it does share with; None: not looked at
    tracked: bool = False  # the session can tell when the name is bound anew, whatever to
    since: str = ""  # when both became equal: this notebook's cell, or the time


def moment() -> str:
    """What the user calls now: `In[5]`, or the time where cells have no numbers."""
    cell = frontend.cell()
    if cell is not None and cell.count is not None:
        return f"In[{cell.count}]"
    return datetime.now().strftime("%H:%M:%S")


def is_tracked(value: Any) -> bool:
    """Whether the session refers to this weakly, and so knows another object from it."""
    return type(value).__weakrefoffset__ != 0


class SharedNames:
    """The notebook's namespace, and what of it the session `session_id` has."""

    def __init__(
        self, namespace: dict[str, Any], session_id: str, ancestors: Iterable[str] = ()
    ) -> None:
        self.namespace = namespace
        self.session_id = session_id
        self.own = {session_id, *ancestors}  # whose RemoteValues stand for this session's objects
        self.classes = Classes()
        self.entries: dict[str, Shared] = {}
        self.missed: dict[str, int] = {}  # versions that could not be applied here

    def clear(self) -> None:
        """Nothing is shared any more."""
        self.entries.clear()
        self.missed.clear()

    def version(self, key: str) -> int:
        """The session's version at the time both were equal; 0 if they never were."""
        shared = self.entries.get(key)
        return shared.version if shared else 0

    def is_newer(self, key: str) -> bool:
        """Whether the session has a value that could not be applied here."""
        return self.missed.get(key, 0) > self.version(key)

    def is_handle(self, name: str, value: Any) -> bool:
        """Whether the name holds the RemoteValue of this very name."""
        if type(value) is not RemoteValue:
            return False
        session, remote, _ = value.__mlcloud_ref__
        return session in self.own and remote == name

    def put(self, key: str, shared: Shared) -> None:
        """Both sides are equal in this key; those it shared objects with before know it no more."""
        old = self.entries.get(key)
        if old is not None and old.group is not None:
            for other in old.group - (shared.group or frozenset()) - {key}:
                entry = self.entries.get(other)
                if entry is not None and entry.group is not None:
                    entry.group -= {key}
        shared.since = shared.since or moment()
        self.entries[key] = shared

    def forget(self, key: str) -> None:
        """The key is shared no more."""
        if key in self.entries:
            self.put(key, Shared(0, "gone"))
            del self.entries[key]

    def _is_as_it_was(self, key: str, scan: Scan) -> bool:
        shared, pickled = self.entries.get(key), scan.pickled.get(key)
        return shared is not None and pickled is not None and shared.digest == pickled.digest

    def changed(self, group: frozenset[str], scan: Scan) -> bool:
        """Whether the session does not have this group as it is now."""
        for key in group:
            shared = self.entries.get(key)
            if shared is None or shared.kind != "value":
                return True
            if shared.digest != scan.pickled[key].digest:
                return True
            if shared.group is None:
                continue
            if not group <= shared.group:
                return True  # two names that were apart now share an object
            if any(self._is_as_it_was(other, scan) for other in shared.group - group):
                return True  # two names that shared an object are apart
        joints = scan.joints(group)
        if joints is not None and any(self._is_turned(key, joints[key]) for key in group):
            return True  # they share other objects than they did, with the same contents
        for key in group:
            self.entries[key].group = group
            self.entries[key].joints = None if joints is None else joints[key]
        return False

    def _is_turned(self, key: str, now: Joints) -> bool:
        shared = self.entries[key]
        if shared.joints is None or shared.group is None:
            return False
        return any(shared.joints.get(other) != now.get(other) for other in shared.group)
