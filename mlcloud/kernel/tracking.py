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

**Later.** What does not go back to the notebook, and takes long to look at, need not be looked at
before a cell's end is told (`Later`): it is `deferred`, with all that it shared with so far. Before
a snapshot everything is looked at that cells since the last one may have changed. That all these
cells' changes are found then, also where cells had run in between: a cell reaches an object of a
key first by a name that led to it before; that name, and what it shared with, was active then, and
is looked at again.
"""

from __future__ import annotations

import sys
import time
import types
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from mlcloud.kernel.mentions import EVERYTHING, used_by
from mlcloud.kernel.versions import Versions
from mlcloud.values import userdata
from mlcloud.values.groups import reached
from mlcloud.values.messages import class_id
from mlcloud.values.scan import Scan

ALL = frozenset({EVERYTHING})
HASHED_PER_S = 2e9  # bytes, about: what is looked at is hashed later, for the snapshot
CHEAP_S = 0.004  # what looking at untouched names may cost a cell, in all
DEFER_S = 0.001  # what takes less is looked at at once
UNKNOWN_S = 0.1  # that looking takes at something large that nobody has looked at yet, about


@dataclass(frozen=True)
class Look:
    """What is remembered of a key."""

    ids: array[int]  # the objects it reaches, sorted
    uses: frozenset[str]  # names that its functions mention
    seconds: float  # that looking takes, hashing included
    group: frozenset[str]  # keys it shares objects with, and its classes
    draws: bool  # whether something of matplotlib is in it
    size: int  # bytes of its pickle
    digest: str | None = None  # of its pickle; None: it was not hashed


@dataclass(frozen=True)
class Later:
    """What may be looked at later, since it stays in the session."""

    stays: Callable[[str], bool]  # the notebook has no value of it, and gets none
    is_new: Callable[[str], bool]  # it gets a value, unless there is more than
    limit: int  # bytes of it
    wanted: Collection[str] = ()  # it gets these whatever their size


@dataclass
class _Walk:
    """One look, as far as it has come."""

    scan: Scan
    active: set[str]
    passive: set[str]
    gone: set[str]
    fresh: dict[str, array[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Tracking:
    """The looks at one namespace."""

    def __init__(self, versions: Versions, cheap_s: float = CHEAP_S) -> None:
        self._cheap_s = cheap_s
        self._versions = versions
        self._namespace = versions.namespace
        self._classes = versions.classes
        self._known: dict[str, Look] = {}
        self._walk: _Walk | None = None
        self._came: frozenset[str] = frozenset()
        self.active: set[str] = set()  # keys that the last look was about; EVERYTHING among them

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """Look at these next time in any case; None: at all."""
        for key in list(self._known) if keys is None else keys:
            self._known.pop(key, None)

    def came(self, uses: frozenset[str]) -> None:
        """Functions that use these names have been brought in for the cell that runs next."""
        self._came |= uses

    def look(
        self,
        mentioned: Collection[str] = ALL,
        later: Later | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Scan:
        """Scan what code that mentions these names may have changed, and what belongs to it.

        `later`: what need not be looked at now. `stop`: see `Scan`.
        """
        scan = Scan(self._namespace, self._classes)
        scan.stop = stop
        present = self._present()
        gone = {key for key in self._known if key not in present and not self._is_class(key)}
        active = self._used({*mentioned, *gone, *self._came})
        self._came = frozenset()
        for key in gone:  # what it held, it may have changed before it went
            active |= self._known[key].group
        if EVERYTHING in active:
            active = present | {EVERYTHING}
        passive = (present - self._known.keys()) | self._cheap(active) | self._drawn()
        self._walk = _Walk(scan, active, passive - gone, gone)  # of whose groups others may be yet
        self._go(self._walk, present, later)
        return scan

    def complete(
        self,
        scan: Scan,
        active: Collection[str],
        passive: Collection[str],
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """Look at what the last scan deferred, and at these. Nothing has run since."""
        walk, present = self._walk, self._present()
        assert walk is not None
        assert walk.scan is scan
        scan.stop = stop
        walk.active = self._used({*walk.active, *active})
        walk.passive |= set(passive)
        walk.passive = {key for key in walk.passive if key in present or self._is_class(key)}
        self._go(walk, present, None)

    def _go(self, walk: _Walk, present: set[str], later: Later | None) -> None:
        scan, fresh = walk.scan, walk.fresh
        scan.deferred.clear()
        self.active = walk.active
        while waiting := (
            (walk.active & present | walk.passive) - fresh.keys() - scan.deferred.keys()
        ):
            for key in waiting:
                self._see(key, walk, later)
            waiting -= scan.deferred.keys()
            walk.passive |= {*scan.pickled, *scan.failed}  # classes that these reach
            for key in scan.deferred.keys() & walk.active & self._known.keys():
                walk.active |= self._known[key].group
            working = scan.with_classes(waiting & walk.active)
            walk.active = self._used(walk.active | used_by(scan.codes(working)))
            if EVERYTHING in walk.active:
                walk.active |= present
            if not present <= fresh.keys():
                changed = {key for key in waiting if self._may_have_changed(key, scan, fresh)}
                walk.active |= self._sharing(scan, fresh, changed)
            self.active = walk.active
        for key in walk.gone & self._known.keys():
            del self._known[key]
        self._remember(scan, fresh, walk.seconds)

    def _see(self, key: str, walk: _Walk, later: Later | None) -> None:
        scan, known, limit = walk.scan, self._known.get(key), None
        if later is not None and key not in later.wanted and not self._is_class(key):
            if later.is_new(key):
                limit = later.limit
            elif later.stays(key) and (known is None or known.seconds > DEFER_S):
                scan.deferred[key] = later.limit if known is None else known.size
                return
        began = time.perf_counter()
        scan.add([key], limit)
        if key in scan.deferred:
            return
        walk.fresh[key] = _sorted(scan.ids(key))
        walk.seconds[key] = time.perf_counter() - began
        if key in scan.pickled:
            walk.seconds[key] += scan.pickled[key].size / HASHED_PER_S

    def cost(self, keys: Iterable[str]) -> float:
        """Seconds that it takes to look at these, about."""
        found = 0.0
        for key in {*self._known} if EVERYTHING in keys else set(keys):
            look = self._known.get(key)
            if look is not None:
                found += look.seconds
            elif key in self._namespace:
                found += UNKNOWN_S
        return found

    def size(self, key: str) -> int | None:
        """Bytes of its pickle when it was last looked at."""
        look = self._known.get(key)
        return None if look is None else look.size

    def sharing(self, key: str) -> frozenset[str]:
        """The keys it shares objects with, as far as is known."""
        look = self._known.get(key)
        return frozenset() if look is None else look.group

    def let_go(self) -> None:
        """The values of the last scan may change, or go."""
        self._walk = None

    def hashed(self, scan: Scan) -> None:
        """The values of this scan have been hashed: the next look tells by it what is as it was."""
        self._walk = None
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
            size = 0 if pickled is None else pickled.size
            self._known[key] = Look(ids, uses, seconds[key], groups[key], draws, size)


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
