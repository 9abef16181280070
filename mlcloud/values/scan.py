"""Many names of one namespace at once: each pickled, grouped by what they share, packed to travel.

    scan = Scan(namespace, classes)
    scan.add(names)          each name's own pickle: its digest, the objects it reaches
    scan.groups(keys)        names that share objects
    scan.pack(groups)        one `Group` per group, ready for a message

Notebook classes get keys of their own (`messages.class_key`) as soon as a value reaches them, so an
instance's pickle only names its class, and a change to the class is a change of that key alone.
Classes may refer to each other in circles, so all that travel go in one pickle, loaded first.

Every pickle of a scan stays alive with it: ids are compared within one scan only.
"""

from __future__ import annotations

import gc
import itertools
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from blake3 import blake3

from mlcloud import errors
from mlcloud.values.digests import Known, whole
from mlcloud.values.groups import groups as group_names
from mlcloud.values.groups import reached
from mlcloud.values.immutable import is_immutable
from mlcloud.values.messages import Blob, Group, ResolveBlob, class_id, class_key, read
from mlcloud.values.owned import memory_of
from mlcloud.values.pickled import Pickled
from mlcloud.values.pickling import Ask, Enough, Resolve, dump, load, up_to
from mlcloud.values.reducers import Classes

REACH = 100_000  # objects looked at in a value that cannot be pickled
MOST_JOINED, MOST_IDS = 12, 200_000  # keys, and objects in them, to look at pair by pair
_OPAQUE = (type, types.ModuleType, types.FrameType)
# What the notebook's code may be in, and its attributes: frame and code.
_CODED: dict[type, tuple[str, str]] = {
    types.FunctionType: ("", "__code__"),
    types.GeneratorType: ("gi_frame", "gi_code"),
    types.CoroutineType: ("cr_frame", "cr_code"),
    types.AsyncGeneratorType: ("ag_frame", "ag_code"),
}
_ATOMS = frozenset({str, bytes, int, float, complex, bool, type(None), types.CodeType})


Joints = dict[str, str]  # other keys, and how they are joined


class Stopped(BaseException):
    """Somebody waits for who scans: what is done so far stays."""


class Scan:
    """One look at a namespace. `pickled` and `failed` are by key.

    `deferred`: keys that were not looked at, or not to their end, and the bytes they have at least.
    `known`: memory that was verified while it arrived, and need not be hashed again.
    `stop`: asked now and then while something is pickled; where it says so, `Stopped` is raised.
    """

    stop: Callable[[], bool] | None = None

    def __init__(
        self, namespace: dict[str, Any], classes: Classes, known: Known | None = None
    ) -> None:
        self.namespace = namespace
        self.classes = classes
        self.known = Known() if known is None else known
        self.pickled: dict[str, Pickled] = {}
        self.failed: dict[str, errors.NotPicklable] = {}
        self.deferred: dict[str, int] = {}
        self._reached: dict[str, set[int]] = {}
        self._codes: dict[str, list[types.CodeType]] = {}
        self._unstable: dict[str, bool] = {}

    def value(self, key: str) -> Any:
        """The name's value, or the class."""
        known_class = class_id(key)
        return self.namespace[key] if known_class is None else self.classes.by_id[known_class]

    def add(self, keys: Iterable[str], limit: int | None = None) -> None:
        """Pickle each of these, and the notebook classes they reach.

        Names with more than `limit` bytes are left, and `deferred`.
        """
        waiting = [key for key in keys if key not in self.pickled and key not in self.failed]
        while waiting:
            key = waiting.pop()
            try:
                pickled = self._alone(key, None if class_id(key) else limit)
            except Enough:
                self.deferred[key] = limit or 0
                continue
            except errors.NotPicklable as error:
                self.failed[key] = error
                continue
            self.pickled[key] = pickled
            for found in map(class_key, pickled.classes):
                if found not in self.pickled and found not in waiting:
                    waiting.append(found)

    def _alone(self, key: str, limit: int | None = None) -> Pickled:
        value = self.value(key)
        inline = (value,) if class_id(key) else ()
        return self._dump((value,), inline, label(value, key), limit)

    def _asker(self, limit: int | None) -> Ask | None:
        if limit is None and self.stop is None:
            return None
        within = None if limit is None else up_to(limit)

        def ask(size: int) -> None:
            if self.stop is not None and self.stop():
                raise Stopped
            if within is not None:
                within(size)

        return ask

    def is_unstable(self, key: str) -> bool:
        """Whether the value's pickle is another one each time, and so tells nothing of changes."""
        if key not in self._unstable:
            pickled, again = self.pickled[key], self._alone(key)
            sizes = [len(buffer) for buffer in pickled.buffers]
            same = again.payload == pickled.payload and sizes == [len(b) for b in again.buffers]
            self._unstable[key] = not same
        return self._unstable[key]

    def _dump(
        self,
        values: tuple[Any, ...],
        inline: Collection[type],
        name: str,
        limit: int | None = None,
    ) -> Pickled:
        pickled = dump(
            values,
            self.namespace,
            classes=self.classes,
            inline=inline,
            name=name,
            wrapped=len(values) == 1,
            ask=self._asker(limit),
        )
        pickled.known = self.known
        return pickled

    def with_classes(self, keys: Iterable[str]) -> set[str]:
        """The keys, and those of all the classes they reach."""

        def classes(key: str) -> Iterable[str]:
            return map(class_key, self.pickled[key].classes) if key in self.pickled else ()

        return reached(keys, classes)

    def ids(self, key: str) -> set[int]:
        """What the key reaches; for what cannot be pickled, what the garbage collector sees."""
        if key in self.pickled:
            return self.pickled[key].ids
        if key not in self._reached:
            codes = self._codes[key] = []
            self._reached[key] = reach(self.value(key), REACH, self.namespace, codes)
        return self._reached[key]

    def codes(self, keys: Iterable[str]) -> Iterator[types.CodeType]:
        """The code of the notebook's functions in these keys' values."""
        for key in keys:
            if key in self.pickled:
                yield from self.pickled[key].codes
            elif key in self.failed:
                self.ids(key)
                yield from self._codes[key]

    def mark(self, keys: Collection[str]) -> str | None:
        """A hash of a group: of each value, and of which objects they share; None: it is unknown.

        Equal marks, taken in one process, mean that the group would be packed to the same. It
        spares the packing, which pickles all of it once more.
        """
        ordered = sorted(keys)
        if any(key not in self.pickled or class_id(key) for key in ordered):
            return None
        digests = [self.pickled[key].digest for key in ordered]
        if len(ordered) == 1:
            return digests[0]
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        parts = [numpy.fromiter(self.pickled[key].reached, "u8") for key in ordered]
        every = numpy.concatenate(parts)
        owner = numpy.repeat(numpy.arange(len(parts)), [len(part) for part in parts])
        _, first, label = numpy.unique(every, return_index=True, return_inverse=True)
        several = numpy.unique(numpy.stack([label, owner]), axis=1)[0]
        shared = numpy.bincount(several, minlength=len(first)) > 1
        # Objects by their first place instead of their address: who else has them, and where.
        places = numpy.where(shared[label], first[label], -1)
        hasher = blake3(places.tobytes())
        for part in [*digests, *(repr(self.pickled[key].windows) for key in ordered)]:
            hasher.update(part.encode())
        return hasher.hexdigest()

    def joints(self, keys: Collection[str]) -> dict[str, Joints] | None:
        """For each key the others that it shares an object with, and a hash of the places that
        those objects have in both. None: too much to look at pair by pair.

        Of two values whose own pickles are as they were, equal hashes mean that they share what
        they shared: `x[0], y[0] = y[0], x[0]` with equal contents is seen here alone.
        """
        found: dict[str, Joints] = {key: {} for key in keys}
        if len(found) < 2:
            return found
        if len(found) > MOST_JOINED or sum(len(self.ids(key)) for key in found) > MOST_IDS:
            return None
        for one, other in itertools.combinations(sorted(found), 2):
            shared = self.ids(one) & self.ids(other)
            if shared:
                found[one][other] = found[other][one] = self._joint((one, other), shared)
        return found

    def _joint(self, pair: tuple[str, str], shared: set[int]) -> str:
        if any(key not in self.pickled for key in pair):
            return ""
        places: list[dict[int, int]] = []
        for key in pair:
            reached = enumerate(self.pickled[key].reached)
            # The last one counts where one comes several times: it is the same one each time.
            places.append({each: place for place, each in reached if each in shared})
        met = sorted((places[0].get(each, -1), places[1].get(each, -1)) for each in shared)
        windows = [self.pickled[key].windows for key in pair]
        return blake3(repr((met, windows)).encode()).hexdigest()

    def groups(self, keys: Iterable[str]) -> list[frozenset[str]]:
        """The keys, grouped by what they share."""
        ordered = list(keys)
        return group_names(ordered, {key: self.ids(key) for key in ordered})

    def pack(self, wanted: Iterable[Iterable[str]]) -> list[Group]:
        """One `Group` each, in the order they must be loaded in. Every key was added before."""
        with_class: list[str] = []
        others: list[list[str]] = []
        for keys in map(sorted, wanted):
            if any(map(class_id, keys)):
                with_class += keys
            else:
                others.append(keys)
        return [self._pack(keys) for keys in ([sorted(with_class)] if with_class else []) + others]

    def _pack(self, keys: list[str]) -> Group:
        if len(keys) == 1:
            pickled = self.pickled[keys[0]]
        else:
            values = tuple(self.value(key) for key in keys)
            inline = [self.value(key) for key in keys if class_id(key)]
            names = ", ".join(label(self.value(key), key) for key in keys)
            pickled = self._dump(values, inline, names)
        parts: list[bytes | memoryview] = [pickled.payload, *pickled.buffers]
        payload, *buffers = [
            Blob(whole(chunks), memoryview(data).nbytes, data, chunks)
            for chunks, data in zip(pickled.chunks, parts, strict=True)
        ]
        digests = {key: self.pickled[key].digest for key in keys}
        return Group(tuple(keys), payload, buffers, digests)


def label(value: Any, key: str) -> str:
    """A key as the user knows it."""
    return value.__qualname__ if class_id(key) else key


def unpack(
    group: Group,
    namespace: dict[str, Any],
    classes: Classes,
    *,
    blobs: ResolveBlob | None = None,
    refs: Resolve | None = None,
    known: Known | None = None,
) -> dict[str, Any]:
    """The group's values by key. Nothing is bound; a class that was known is updated in place.

    The memory of the buffers becomes the values' own; `known` learns what lies in it.
    """
    payload = bytes(read(group.payload, blobs))
    buffers = [_own(blob, blobs, known) for blob in group.buffers]
    values = load(payload, iter(buffers), namespace, resolve=refs, classes=classes, copy=False)
    return dict(zip(group.keys, values, strict=True))


def _own(blob: Blob, blobs: ResolveBlob | None, known: Known | None) -> memoryview | bytearray:
    """The blob's bytes in memory that a value may keep: copied, unless it was fetched into such."""
    data = read(blob, blobs)
    if blob.data is not None or memoryview(data).readonly or isinstance(data, bytes):
        return bytearray(data)
    if known is not None:
        known.add(data, blob.chunks)
    return data


def reach(
    value: Any,
    bound: int,
    namespace: dict[str, Any] | None = None,
    codes: list[types.CodeType] | None = None,
) -> set[int]:
    """The ids of up to `bound` objects that `value` refers to, found without pickling it.

    `codes` receives the code of the functions and generators of `namespace` among them.
    Who refers to the whole notebook (`namespace`, IPython) shares nothing in particular with it.
    """
    found: set[int] = set()
    seen: set[int] = set()
    waiting = [value]
    ipython = getattr(sys.modules.get("IPython.core.interactiveshell"), "InteractiveShell", ())
    while waiting and len(seen) < bound:
        obj = waiting.pop()
        # By its type alone: to look into a weak reference's proxy may raise.
        kind = type(obj)
        if kind in _ATOMS:
            continue
        if codes is not None and kind in _CODED and id(obj) not in seen:
            codes.extend(_code(obj, namespace))
        if issubclass(kind, types.FunctionType):
            found.add(id(obj))
            if id(obj) not in seen:  # not into its globals, which are the whole notebook
                seen.add(id(obj))
                waiting += [obj.__dict__, obj.__closure__, obj.__defaults__, obj.__kwdefaults__]
            continue
        if issubclass(kind, type) and obj.__module__ == "__main__" and id(obj) not in seen:
            seen.add(id(obj))
            waiting += [*vars(obj).values(), *obj.__bases__]
            continue
        if id(obj) in seen or issubclass(kind, _OPAQUE):
            continue
        if obj is namespace or issubclass(kind, ipython):
            continue
        if obj is sys.stdout or obj is sys.stderr:
            continue  # a kernel's stream leads to the kernel, and from there to every name
        seen.add(id(obj))
        if not is_immutable(type(obj)):
            found.add(id(obj))
            found.update(memory_of(obj))
        waiting.extend([each for each in gc.get_referents(obj) if type(each) not in _ATOMS])
    return found


def _code(obj: Any, namespace: dict[str, Any] | None) -> list[types.CodeType]:
    """The code that runs when `obj` is called or goes on, if it is the notebook's."""
    if type(obj) is types.FunctionType:
        return [obj.__code__] if obj.__globals__ is namespace else []
    frame, name = _CODED[type(obj)]
    held = getattr(obj, frame)
    return [getattr(obj, name)] if held and held.f_globals is namespace else []
