"""Training state to typed JSON and blobs, and back. No pickle: what is read can run no code.

    state ── encode ──► tree   typed JSON: the shape of the state, its scalars, and a number for
                               each tensor or array
                   └──► blobs  the bytes of tensors, arrays and long strings, by that number
    tree + blobs ── decode ──► plain data, with `ObjectState` where an object stood

Objects are replaced by their state, at any depth (`objects`): what has `state_dict()` and
`load_state_dict()`, generators, fitted estimators, dataclasses, members of enums. JSON's own null,
booleans, whole numbers, finite floats, strings and lists stand for themselves; everything else is
an object with a tag under "$" (`_TAGS` below). Floats come back bit for bit: JSON's shortest
decimal form is exact for finite ones, the others are kept as hex. Dicts are lists of pairs, so that
keys keep their type and order (optimizers use whole numbers as keys).

Bytes are taken when the blob is written, not when it is found: a state on a GPU is copied to the
host one tensor at a time. Tensors that are the same memory (tied weights) are one blob.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import arrays, estimators, objects, randomness, scalars
from mlcloud.checkpoint.arrays import Blob
from mlcloud.store.manifest import canonical

#: Strings and bytes longer than this become blobs.
LONG = 4096
#: Nesting that JSON readers of any language take, and no training state needs.
MAX_DEPTH = 100

_SMALL_INT = 2**53  # beyond this, JSON readers of other languages round
_FACTORIES: dict[str, Callable[[], Any] | None] = {
    "none": None,
    "list": list,
    "dict": dict,
    "set": set,
    "int": int,
    "float": float,
    "str": str,
    "odict": OrderedDict,
}


@dataclass
class ObjectState:
    """The state of an object that is restored in place: `how` it was asked for, and the state.

    `made` is for `restore`: what it made of the state before it changes anything.
    """

    how: str
    state: Any
    made: Any = field(default=None, compare=False, repr=False)


class Encoder:
    """Encodes trees that share their blobs. Keeps what it refers to alive until it is written."""

    def __init__(self) -> None:
        self.blobs: list[Blob] = []
        self._seen: dict[tuple[Any, ...], int] = {}
        self._open: set[int] = set()
        self._frozen: set[int] = set()
        self._part = ""

    def encode(self, value: Any, path: str) -> Any:
        """JSON for a value. Raises NotCheckpointable, naming the place below `path`."""
        if not self._open:
            self._part = path
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_SMALL_INT < value < _SMALL_INT else {"$": "int", "v": hex(value)}
        if kind is float:
            if math.isfinite(value):
                return value
            return {"$": "float", "v": struct.pack(">d", value).hex()}
        if kind is str:
            if len(value) <= LONG:
                return value
            return {"$": "str", "at": self._raw(value.encode("utf-8", "surrogatepass"))}
        if kind in (bytes, bytearray):
            tag = {"$": kind.__name__}
            if len(value) <= LONG:
                return {**tag, "v": base64.b64encode(value).decode()}
            return {**tag, "at": self._raw(bytes(value))}
        if kind is complex:
            return {"$": "complex", "v": [struct.pack(">dd", value.real, value.imag).hex()]}
        if id(value) in self._open:
            raise _refuse(path, value, "contains itself")
        if len(self._open) >= MAX_DEPTH:
            raise _refuse(path, value, f"is nested more than {MAX_DEPTH} levels deep")
        self._open.add(id(value))
        try:
            return self._compound(value, path)
        finally:
            self._open.discard(id(value))

    def _compound(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind is list:
            return self._items(value, path)
        if kind is tuple:
            return {"$": "tuple", "v": self._items(value, path)}
        if issubclass(kind, tuple) and kind.__bases__ == (tuple,) and hasattr(kind, "_fields"):
            names = {"$": "named", "name": kind.__name__, "fields": list(kind._fields)}
            return {**names, "v": self._items(value, path)}
        if kind is deque:
            return {"$": "deque", "max": value.maxlen, "v": self._items(value, path)}
        if kind in (set, frozenset):
            # Sets have no order; one spelling makes equal states equal bytes.
            return {"$": kind.__name__, "v": sorted(self._items(value, path), key=canonical)}
        if kind is dict:
            return {"$": "dict", "v": self._pairs(value, path)}
        if kind is Counter:
            return {"$": "counter", "v": self._pairs(value, path)}
        if kind is OrderedDict:
            node: dict[str, Any] = {"$": "odict", "v": self._pairs(value, path)}
            # torch keeps the versions of modules here; load_state_dict uses them.
            metadata = getattr(value, "_metadata", None)
            if metadata is not None:
                node["meta"] = self.encode(metadata, path + "._metadata")
            return node
        if kind is defaultdict:
            for name, factory in _FACTORIES.items():
                if value.default_factory is factory:
                    return {"$": "ddict", "of": name, "v": self._pairs(value, path)}
            raise _refuse(path, value, f"has the default_factory {value.default_factory!r}")

        def refuse(why: str) -> errors.NotCheckpointable:
            return _refuse(path, value, why)

        array = arrays.encode(value, self._blob, refuse)
        if array is not None:
            return array
        small = scalars.encode(value, refuse)
        if small is not None:
            return small
        how = objects.how_of(value)
        if how is not None:
            return {"$": "object", "how": how, "v": self._object(value, how, path, refuse)}
        if kind.__module__.startswith("pandas."):
            raise _refuse(path, value, "is pandas' (save .to_numpy() or .to_dict('list') of it)")
        raise _refuse(path, value, "has no form that can be saved safely")

    def _object(self, value: Any, how: str, path: str, refuse: arrays.Refuse) -> Any:
        if how == "state_dict":
            self._frozen |= arrays.frozen(value)
            return self.encode(value.state_dict(), f"{path}.state_dict()")
        kind = type(value).__qualname__
        if how == "dataclass":
            fields = [
                [name, self.encode(each, f"{path}.{name}")]
                for name, each in objects.fields(value).items()
            ]
            pairs = [["class", kind], ["fields", {"$": "dict", "v": fields}]]
            return {"$": "dict", "v": pairs}
        if how == "enum":
            state: Any = {"class": kind, "name": value.name, "value": value.value}
        elif how in estimators.KINDS:
            state = estimators.state_of(value, how, refuse)
        else:
            state = randomness.state_of(value, how)
        return self.encode(state, path)

    def _items(self, values: Iterable[Any], path: str) -> list[Any]:
        return [self.encode(value, f"{path}[{i}]") for i, value in enumerate(values)]

    def _pairs(self, values: dict[Any, Any], path: str) -> list[Any]:
        pairs = []
        for key, value in values.items():
            if not _is_key(key):
                raise _refuse(
                    path, key, "is a key, and only plain scalars and tuples of them can be"
                )
            below = f"{path}[{_spell(key)}]"
            if path == "state":  # an entry of it; arrays that are entries themselves lie together
                self._part = path if arrays.is_array(value) else below
            pairs.append([self.encode(key, below), self.encode(value, below)])
        return pairs

    def _raw(self, data: bytes) -> int:
        return self._blob(None, Blob(len(data), lambda: memoryview(data)))

    def _blob(self, key: tuple[Any, ...] | None, blob: Blob) -> int:
        """The number of a blob; one number for one `key`."""
        if key is not None and key in self._seen:
            return self._seen[key]
        still = key is not None and key[1] in self._frozen
        blob.group = f"{self._part} frozen" if still else self._part
        self.blobs.append(blob)
        number = len(self.blobs) - 1
        if key is not None:
            self._seen[key] = number
        return number


class Decoder:
    """Decodes trees. `blob(number)` gives writable memory that nobody else uses."""

    def __init__(self, blob: Callable[[int], memoryview]) -> None:
        self._blob = blob
        self._made: dict[tuple[Any, ...], Any] = {}

    def decode(self, node: Any) -> Any:
        """The value. Raises Damaged for a tree that `Encoder` does not write."""
        try:
            return self._decode(node)
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
            RuntimeError,
            struct.error,
            binascii.Error,
        ) as error:
            raise errors.Damaged(
                f"the checkpoint's tree cannot be read: {type(error).__name__}: {error}"
            ) from error

    def _decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        tag = node["$"]
        if tag in ("tensor", "array"):
            # Same memory when saved, same object when loaded.
            key = (tag, node["at"], str(node["dtype"]), tuple(node["shape"]))
            if key not in self._made:
                self._made[key] = arrays.decode(node, self._blob(node["at"]))
            return self._made[key]
        if tag in ("numpy", "npdtype", "size", "dtype", "device", "lazy"):
            return arrays.decode(node, None)
        if tag == "sparse":
            return arrays.decode_sparse(node, [self._decode(part) for part in node["parts"]])
        if tag in scalars.TAGS:
            return scalars.decode(node)
        return _TAGS[tag](self, node)

    def _data(self, node: dict[str, Any]) -> bytes:
        if "at" in node:
            return bytes(self._blob(node["at"]))
        return base64.b64decode(node["v"], validate=True)

    def _list(self, node: dict[str, Any]) -> list[Any]:
        return [self._decode(item) for item in node["v"]]

    def _named(self, node: dict[str, Any]) -> Any:
        return _namedtuple(node["name"], tuple(node["fields"]))._make(self._list(node))

    def _dict(self, node: dict[str, Any]) -> dict[Any, Any]:
        return {self._decode(key): self._decode(value) for key, value in node["v"]}

    def _odict(self, node: dict[str, Any]) -> OrderedDict[Any, Any]:
        made = OrderedDict(self._dict(node))
        if "meta" in node:
            made._metadata = self._decode(node["meta"])  # type: ignore[attr-defined]
        return made


_TAGS: dict[str, Callable[[Decoder, dict[str, Any]], Any]] = {
    "int": lambda self, node: int(node["v"], 16),
    "float": lambda self, node: struct.unpack(">d", bytes.fromhex(node["v"]))[0],
    "complex": lambda self, node: complex(*struct.unpack(">dd", bytes.fromhex(node["v"][0]))),
    "str": lambda self, node: self._data(node).decode("utf-8", "surrogatepass"),
    "bytes": lambda self, node: self._data(node),
    "bytearray": lambda self, node: bytearray(self._data(node)),
    "tuple": lambda self, node: tuple(self._list(node)),
    "named": Decoder._named,
    "deque": lambda self, node: deque(self._list(node), node["max"]),
    "set": lambda self, node: set(self._list(node)),
    "frozenset": lambda self, node: frozenset(self._list(node)),
    "dict": Decoder._dict,
    "odict": Decoder._odict,
    "counter": lambda self, node: Counter(self._dict(node)),
    "ddict": lambda self, node: defaultdict(_FACTORIES[node["of"]], self._dict(node)),
    "object": lambda self, node: ObjectState(str(node["how"]), self._decode(node["v"])),
}


class Outline(Decoder):
    """Decodes a tree without its blobs: arrays have their shape and type, and any content.

    `numbers` has the blob of each by the id of what stands for it. Keep it while these are used.
    """

    def __init__(self) -> None:
        super().__init__(lambda number: memoryview(b""))

    @property
    def numbers(self) -> dict[int, int]:
        return {id(value): key[1] for key, value in self._made.items()}

    def _data(self, node: dict[str, Any]) -> bytes:
        return b"" if "at" in node else super()._data(node)


@functools.lru_cache(maxsize=256)
def _namedtuple(name: str, fields: tuple[str, ...]) -> Any:
    """A class like the saved one: nothing is imported. It takes no names but identifiers."""
    return namedtuple(name, fields)


def plain(value: Any) -> Any:
    """A decoded value without `ObjectState`: plain data stands where objects stood.

    That is the state dict; the fields of a dataclass; the value of an enum's member; for an
    estimator, its class's name and the bytes in its library's own format.
    """
    if isinstance(value, ObjectState):
        if value.how == "dataclass":
            return plain(value.state["fields"])
        return plain(value.state["value"] if value.how == "enum" else value.state)
    if type(value) in (list, deque):
        for i, item in enumerate(value):
            value[i] = plain(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            value[key] = plain(item)
    elif type(value) is tuple or (isinstance(value, tuple) and hasattr(value, "_make")):
        return same_tuple(value, (plain(item) for item in value))
    return value


def same_tuple(like: Any, items: Iterable[Any]) -> Any:
    """The items in a tuple, or in a named tuple of the same class."""
    return like._make(items) if hasattr(like, "_make") else tuple(items)


def _is_key(key: Any) -> bool:
    if type(key) in (tuple, frozenset):
        return all(_is_key(item) for item in key)
    if key is None or type(key) in (bool, int, float, complex, str, bytes):
        return True
    if type(key) in scalars.HASHABLE:
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(key, numpy.generic) and key.dtype.kind in "biufcSUMm"


def _spell(key: Any) -> str:
    # Python refuses to write whole numbers of more than 4,300 digits.
    try:
        return repr(key)[:100]
    except ValueError:
        return "…"


def _refuse(path: str, value: Any, why: str) -> errors.NotCheckpointable:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return errors.NotCheckpointable(
        f"{path} ({kind}) cannot be checkpointed: it {why}. "
        "Give it state_dict()/load_state_dict(), or leave it out of the state"
    )
