"""Which keys may have changed since they were last looked at, without looking at all of them.

    mentions of the cell ─► closure over what functions use ─► looked at ─► those that have changed
    ─► closure over shared references ─► looked at ─► … ─► Scan
                             └ small values are looked at in any case, while that takes no time

A cell changes an object only through a name. So what it may have changed is what its code mentions
(`mentions`) and what the notebook's functions among these mention in turn; and where one of these
has changed, whatever shares objects with it: by what was known before the cell, and by what is
found after it. One that is as it was, and shares the same objects as before, has changed nothing
that others share with it. A name that nobody has looked at is always looked at.

That argument has gaps, and each is closed by looking at more. Code that names hide (`exec`,
`%run`), threads, tasks and widgets that run beside the cells: everything. Objects reached through a
library's own state: what is found to share with them, matplotlib's figures, and all that is cheap.

Of a key that is not looked at only a `Look` is kept: no pickle, 8 bytes for each object it holds.
"""

from __future__ import annotations

import sys
import time
import types
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from mlcloud.kernel.mentions import EVERYTHING, used_by
from mlcloud.kernel.versions import Versions
from mlcloud.values import userdata
from mlcloud.values.groups import reached
from mlcloud.values.messages import class_id
from mlcloud.values.scan import Scan

ALL = frozenset({EVERYTHING})
HASHED_PER_S = 2e9  # bytes, about: what is looked at is hashed later, for the snapshot
CHEAP_S = 0.004  # what looking at untouched names may cost a cell, in all


@dataclass(frozen=True)
class Look:
    """What is remembered of a key."""

    ids: array[int]  # the objects it reaches, sorted
    uses: frozenset[str]  # names that its functions mention
    seconds: float  # that looking takes, hashing included
    group: frozenset[str]  # keys it shares objects with, and its classes
    draws: bool  # whether something of matplotlib is in it
    digest: str | None = None  # of its pickle; None: it was not hashed


class Tracking:
    """The looks at one namespace."""

    def __init__(self, versions: Versions, cheap_s: float = CHEAP_S) -> None:
        self._cheap_s = cheap_s
        self._versions = versions
        self._namespace = versions.namespace
        self._classes = versions.classes
        self._known: dict[str, Look] = {}
        self.active: set[str] = set()  # keys that the last look was about; EVERYTHING among them

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """Look at these next time in any case; None: at all."""
        for key in list(self._known) if keys is None else keys:
            self._known.pop(key, None)

    def look(self, mentioned: Collection[str] = ALL) -> Scan:
        """Scan what code that mentions these names may have changed, and what belongs to it."""
        scan = Scan(self._namespace, self._classes)
        present = self._present()
        gone = {key for key in self._known if key not in present and not self._is_class(key)}
        active = self._used({*mentioned, *gone})
        for key in gone:  # what it held, it may have changed before it went
            active |= self._known[key].group
        if EVERYTHING in active:
            active = present | {EVERYTHING}
        for key in gone:
            del self._known[key]
        fresh: dict[str, array[int]] = {}
        seconds: dict[str, float] = {}
        passive = (present - self._known.keys()) | self._cheap(active) | self._drawn()
        passive -= gone  # of whose groups others may still be
        while waiting := (active & present | passive) - fresh.keys():
            for key in waiting:
                began = time.perf_counter()
                scan.add([key])
                fresh[key] = _sorted(scan.ids(key))
                seconds[key] = time.perf_counter() - began
                if key in scan.pickled:
                    seconds[key] += scan.pickled[key].size / HASHED_PER_S
            passive |= {*scan.pickled, *scan.failed}  # classes that these reach
            working = scan.with_classes(waiting & active)
            active = self._used(active | used_by(scan.codes(working)))
            if EVERYTHING in active:
                active |= present
            if not present <= fresh.keys():
                changed = {key for key in waiting if self._may_have_changed(key, scan, fresh)}
                active |= self._sharing(scan, fresh, changed)
        self._remember(scan, fresh, seconds)
        self.active = active
        return scan

    def hashed(self, scan: Scan) -> None:
        """The values of this scan have been hashed: the next look tells by it what is as it was."""
        for key, look in list(self._known.items()):
            pickled = scan.pickled.get(key)
            if pickled is not None and look.digest is None and "digest" in vars(pickled):
                self._known[key] = replace(look, digest=pickled.digest)

    def _may_have_changed(self, key: str, scan: Scan, fresh: dict[str, array[int]]) -> bool:
        """Whether what others share with this key may be another than before.

        Not where it is as it was and still shares the same objects with them.
        """
        look, pickled, ids = self._known.get(key), scan.pickled.get(key), fresh[key]
        if look is None or look.digest is None or pickled is None:
            return True
        others = {
            name: other
            for name, other in self._known.items()
            if name not in fresh and (_overlap(look.ids, other.ids) or _overlap(ids, other.ids))
        }
        if not others and not look.group - fresh.keys():
            return False
        if pickled.size / HASHED_PER_S > sum(other.seconds for other in others.values()):
            return True  # to look at them takes less than to hash this
        if pickled.digest != look.digest:
            return True
        return any(_common(look.ids, o.ids) != _common(ids, o.ids) for o in others.values())

    def _is_class(self, key: str) -> bool:
        known_class = class_id(key)
        return known_class is not None and known_class in self._classes.by_id

    def _present(self) -> set[str]:
        """The user's names, and the classes that are shared whether a name leads to them or not."""
        names = {
            name
            for name, value in list(self._namespace.items())
            if not isinstance(value, types.ModuleType) and not userdata.is_internal(name, value)
        }
        return names | {key for key in self._versions.entries if self._is_class(key)}

    def _used(self, keys: Collection[str]) -> set[str]:
        """The keys, and what the functions among them are known to use."""

        def known(key: str) -> Collection[str]:
            look = self._known.get(key)
            return () if look is None else look.uses

        return reached(keys, known)

    def _cheap(self, active: set[str]) -> set[str]:
        """Keys that can be looked at in no time, with all they share, whatever the cell did."""
        costs: dict[frozenset[str], float] = {}
        for look in self._known.values():
            costs[look.group] = costs.get(look.group, 0.0) + look.seconds
        found, left = set[str](), self._cheap_s
        for group in sorted(costs, key=costs.__getitem__):
            left -= costs[group]
            if left < 0:
                break
            found |= group
        return found - active

    def _drawn(self) -> set[str]:
        """Keys with figures, if `plt.plot` can draw into one that no name of the cell leads to."""
        helpers = sys.modules.get("matplotlib._pylab_helpers")
        if helpers is None or not helpers.Gcf.figs:
            return set()
        return {key for key, look in self._known.items() if look.draws}

    def _sharing(self, scan: Scan, fresh: dict[str, array[int]], new: Iterable[str]) -> set[str]:
        """Keys not looked at that shared an object with these, or do now, however it came."""
        keys = list(new)
        ids = [_sorted(set[int]().union(*(scan.ids(key) for key in keys)))]
        known = [self._known[key] for key in keys if key in self._known]
        before = {name for look in known for name in look.group}
        ids += [look.ids for look in known]
        return {
            key
            for key, look in self._known.items()
            if key not in fresh and (key in before or any(_overlap(each, look.ids) for each in ids))
        }

    def _remember(
        self, scan: Scan, fresh: dict[str, array[int]], seconds: dict[str, float]
    ) -> None:
        groups: dict[str, frozenset[str]] = {}
        for group in scan.groups(fresh):
            whole = set(scan.with_classes(group))
            # Those that it shared with, and that were not looked at, share with it still.
            before = {
                name for key in group if key in self._known for name in self._known[key].group
            }
            whole.update(
                name
                for name in before - fresh.keys()
                if name in self._known
                and any(_overlap(fresh[key], self._known[name].ids) for key in group)
            )
            groups.update(dict.fromkeys(group, frozenset(whole)))
        for key, ids in fresh.items():
            pickled = scan.pickled.get(key)
            draws = pickled is not None and any(
                module.startswith("matplotlib.") for module in pickled.modules
            )
            uses = used_by(scan.codes([key]))
            self._known[key] = Look(ids, uses, seconds[key], groups[key], draws)


def _sorted(ids: set[int]) -> array[int]:
    numpy = sys.modules.get("numpy")
    if len(ids) < 1000 or numpy is None:
        return array("Q", sorted(ids))
    numbers = numpy.fromiter(ids, "u8", len(ids))
    numbers.sort()
    return array("Q", numbers.tobytes())


def _common(some: array[int], others: array[int]) -> frozenset[int]:
    """The numbers that two sorted arrays have in common."""
    if len(some) > len(others):
        some, others = others, some
    if len(some) > 64 and "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        mine, theirs = numpy.frombuffer(some, "u8"), numpy.frombuffer(others, "u8")
        found = numpy.intersect1d(mine, theirs, assume_unique=True)
        return frozenset(found.tolist())
    return frozenset(some).intersection(others)


def _overlap(some: array[int], others: array[int]) -> bool:
    """Whether two sorted arrays have a number in common."""
    if len(some) > len(others):
        some, others = others, some
    if not some or some[-1] < others[0] or others[-1] < some[0]:
        return False
    if len(some) > 64 and "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        mine, theirs = numpy.frombuffer(some, "u8"), numpy.frombuffer(others, "u8")
        at = numpy.searchsorted(theirs, mine)
        at[at == len(theirs)] = 0
        return bool((theirs[at] == mine).any())
    for number in some:
        at = bisect_left(others, number)
        if at < len(others) and others[at] == number:
            return True
    return False
