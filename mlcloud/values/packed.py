"""Values on their way into a job and out of it: a function with what it needs, items, results.

    code    function ─► the names it uses, and theirs ─► one pickle ┐
                     └► local modules: their source                 ├─ Wire ══► worker
    item    (args, kwargs) ─────────────────────────────────────────┘
    result  value ─► Wire ══► store ══► client

A `Wire` is what msgpack takes: the bytes of a plain pickle, or `[payload, buffers]`, of which each
piece above `INLINE_BYTES` is `{"objects": ["<blake3>:<bytes>", …]}` in the store. Plain atoms, of
which a map has thousands, are pickled by pickle itself; all else by `values.pickling`, so functions
and classes of the notebook travel as they do to a session, and what cannot is named.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlcloud.errors import NotPicklable, UsageError
from mlcloud.values import local
from mlcloud.values.pickled import Pickled, Ref
from mlcloud.values.pickling import Resolve, dump, load
from mlcloud.values.reducers import Classes
from mlcloud.values.userdata import import_path, is_internal, looks_secret
from mlcloud.values.uses import attributes_used, globals_used

Wire = Any
Put = Callable[[Any], list[str]]  # bytes to the store; their chunks
Get = Callable[[list[str]], Any]

INLINE_BYTES = 64 * 1024
_ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
_PLAIN_BYTES = 16 * 1024


@dataclass
class Packed:
    """`needs`: the jobs whose results are in it, by (job, item)."""

    wire: Wire
    needs: list[Ref] = field(default_factory=list)


# --- values ---------------------------------------------------------------------------------------


def pack(
    value: Any, namespace: dict[str, Any], classes: Classes, put: Put, *, name: str = "value"
) -> Packed:
    """Raises `NotPicklable`, naming the part of `name` that cannot travel."""
    if _is_plain(value):
        return Packed(pickle.dumps(value, 5))
    return wired(dump((value,), namespace, classes=classes, name=name, wrapped=True), put)


def wired(pickled: Pickled, put: Put) -> Packed:
    needs = sorted(pickled.refs)
    payload: Any = pickled.payload
    if len(payload) > INLINE_BYTES:
        payload = {"objects": put(payload)}
    buffers = [
        {"objects": put(each)} if each.nbytes > INLINE_BYTES else bytes(each)
        for each in pickled.buffers
    ]
    return Packed([payload, buffers], needs)


def unpack(
    wire: Wire,
    namespace: dict[str, Any],
    classes: Classes,
    get: Get,
    resolve: Resolve | None = None,
) -> Any:
    """The value again. To be called for what came from who may be trusted only."""
    if isinstance(wire, bytes):
        return pickle.loads(wire)
    payload, buffers = wire
    read = [bytearray(_piece(each, get)) for each in buffers]
    value = load(
        _piece(payload, get), read, namespace, classes=classes, resolve=resolve, copy=False
    )
    return value[0]


def _piece(piece: Any, get: Get) -> Any:
    return get(piece["objects"]) if isinstance(piece, dict) else piece


def objects(wire: Wire) -> Iterator[str]:
    """The chunks that it names."""
    if isinstance(wire, dict):
        if set(wire) == {"objects"}:
            yield from wire["objects"]
            return
        wire = list(wire.values())
    if isinstance(wire, (list, tuple)):
        for each in wire:
            yield from objects(each)


def _is_plain(value: Any, depth: int = 3) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return kind not in (str, bytes) or len(value) <= _PLAIN_BYTES
    if kind is tuple and depth:
        return len(value) <= 20 and all(_is_plain(each, depth - 1) for each in value)
    return kind is dict and not value


# --- a function, with what it needs ---------------------------------------------------------------


def pack_code(function: Any, namespace: dict[str, Any], classes: Classes, put: Put) -> Packed:
    """A function with the notebook's names that it uses, and the local modules.

    Raises `NotPicklable`, naming what and why, and `UsageError` where a name looks like a secret.
    """
    title = getattr(function, "__qualname__", type(function).__name__)
    names, pickled = with_names(function, namespace, classes, str(title))
    imports, rest = split_imports(names, pickled, namespace)
    seen = set(pickled.modules) | {path for paths in imports.values() for path in paths}
    seen |= {getattr(function, "__module__", None) or ""}
    pickled = dump(
        ({"function": function, "names": rest},),
        namespace,
        classes=classes,
        name=str(title),
        wrapped=True,
    )
    packed = wired(pickled, put)
    sources = local.sources(seen)
    for module, source in sources.items():
        if held := classes.secrets.held_by(str(source).encode("utf-8", "replace")):
            raise UsageError(
                f"the source of `{module}`, which `{title}` uses, has the value of the secret "
                f"{held} in it, and code is kept in the store: write os.environ[{held!r}]"
            )
    packed.wire = {"value": packed.wire, "imports": imports, "modules": sources}
    return packed


def with_names(
    value: Any, namespace: dict[str, Any], classes: Classes, title: str
) -> tuple[set[str], Pickled]:
    """The names that a value's code uses, and those that their values use; and the pickle of all.

    Of the pickle only what it reached is used.
    """
    names: set[str] = set()
    while True:
        held = {name: namespace[name] for name in names if not _is_module(namespace[name])}
        try:
            pickled = dump((value, held), namespace, classes=classes, name=title)
        except NotPicklable:
            for name, part in {title: value, **held}.items():  # which of them
                dump((part,), namespace, classes=classes, name=name, wrapped=True)
            raise
        used = {name for code in pickled.codes for name in globals_used(code)}
        used |= set(pickled.annotated)
        new = {
            name
            for name in used - names
            if name in namespace and not is_internal(name, namespace[name])
        }
        for name in sorted(new):
            if looks_secret(name, namespace[name]):
                raise UsageError(
                    f"`{title}` uses `{name}`, which looks like a secret: it was not sent. Give it "
                    "as an argument if it is meant to go, or read it there from the environment"
                )
        if not new:
            return names, pickled
        names |= new


def split_imports(
    names: Collection[str], pickled: Pickled, namespace: dict[str, Any]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """(names that are modules: their path and submodules in use, the others with their values)."""
    import sys

    imports: dict[str, list[str]] = {}
    rest: dict[str, Any] = {}
    attributes: set[str] = set()
    for code in pickled.codes:
        attributes |= attributes_used(code)
    for name in sorted(names):
        value = namespace[name]
        path = import_path(value) if _is_module(value) else None
        if path is None:
            rest[name] = value
            continue
        below = [
            each
            for each in sys.modules
            if each.startswith(f"{path}.") and set(each[len(path) + 1 :].split(".")) <= attributes
        ]
        imports[name] = [path, *sorted(below)]
    return imports, rest


def _is_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType)


@dataclass
class Code:
    """A function on a worker: in a namespace of its own."""

    function: Any
    namespace: dict[str, Any]
    classes: Classes


def unpack_code(wire: Wire, get: Get, resolve: Resolve | None = None) -> Code:
    """Raises what an import of it raises there."""
    import importlib

    local.install(wire["modules"])
    classes = Classes()
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    for name, (path, *below) in wire["imports"].items():
        namespace[name] = importlib.import_module(path)
        for each in below:
            importlib.import_module(each)
    found = unpack(wire["value"], namespace, classes, get, resolve)
    namespace.update(found["names"])
    return Code(found["function"], namespace, classes)


def all_objects(wires: Iterable[Wire]) -> list[str]:
    """The chunks that any of them names, each once."""
    return sorted({each for wire in wires for each in objects(wire)})
