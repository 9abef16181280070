"""One value of a namespace to bytes, and back into another namespace.

    dump(value, namespace)  ─► Pickled(payload, buffers, digest, ids)
    load(payload, buffers, namespace) ─► value, whose functions see *that* namespace

It is cloudpickle (protocol 5, large buffers out of band) with the reducers of `reducers`, and with
four things written as a name instead of a value (`persistent_id`):

    ("globals",)               the namespace itself: never copied, always the receiver's
    ("classes",)               the receiver's `Classes`
    ("class", id)              a notebook class that travels in a pickle of its own
    ("ref", session, name, n)  a RemoteValue: the receiver puts the object itself there

`digest` says whether a value changed: it is the hash of the bytes, and an untouched value gives the
same bytes each time *in one process*. It is not a canonical hash: equal values in two processes may
differ (the order of a set, which strings are one object), so each side compares with its own
earlier dump only.

`ids` are the mutable objects reached and the addresses of array memory, by which `groups` finds
names that share something. They stay true while the `Pickled` lives, because it keeps the objects.
Arrays over one memory are written as views of one buffer. What is not kept: memory shared between a
torch tensor and a numpy array (each gets its own after `load`; they are still one group).
"""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import io
import pathlib
import pickle
import re
import sys
import types
import uuid
import weakref
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import Any

from blake3 import blake3
from cloudpickle import Pickler as CloudPickler

from mlcloud import errors
from mlcloud.values import reducers
from mlcloud.values.digests import Chunks, Known, whole
from mlcloud.values.reducers import Classes
from mlcloud.values.uses import annotations_used

Ref = tuple[str, str, int]
Resolve = Callable[[Ref], Any]

_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, tuple, list, set, frozenset, range, slice}
)
_BUILT_IN = sys.stdlib_module_names | {"__main__", "__mp_main__", "mlcloud", "cloudpickle"}
_ATOMS = frozenset({str, bytes, tuple, frozenset, type(None), bool, int, float, complex})
# Objects that cannot change, or whose identity is not the user's: sharing them binds no names.
_IMMUTABLE = (
    *(type(None), bool, int, float, complex, str, bytes, tuple, frozenset, range, slice, type),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType),
    *(types.ModuleType, types.MappingProxyType, types.GenericAlias, property, staticmethod),
    *(classmethod, enum.Enum, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(decimal.Decimal, uuid.UUID, pathlib.PurePath, re.Pattern, Classes),
)
_IMMUTABLE_BY_NAME = {
    "numpy": ("dtype", "generic", "ufunc"),
    "pandas": ("Index", "Timestamp", "Timedelta", "Interval", "Period"),
    "pandas.api.extensions": ("ExtensionDtype",),
    "torch": ("dtype", "device", "Size", "layout", "memory_format"),
}
_immutable_types: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
_class_owned_ids: weakref.WeakKeyDictionary[type, frozenset[int]] = weakref.WeakKeyDictionary()


def is_immutable(kind: type) -> bool:
    """Whether objects of this type never change, remembered per type."""
    verdict = _immutable_types.get(kind)
    if verdict is None and kind in (type(sys.stdout), type(sys.stderr)):
        verdict = _immutable_types[kind] = True  # travels by reference; what it holds is no value
    if verdict is None:
        known = list(_IMMUTABLE)
        for module_name, names in _IMMUTABLE_BY_NAME.items():
            if module := sys.modules.get(module_name):
                known += [found for name in names if (found := getattr(module, name, None))]
        by_reference = "function" in kind.__name__.lower()  # Cython's, numpy's dispatchers, …
        verdict = _immutable_types[kind] = by_reference or issubclass(kind, tuple(known))
    return verdict


def _class_owned(kind: type) -> frozenset[int]:
    """The ids of objects that belong to an importable class, and so to no name of the user.

    (A pandas object's state, for one, holds its class's `_metadata` list.)
    """
    owned = _class_owned_ids.get(kind)
    if owned is None:
        owned = frozenset(
            id(value)
            for base in kind.__mro__
            if base.__module__ != "__main__"
            for value in base.__dict__.values()
            if not is_immutable(type(value))
        )
        _class_owned_ids[kind] = owned
    return owned


_default_classes = Classes()  # gives a class the same id in every `dump` that names no registry


class Pickled:
    """A value as bytes. `digest` and `ids` are worked out when first asked for."""

    def __init__(
        self,
        payload: bytes,
        buffers: list[memoryview],
        *,
        keep: Any = None,
        visited: Iterable[int] = (),
        owners: Iterable[type] = (),
        memory: Iterable[int] = (),
        skip: Collection[int] = (),
        classes: dict[str, type] | None = None,
        devices: frozenset[str] = frozenset(),
        refs: frozenset[Ref] = frozenset(),
        codes: Iterable[types.CodeType] = (),
        annotated: Iterable[str] = (),
        kinds: Iterable[Any] = (),
    ) -> None:
        self.payload = payload
        self.buffers = buffers
        self.classes = classes or {}  # notebook classes named in here, which travel on their own
        self.devices = devices  # where its tensors live, other than "cpu"
        self.refs = refs  # the remote values named in here
        self.codes = tuple(codes)  # of the notebook's functions in here: what names they use
        self.annotated = frozenset(annotated)  # and those in their string annotations
        self.known = Known()  # what was hashed before; a scan gives all its pickles one
        self._kinds = kinds
        self._keep = keep  # holds the temporary objects too, so no id is used twice
        self._visited, self._owners = visited, owners
        self._memory, self._skip = memory, skip

    @property
    def size(self) -> int:
        """Bytes, payload and buffers."""
        return len(self.payload) + sum(buffer.nbytes for buffer in self.buffers)

    @functools.cached_property
    def chunks(self) -> list[Chunks]:
        """The names of the pieces of the payload and of each buffer (`values.digests`)."""
        return self.known.chunk_digests([self.payload, *self.buffers])

    @property
    def digests(self) -> list[str]:
        """The names of the payload and of each buffer."""
        return [whole(chunks) for chunks in self.chunks]

    @functools.cached_property
    def digest(self) -> str:
        """blake3 over all the parts."""
        digests = self.digests
        return digests[0] if len(digests) == 1 else blake3("".join(digests).encode()).hexdigest()

    @functools.cached_property
    def modules(self) -> frozenset[str]:
        """Where the types and functions in here are from: what must be importable to load it."""
        found = {getattr(kind, "__module__", None) for kind in self._kinds}
        return frozenset(
            module
            for module in found
            if isinstance(module, str) and module.partition(".")[0] not in _BUILT_IN
        )

    @property
    def reached(self) -> list[int]:
        """As `ids`, in the order in which pickle met them, and as often."""
        skip = set(self._skip)
        for kind in self._owners:
            skip |= _class_owned(kind)
        return [each for each in (*self._visited, *self._memory) if each not in skip]

    @property
    def windows(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """Where in their memory its arrays are: offset, shape and strides of each."""
        return [
            (array.__array_interface__["data"][0] - address, array.shape, array.strides)
            for address, over in self._keep.arrays.items()
            for array in over.values()
            if hasattr(array, "__array_interface__")
        ]

    @functools.cached_property
    def ids(self) -> set[int]:
        """The mutable objects this value reaches, and the addresses of its arrays' memory."""
        found = set(self._memory)
        found.update(self._visited)
        found.difference_update(self._skip)
        for kind in self._owners:
            found -= _class_owned(kind)
        return found


class ValuePickler(CloudPickler):  # type: ignore[misc]
    """cloudpickle with the notebook's namespace, classes, arrays and tensors treated as above."""

    def __init__(
        self,
        file: io.BytesIO,
        namespace: dict[str, Any],
        classes: Classes,
        inline: Collection[type] | None,
        remote_ref: Callable[[Any], Ref | None] | None,
        views: Collection[int],
        buffers: list[pickle.PickleBuffer],
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self.namespace, self.registry, self.inline = namespace, classes, inline
        self.remote_ref, self.views = remote_ref, views
        self.visited = array("Q")  # ids of objects that can change, some of them several times
        self.owners: set[type] = set()  # and the types of those that are not plain
        self.reached: dict[str, type] = {}
        self.devices: set[str] = set()
        self.refs: set[Ref] = set()
        self.codes: list[types.CodeType] = []
        self.annotated: set[str] = set()
        self.functions: dict[
            int, Any
        ] = {}  # the notebook's own: a dict's keys, a callback to remove
        self.kinds: dict[int, Any] = {}  # types, and functions by reference; not all can be hashed
        self.arrays: dict[int, dict[int, Any]] = {}  # memory address -> arrays over it
        self.frozen: dict[int, Any] = {}  # arrays inside immutable objects
        self._cells: set[int] = set()
        self._class_ids: dict[type, tuple[str, str] | None] = {}
        self._torch = "torch" in sys.modules
        keras = sys.modules.get("keras.src.optimizers.base_optimizer")
        self._optimizer = getattr(keras, "BaseOptimizer", ())

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in _PLAIN:
            if kind is list or kind is set:
                self.visited.append(id(obj))
            return None
        if kind is dict:
            if obj is self.namespace:
                return ("globals",)
            self.visited.append(id(obj))
            return None
        if kind is Classes:
            return ("classes",) if obj is self.registry else None
        if isinstance(obj, type):
            return self._class_id(obj)
        ref = getattr(kind, "__mlcloud_ref__", None)
        if ref is not None:
            self.refs.add(obj.__mlcloud_ref__)
            return ("ref", *obj.__mlcloud_ref__)
        if self.remote_ref is not None and (found := self.remote_ref(obj)) is not None:
            return ("ref", *found)
        if not is_immutable(kind):
            self.visited.append(id(obj))
            self.owners.add(kind)
        return None

    def _class_id(self, cls: type) -> tuple[str, str] | None:
        """The name of a class that is not to be written here."""
        if self.inline is None or cls in self.inline:
            return None
        if cls not in self._class_ids:
            found = None
            if reducers.is_notebook_class(cls) and reducers.class_parts(cls, self.registry):
                class_id = self.registry.id_of(cls)
                self.reached[class_id] = cls
                found = ("class", class_id)
            self._class_ids[cls] = found  # one tuple per class: pickle's memo then shortens it
        return self._class_ids[cls]

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        self.kinds[id(kind)] = kind
        if kind is types.FunctionType:
            if obj.__globals__ is self.namespace:
                self._cells.update(map(id, obj.__closure__ or ()))
                self.functions[id(obj)] = obj
                self.codes.append(obj.__code__)
                self.annotated |= annotations_used(obj)
                return reducers.function_parts(obj)
            self.kinds[id(obj)] = obj
            return reducers.dispatch_parts(obj) or super().reducer_override(obj)
        if kind is types.CellType:
            return (reducers.empty_cell, ()) if id(obj) in self._cells else reducers.cell_parts(obj)
        if isinstance(obj, type):
            self.kinds[id(obj)] = obj
            parts = None
            if reducers.is_notebook_class(obj):
                parts = reducers.class_parts(obj, self.registry)
                self.annotated |= annotations_used(obj)
            return parts or super().reducer_override(obj)
        if issubclass(kind, (list, dict)) and (parts := reducers.container_parts(obj)):
            return parts
        if kind is types.GeneratorType and obj.gi_frame is None:
            return reducers.build_exhausted, (obj.__name__, obj.__qualname__)
        if kind.__module__ in ("builtins", self.namespace.get("__name__")):
            return NotImplemented
        if kind is functools._lru_cache_wrapper:
            wrapped = obj.__wrapped__
            if getattr(wrapped, "__globals__", None) is self.namespace:
                return reducers.cached_parts(obj)
        elif kind is functools.cached_property:
            return reducers.cached_property_parts(obj)
        elif kind.__module__ == "dataclasses":
            return reducers.sentinel_parts(obj) or super().reducer_override(obj)
        elif hasattr(kind, "__array_interface__"):
            return self._array(obj)
        elif obj is sys.stdout or obj is sys.stderr:
            # A kernel's own streams, which tqdm and loggers hold on to: there it is that side's.
            return (getattr, (sys, "stdout" if obj is sys.stdout else "stderr"))
        elif kind in reducers.FILES and obj is not sys.stdin and obj.closed:
            return reducers.closed_parts(obj)
        elif kind is io.TextIOWrapper and obj is not sys.stdin:
            # cloudpickle would send a copy of the contents, which is no longer that file.
            raise pickle.PicklingError("it is an open file")
        elif self._torch and kind.__name__ == "UntypedStorage":
            self._note(obj.data_ptr(), obj)
            if obj.device.type != "cpu":
                self.devices.add(str(obj.device))
            return reducers.storage_parts(obj)
        elif self._torch and kind.__name__ == "TypedStorage":
            return reducers.typed_storage_parts(obj)
        elif kind.__module__ == "matplotlib.cbook" and kind.__name__ == "CallbackRegistry":
            return reducers.callbacks_parts(obj)
        elif isinstance(obj, self._optimizer):
            if obj.built:
                return reducers.optimizer_parts(obj)
        elif str(kind.__module__).startswith("pandas."):  # it may be None
            if is_immutable(kind):
                data = getattr(obj, "_data", None)
                self.frozen[id(data)] = data
            elif kind.__name__ == "BlockManager":
                # Which columns are where: frames made from one another have these arrays in common,
                # and nobody writes to them.
                placed = (block.mgr_locs.indexer for block in obj.blocks)
                self.frozen.update((id(where), where) for where in placed)
            elif "_cache" in getattr(obj, "__dict__", ()):
                return reducers.uncached_parts(obj)
        return NotImplemented

    def _array(self, array: Any) -> Any:
        """Note whose memory an array uses; write it as a view where that memory is shared."""
        if not isinstance(array, sys.modules["numpy"].ndarray):
            return NotImplemented
        if array.nbytes and id(array) not in self.frozen:
            owner = reducers.array_owner(array)
            self._note(reducers.array_memory(owner), array)
            if id(owner) in self.views and array is not owner and _may_be_window(array, owner):
                return reducers.view_parts(array, owner)
        return reducers.texts_parts(array) or NotImplemented

    def _note(self, address: int, obj: Any) -> None:
        if address:
            self.arrays.setdefault(address, {})[id(obj)] = obj

    def shared_owners(self) -> set[int]:
        """The ids of arrays whose memory more than one array of this pickle uses."""
        found: set[int] = set()
        for over in self.arrays.values():
            arrays = [array for array in over.values() if hasattr(array, "__array_interface__")]
            if len(arrays) > 1:
                found.update(id(reducers.array_owner(array)) for array in arrays)
        return found


def _may_be_window(array: Any, owner: Any) -> bool:
    """Whether `view_parts` can say what this array is."""
    ndarray = sys.modules["numpy"].ndarray
    contiguous = owner.flags.c_contiguous or owner.flags.f_contiguous
    plain = type(array) is ndarray and type(owner) is ndarray
    return bool(plain and contiguous and not array.dtype.hasobject and not owner.dtype.hasobject)


def dump(
    value: Any,
    namespace: dict[str, Any],
    *,
    remote_ref: Callable[[Any], Ref | None] | None = None,
    classes: Classes | None = None,
    inline: Collection[type] | None = None,
    name: str = "value",
    wrapped: bool = False,
) -> Pickled:
    """Pickle `value`, whose functions belong to `namespace`.

    `classes` remembers notebook classes across dumps. `inline` names the notebook classes to write
    here; the others are only named, and listed in the result's `classes`; None writes them all.
    `remote_ref` may replace any object by a reference (session, name, binding).
    Raises `NotPicklable`, which says where in `name` the trouble is; with `wrapped`, `name` is the
    only item of the tuple `value`.
    """
    try:
        return _dump(value, namespace, classes or _default_classes, inline, remote_ref)
    except errors.NotPicklable:
        raise
    except Exception as reason:
        from mlcloud.values import blame

        named = value[0] if wrapped else value
        raise blame.not_picklable(named, namespace, name, reason) from reason


def _dump(
    value: Any,
    namespace: dict[str, Any],
    classes: Classes,
    inline: Collection[type] | None,
    remote_ref: Callable[[Any], Ref | None] | None,
) -> Pickled:
    views: set[int] = set()
    while True:
        file, parts = io.BytesIO(), list[pickle.PickleBuffer]()
        pickler = ValuePickler(file, namespace, classes, inline, remote_ref, views, parts)
        pickler.dump(value)
        found = pickler.shared_owners()
        if found <= views:
            break
        views |= found  # once more, now that we know which arrays share memory
    return Pickled(
        file.getvalue(),
        [part.raw() for part in parts],
        keep=pickler,
        visited=pickler.visited,
        owners=pickler.owners,
        memory=[*pickler.arrays, *pickler.functions],
        skip=pickler.frozen,
        classes=pickler.reached,
        devices=frozenset(pickler.devices),
        refs=frozenset(pickler.refs),
        codes=pickler.codes,
        annotated=pickler.annotated,
        kinds=pickler.kinds.values(),
    )


class _Unpickler(pickle.Unpickler):
    """Puts the receiver's own objects where the pickle has names."""

    def __init__(
        self,
        payload: bytes | memoryview,
        buffers: Iterable[Any],
        namespace: dict[str, Any],
        classes: Classes,
        resolve: Resolve | None,
    ) -> None:
        super().__init__(io.BytesIO(payload), buffers=buffers)
        self.namespace, self.registry, self.resolve = namespace, classes, resolve

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("globals",):
                return self.namespace
            case ("classes",):
                return self.registry
            case ("class", class_id) if class_id in self.registry.by_id:
                return self.registry.by_id[class_id]
            case ("ref", session, name, binding) if self.resolve is not None:
                return self.resolve((session, name, binding))
        raise pickle.UnpicklingError(f"this side does not know what {pid!r} is")


def load(
    payload: bytes | memoryview,
    buffers: Iterable[Any],
    namespace: dict[str, Any],
    *,
    resolve: Resolve | None = None,
    classes: Classes | None = None,
    copy: bool = True,
) -> Any:
    """The value again, bound to `namespace`. The buffers are copied: the value owns its memory.

    `resolve` turns a reference (session, name, binding) into the object. `copy=False`: the buffers
    are writable memory that nobody else has, and become the value's.
    """
    own = [bytearray(buffer) for buffer in buffers] if copy else buffers
    return _Unpickler(payload, own, namespace, classes or Classes(), resolve).load()
